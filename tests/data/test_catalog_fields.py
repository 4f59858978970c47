"""What a catalogue's fields may hold, however they were written, and what is left out of it."""

from __future__ import annotations

import gzip
import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from elva.data.catalog import convert
from elva.data.catalog.items import Catalog, read_catalog
from elva.data.catalog.values import spoken_key
from elva.data.check import check
from elva.data.mbeir import DataError, MBEIRDirectory
from elva.data.wording import comparable

FORMS = ("café", "cafe\u0301", "CAFÉ", " caf\u00e9\u200b", "ca\u00adfe\u0301")


def write(folder: Path, records: list[dict[str, Any]], pictures: int | None = None) -> Path:
    """A catalogue of records, each with a picture of its own unless it names one."""
    for n in range(len(records) if pictures is None else pictures):
        Image.new("RGB", (6, 6), (n % 256, n // 256, 77)).save(folder / f"{n}.png")
    lines = [json.dumps({"image": f"{n}.png"} | record) for n, record in enumerate(records)]
    path = folder / "items.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def values(catalog: Catalog) -> list[set[str]]:
    return [{value for _, value in item.grains} for item in catalog.items]


def test_a10_unicode_forms_are_one_value_and_no_right_answer_is_a_negative(tmp_path: Path) -> None:
    rng = random.Random(3)
    truth, records = {}, []
    for n in range(60):
        place, colour, size = (
            rng.choice(["café", "bar"]),
            rng.choice(["red", "blue"]),
            rng.choice(["big", "small"]),
        )
        truth[f"mbeir_images/{n}.png"] = {place, colour, size}
        form = FORMS[n % len(FORMS)] if place == "café" else place
        records.append({"place": form, "colour": colour, "size": size, "text": f"thing{n}"})
    convert(write(tmp_path, records), tmp_path / "out", ["place", "colour", "size"])
    directory = MBEIRDirectory(tmp_path / "out")
    seen = 0
    for dataset in ("catalog", "catalog_multigrain"):
        images = {c.did: c.image or "" for c in directory.pool("test", dataset, 0)}
        for query in directory.queries("test", dataset, 0):
            wanted = {unicodedata.normalize("NFC", g.value).lower() for g in query.grains}
            right = {did for did, image in images.items() if wanted <= truth[image]}
            assert set(query.positives) == right
            assert not right & set(query.negatives)
            seen += "café" in wanted
    assert seen >= 5
    assert [str(problem) for problem in check(tmp_path / "out")] == []


def test_a10_the_first_spelling_is_shown(tmp_path: Path) -> None:
    records = [
        {"m": "Crème-brûlée"},
        {"m": unicodedata.normalize("NFD", "crème_brûlée")},
        {"m": "crème\u00a0brûlée"},
    ]
    catalog = read_catalog(write(tmp_path, records), ["m"])
    assert values(catalog) == [{"Crème brûlée"}] * 3


def test_a10_keys_may_stand_in_any_form(tmp_path: Path) -> None:
    records = [{"attributes": {unicodedata.normalize("NFD", "größe"): "big"}}, {"größe": "small"}]
    catalog = read_catalog(write(tmp_path, records), [unicodedata.normalize("NFD", "größe")])
    assert values(catalog) == [{"big"}, {"small"}]


def test_texts_and_pictures_may_stand_under_any_form_of_their_field(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "größe") for form in ("NFC", "NFD")]
    records = [{"m": "x", form: "a text", f"{form}2": f"{n}.png"} for n, form in enumerate(forms)]
    path = write(tmp_path, records)
    for form in forms:
        catalog = read_catalog(path, ["m"], image_field=f"{form}2", text_field=form)
        assert [(item.text, item.image) for item in catalog.items] == [
            ("a text", "0.png"),
            ("a text", "1.png"),
        ]


@pytest.mark.parametrize(
    "line",
    [
        '{"image": "0.png", "größe": "big", "gro\u0308ße": "small"}',
        '{"image": "0.png", "attributes": {"größe": "big", "größe": "big"}}',
    ],
)
def test_a_key_twice_in_one_item_is_refused(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, [{"größe": "x"}])
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_catalog(path, ["größe"])
    assert str(caught.value) == (
        f"{path}:2: -: malformed JSON: the key 'größe' stands twice in one object, expected once"
    )


def test_a10_two_forms_of_one_text_are_one_candidate_and_one_name(tmp_path: Path) -> None:
    forms = ("Café chair. Old.", "Cafe\u0301 chair.\u00a0Old.")
    records = [
        {
            "a": f"a{n % 3}",
            "b": f"b{n % 2}",
            "c": f"c{n % 5}",
            "text": forms[n % 2],
            "name": forms[n % 2][:-6],
        }
        for n in range(40)
    ]
    convert(write(tmp_path, records), tmp_path / "out", ["a", "b", "c"], split_by="items")
    directory = MBEIRDirectory(tmp_path / "out")
    for task in (1, 3):
        pool = directory.pool("test", "catalog", task)
        texts = [unicodedata.normalize("NFC", c.text or "").replace("\u00a0", " ") for c in pool]
        assert len(texts) == len(set(texts))
        own = {c.did for c, text in zip(pool, texts, strict=True) if text == forms[0]}
        queries = directory.queries("test", "catalog", task)
        assert all(len(set(query.positives)) == len(query.positives) for query in queries)
        if task == 3:
            assert len(own) == 1 and all(own <= set(query.positives) for query in queries)


def many(count: int = 24) -> list[dict[str, Any]]:
    return [
        {"a": f"a{n % 2}", "b": f"b{n // 2 % 3}", "text": f"thing{n}", "other": f"{100 + n}.png"}
        for n in range(count)
    ]


def second_pictures(folder: Path, count: int = 24) -> None:
    for n in range(count):
        Image.new("RGB", (6, 6), (n, 200, 9)).save(folder / f"{100 + n}.png")


def test_a11_copies_of_pictures_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, many())
    second_pictures(tmp_path)
    (tmp_path / "5.png").write_bytes((tmp_path / "3.png").read_bytes())  # byte for byte
    Image.open(tmp_path / "3.png").save(tmp_path / "6.png", compress_level=0, dpi=(9, 9))  # in other bytes
    (tmp_path / "107.png").write_bytes((tmp_path / "7.png").read_bytes())  # its own picture
    (tmp_path / "108.png").write_bytes((tmp_path / "9.png").read_bytes())  # another item's
    (tmp_path / "110.png").write_bytes((tmp_path / "111.png").read_bytes())  # another second one
    catalog = read_catalog(path, ["a", "b"], alt_image_field="other")
    assert [item.image for item in catalog.items] == [f"{n}.png" for n in range(24) if n not in (5, 6)]
    assert [item.image for item in catalog.items if item.alt_image is None] == ["7.png", "8.png", "11.png"]
    assert catalog.left_out == {"items": 2, "second pictures": 3}
    with pytest.warns(UserWarning) as warned:
        convert(path, tmp_path / "out", ["a", "b"], alt_image_field="other", split_by="items")
    shown = [str(w.message) for w in warned]
    assert f"{path}: items left out, copies of pictures of the catalogue: 2" in shown
    assert f"{path}: second pictures left out, copies of pictures of the catalogue: 3" in shown
    summary = json.loads((tmp_path / "out/catalog.json").read_text())
    assert summary["left_out"] == {"items": 2, "second pictures": 3}
    directory = MBEIRDirectory(tmp_path / "out")
    for split in ("val", "test"):
        pool = directory.pool(split, "catalog", 4)
        pixels = {c.did: Image.open(directory.path(c.image or "")).tobytes() for c in pool}
        assert len(set(pixels.values())) == len(pixels)
        for query in directory.queries(split, "catalog", 4):
            assert Image.open(directory.path(query.image or "")).tobytes() not in pixels.values()


def test_a11_a_second_picture_that_is_another_items_first_by_path(tmp_path: Path) -> None:
    records = many()
    second_pictures(tmp_path)
    records[4]["other"] = "9.png"
    records[5]["other"] = "5.png"
    catalog = read_catalog(write(tmp_path, records), ["a"], alt_image_field="other")
    assert [item.image for item in catalog.items if item.alt_image is None] == ["4.png", "5.png"]


@pytest.mark.parametrize(
    "word", ["nan", "NaN", "None", "null", "NULL", "-", "—", "N/A", " - ", "<NA>", "―", "−", "N.A."]
)
def test_c31_words_for_nothing_are_missing_and_counted(tmp_path: Path, word: str) -> None:
    records = [{"m": word, "text": word, "name": word}, {"m": ["red", word]}, {"m": "a-b"}]
    catalog = read_catalog(write(tmp_path, records), ["m"])
    assert values(catalog) == [set(), {"red"}, {"a b"}]
    assert (catalog.items[0].text, catalog.items[0].name) == ("", "")
    form = word.strip().lower()
    assert catalog.missing == {"text": {form: 1}, "name": {form: 1}, "m": {form: 2}}


def test_c31_numbers_are_texts(tmp_path: Path) -> None:
    records = [{"m": "x", "name": 42, "text": 1984.0}, {"m": 0, "name": float("nan"), "text": None}]
    items = read_catalog(write(tmp_path, records), ["m"]).items
    assert [(item.name, item.text) for item in items] == [("42", "1984"), ("", "")]
    assert items[1].grains == {("m", "0")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ["a", "b"]}, "text is ['a', 'b'], expected a text"),
        ({"text": {"en": "a"}}, "text is {'en': 'a'}, expected a text"),
        ({"name": True}, "name is True, expected a text"),
        ({"m": "['red', 'black']"}, "m is \"['red', 'black']\", a list or object written as text"),
        ({"m": '["red", null]'}, "m is '[\"red\", null]', a list or object written as text"),
        ({"m": '{"a": 1}'}, "m is '{\"a\": 1}', a list or object written as text"),
        ({"m": ["{'a': 1}"]}, "m is \"{'a': 1}\", a list or object written as text"),
        ({"m": [2, float("inf")]}, "m is inf, expected a finite number"),
        ({"name": float("-inf")}, "name is -inf, expected a finite number"),
        ({"m": {"a": "x" * 500}}, "m holds {'a': 'xxx"),
    ],
)
def test_c31_what_cannot_be_read_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    records = [{"id": "i0", "m": "red"}, {"id": 0, "m": "red"} | change]
    path = write(tmp_path, records)
    with pytest.raises(DataError, match=re.escape(f"{path}:2: 0: {message}")) as error:
        read_catalog(path, ["m"])
    assert len(str(error.value)) < len(str(path)) + 250


@pytest.mark.parametrize("field", ["image", "other"])
@pytest.mark.parametrize("value", ["x" * 300, "x/" * 3000, "", "a\0b", 7, ["x" * 300]])
def test_a_picture_that_cannot_be_is_named_with_file_and_line(tmp_path: Path, field: str, value: Any) -> None:
    path = write(tmp_path, [{"m": "x", "other": None}, {"m": "y", field: value}])
    with pytest.raises(DataError, match=r"a usable path: |expected the path of a picture") as caught:
        read_catalog(path, ["m"], alt_image_field="other")
    assert str(caught.value).startswith(f"{path}:2: no id: {field} ")
    assert len(str(caught.value)) < len(str(path)) + 200


def test_c31_brackets_alone_are_no_list(tmp_path: Path) -> None:
    written = ["[sic]", "(red)", "(1)", "(1,2)", "{1}"]
    catalog = read_catalog(write(tmp_path, [{"m": value} for value in written]), ["m"])
    assert values(catalog) == [{value} for value in written]


def test_a_text_or_name_may_look_like_a_list(tmp_path: Path) -> None:
    written = ["[1]", "(1,2)", "['a red cup']", '{"a": 1}']
    records = [{"m": "x", "text": value, "name": value} for value in written]
    items = read_catalog(write(tmp_path, records), ["m"]).items
    assert [item.text for item in items] == written
    assert [item.name for item in items] == written


def test_a_null_attribute_hides_nothing(tmp_path: Path) -> None:
    records = [{"attributes": {"c": None}, "c": "red"}, {"attributes": {"c": "blue"}, "c": "red"}]
    assert values(read_catalog(write(tmp_path, records), ["c"])) == [{"red"}, {"blue"}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{folder}/img/0.png", "is absolute, expected 'img/0.png', relative to {folder}"),
        ("/nowhere/0.png", "is absolute, expected a path, relative to {folder}"),
        ("C:\\img\\0.png", "is absolute, expected a path, relative to {folder}"),
        ("img\\0.png", "is written with backslashes; expected 'img/0.png'"),
        ("..\\outside.png", "does not exist in {folder}"),
        ("img\\1.png", "does not exist in {folder}"),
    ],
)
def test_a_path_of_another_kind_is_called_so(tmp_path: Path, given: str, message: str) -> None:
    given = given.replace("{folder}", str(tmp_path))
    path = write(tmp_path, [{"m": "x", "image": given}])
    (tmp_path / "img").mkdir()
    (tmp_path.parent / "outside.png").touch()
    (tmp_path / "0.png").rename(tmp_path / "img/0.png")
    message = f"image {given!r} {message.replace('{folder}', str(tmp_path))}"
    with pytest.raises(DataError, match=re.escape(message)):
        read_catalog(path, ["m"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"image": "0.png"}'.encode("utf-16"),
            ": cannot be read: the file is UTF-16 text, expected UTF-8 text",
        ),
        (
            '{"image": "0.png"}'.encode("utf-16-be"),
            ": cannot be read: the file is UTF-16 text, expected UTF-8 text",
        ),
        (
            '{"image": "0.png"}'.encode("utf-32"),
            ": cannot be read: the file is UTF-32 text, expected UTF-8 text",
        ),
        (gzip.compress(b"{}", mtime=0), ": cannot be read: the file is gzip, expected UTF-8 text"),
        (b"PK\x03\x04\0\0", ": cannot be read: the file is a zip archive, expected UTF-8 text"),
        (b"\nimage,m\n0.png,x\n", ":2: begins with 'image,m', expected one JSON object a line (no CSV)"),
        (b"- image: 0.png\n", ":1: begins with '- image: 0.png', expected one JSON object a line (no CSV)"),
        (None, ": cannot be read: a directory, not a regular file"),
    ],
)
def test_a_file_that_is_no_catalogue_is_called_what_it_is(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "items.jsonl"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_catalog(path, ["m"])
    assert str(caught.value) == f"{path}{message}"


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n "])
def test_c31_a_json_array_is_named(tmp_path: Path, indent: int | None, mark: bytes) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(mark + json.dumps([{"image": "0.png", "m": "x"}], indent=indent).encode())
    with pytest.raises(DataError, match=re.escape(f"{path}: a JSON array, expected one JSON object a line")):
        read_catalog(path, ["m"])


def test_c31_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = write(tmp_path, [{"m": "x"}, {"m": "y"}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\xef\xbb\xbf"))
    assert values(read_catalog(path, ["m"])) == [{"x"}, {"y"}]


@pytest.mark.parametrize(
    ("number", "spoken"),
    [("0.00001", "0.00001"), ("2.50", "2.5"), ("1e-7", "0.0000001"), ("3.0", "3"), ("1e3", "1000")],
)
def test_numbers_are_written_without_exponents(number: str, spoken: str, tmp_path: Path) -> None:
    path = write(tmp_path, [{"m": "@"}])
    path.write_text(path.read_text().replace('"@"', number))
    assert values(read_catalog(path, ["m"])) == [{spoken}]


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("navy－blue", "navy blue"),
        ("navy-blue", "navy blue"),
        ("navy\u200b-blue", "navy\u200b blue"),
        ("m\u0302-x", "m\u0302 x"),
        ("a__b", "a b"),
        ("-5", "-5"),
        ("a - b", "a - b"),
        ("3-5", "3-5"),
        ("2021-03-04", "2021-03-04"),
        ("+49-30-123", "+49-30-123"),
        ("1e-5", "1e-5"),
        ("size-10", "size 10"),
        ("10-inch", "10 inch"),
        ("e-5", "e 5"),
        ("1_2", "1 2"),
    ],
)
def test_a10_a_dash_between_words_is_a_space_whatever_the_letters(written: str, spoken: str) -> None:
    assert spoken_key(written) == spoken
    assert comparable(spoken_key("navy\u200b-blue")) == comparable(spoken_key("navy-blue"))


def test_a10_a_grain_in_two_forms_is_one_grain(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each once"):
        convert(tmp_path / "items.jsonl", tmp_path / "out", ["\u00e9", "e\u0301"])
