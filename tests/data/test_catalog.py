from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from elva.data.catalog import convert
from elva.data.catalog.items import Item, read_catalog
from elva.data.catalog.sentences import short_text
from elva.data.catalog.splits import split_items
from elva.data.check import check
from elva.data.mbeir import Candidate, DataError, MBEIRDirectory, Query

KEYS = ["colours", "shape", "material", "size"]
COLOURS = ["red", "blue", "green", "orange"]
SHAPES = ["round", "long_thin"]
MATERIALS = ["oak-wood", "glass"]
SIZES = [1, 2]
Values = frozenset[tuple[str, str]]


def write_catalog(folder: Path, count: int = 200) -> Path:
    """Items with list-valued, missing, misspelt and numeric attributes; item 0 and 1 have none at all."""
    rng = random.Random(5)
    lines = []
    for n in range(count):
        attributes: dict[str, Any] = {
            "colours": rng.sample(COLOURS, rng.choice([0, 1, 2, 2, 3])),
            "shape": rng.choice([*SHAPES, None]),
            "material": rng.choice([*MATERIALS, "Glass", "", "oak_wood "]),
        }
        if rng.random() < 0.3:
            del attributes["material"]
        item: dict[str, Any] = {"id": f"i{n}", "image": f"pictures/{n}.png", "attributes": attributes}
        if n < 2:
            item["attributes"] = {"colours": [], "shape": float("nan")}
        elif rng.random() < 0.6:
            item["size"] = rng.choice(SIZES)
        if n % 10:
            item["text"] = f"thing{n}. a1, b2, c3, d4, e5, f6, g7, h8."
        if n % 2:
            item["other"] = f"pictures/{n}b.png"
        lines.append(item)
        for name, used in ((f"{n}.png", True), (f"{n}b.png", n % 2)):
            if used:
                picture = Image.new("RGB", (6, 6), tuple(rng.randrange(256) for _ in range(3)))
                (folder / "pictures").mkdir(parents=True, exist_ok=True)
                picture.save(folder / "pictures" / name)
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def spoken(value: object) -> str:
    return re.sub("[-_]", " ", str(value)).strip().lower()


def true_values(path: Path) -> dict[str, Values]:
    """What each picture of the catalogue satisfies, read here independently of the converter."""
    values = {}
    for line in path.read_text().splitlines():
        item = json.loads(line)
        given = item["attributes"] | {"size": item.get("size")}
        pairs = [(k, v) for k in KEYS for v in (given.get(k) if k == "colours" else [given.get(k)]) or []]
        values[f"mbeir_images/{item['image']}"] = frozenset(
            (k, spoken(v)) for k, v in pairs if v not in (None, "") and v == v
        )
    return values


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalog(tmp_path_factory.mktemp("catalogue"))


@pytest.fixture(scope="module")
def root(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(catalogue, out, KEYS, alt_image_field="other")
    return out


@pytest.fixture(scope="module")
def values(catalogue: Path) -> dict[str, Values]:
    return true_values(catalogue)


def rows(root: Path, task_ids: tuple[int, ...]) -> list[tuple[str, int, list[Query], list[Candidate]]]:
    """(split, task, queries, pool) of the ordinary tasks in every split; in train the pool of the right pictures."""
    directory = MBEIRDirectory(root)
    found = []
    for task_id in task_ids:
        for split in ("val", "test"):
            found.append(
                (
                    split,
                    task_id,
                    directory.queries(split, "catalog", task_id),
                    directory.pool(split, "catalog", task_id),
                )
            )
        modality = "image,text" if task_id in (2, 8) else "image"
        pool = [c for c in directory.train_pool().values() if c.modality == modality]
        found.append(("train", task_id, directory.queries("train", "catalog", task_id), pool))
    return found


def named(query: Query) -> Values:
    return frozenset((grain.key, grain.value.lower()) for grain in query.grains)


def said(text: str) -> Values:
    """The values whose words stand in a text (every value of this catalogue has its own words)."""
    known = [("colours", c) for c in COLOURS] + [("shape", spoken(s)) for s in SHAPES]
    known += [("material", spoken(m)) for m in MATERIALS]
    sizes = re.findall(r"size(?: is)? (\d)\b|\b(\d) size", text)
    found = {(k, v) for k, v in known if re.search(rf"\b{v}\b", text, re.IGNORECASE)}
    return frozenset(found | {("size", a or b) for a, b in sizes})


def test_directory_has_all_tasks_and_no_problem(root: Path) -> None:
    assert [str(problem) for problem in check(root)] == []
    directory = MBEIRDirectory(root)
    tasks = {("catalog", task) for task in (0, 1, 2, 3, 4, 6, 7, 8)}
    assert set(directory.tasks("train")) == tasks == set(directory.tasks("val"))
    assert set(directory.tasks("test")) == tasks | {("catalog_multigrain", 0)}
    summary = json.loads((root / "catalog.json").read_text())
    assert summary["test"]["catalog task0"]["queries"] == len(directory.queries("test", "catalog", 0))


def test_pictures_are_copied_byte_for_byte(root: Path, catalogue: Path) -> None:
    pictures = sorted((catalogue.parent / "pictures").iterdir())
    copies = sorted((root / "mbeir_images" / "pictures").iterdir())
    assert [p.read_bytes() for p in pictures] == [p.read_bytes() for p in copies]


def test_attribute_queries_name_exactly_the_pictures_that_satisfy_them(
    root: Path, values: dict[str, Values]
) -> None:
    for split, task_id, queries, pool in rows(root, (0, 2)):
        for query in queries:
            satisfying = {c.did for c in pool if c.image and named(query) <= values[c.image]}
            assert set(query.positives) == satisfying, (split, task_id, query)
            assert said(query.text or "") == named(query), query


def test_negatives_miss_exactly_one_grain(root: Path, values: dict[str, Values]) -> None:
    for _, _, queries, pool in rows(root, (0, 2)):
        image = {c.did: c.image for c in pool}
        for query in queries:
            assert all(len(named(query) - values[image[did] or ""]) == 1 for did in query.negatives)
    assert any(query.negatives for _, _, queries, _ in rows(root, (7, 8)) for query in queries)


def test_changed_pictures_differ_in_one_value(root: Path, values: dict[str, Values]) -> None:
    replaced = added = 0
    for _, _, queries, pool in rows(root, (7, 8)):
        image = {c.did: c.image or "" for c in pool}
        for query in queries:
            (new,) = named(query)
            before = values[query.image or ""]
            (after,) = {values[image[did]] for did in query.positives}
            assert after - before == {new}
            assert len(before - after) <= 1 and {key for key, _ in before - after} <= {new[0]}
            assert set(query.positives) == {c.did for c in pool if c.image and values[c.image] == after}
            replaced, added = replaced + bool(before - after), added + (not before - after)
            if new[0] == "colours" and before - after:
                assert next(iter(before - after))[1] in (query.text or "")
    assert replaced and added


def test_pictures_find_every_true_text(root: Path, values: dict[str, Values]) -> None:
    directory = MBEIRDirectory(root)
    for split in ("val", "test"):
        pool = directory.pool(split, "catalog", 3)
        for query in directory.queries(split, "catalog", 3):
            name = f"thing{Path(query.image or '').stem}"
            true = {
                c.did
                for c in pool
                if re.findall(r"thing\d+", c.text or "") in ([], [name])
                and said(c.text or "") <= values[query.image or ""]
            }
            assert set(query.positives) == true


def test_questions_find_every_true_answer(root: Path, values: dict[str, Values]) -> None:
    directory = MBEIRDirectory(root)
    pool = directory.pool("test", "catalog", 6)
    for query in directory.queries("test", "catalog", 6):
        (key,) = [key for key in KEYS if key in (query.text or "")]
        true = {
            c.did
            for c in pool
            if f"the {key} " in (c.text or "") and said(c.text or "") <= values[query.image or ""]
        }
        assert set(query.positives) == true


def test_texts_find_every_true_text(root: Path, values: dict[str, Values]) -> None:
    directory = MBEIRDirectory(root)
    of_name = {f"thing{Path(image).stem}": grains for image, grains in values.items()}
    directions = set()
    for split in ("val", "test"):
        pool = directory.pool(split, "catalog", 1)
        for query in directory.queries(split, "catalog", 1):
            names = re.findall(r"thing\d+", query.text or "")
            directions.add(bool(names))
            expected = set()
            for c in pool:
                of_candidate = re.findall(r"thing\d+", c.text or "")
                if names:
                    true = of_candidate == names or (
                        not of_candidate and said(c.text or "") <= of_name[names[0]]
                    )
                else:
                    facts = of_name[of_candidate[0]] if of_candidate else said(c.text or "")
                    true = named(query) <= facts
                expected |= {c.did} if true else set()
            assert set(query.positives) == expected
    assert directions == {True, False}


def test_second_picture_finds_its_own(root: Path) -> None:
    directory = MBEIRDirectory(root)
    image = {c.did: c.image for c in directory.pool("test", "catalog", 4)}
    for query in directory.queries("test", "catalog", 4):
        assert [image[did] for did in query.positives] == [(query.image or "").replace("b.png", ".png")]


def test_equal_attributes_where_there_is_no_second_picture(catalogue: Path, tmp_path: Path) -> None:
    convert(catalogue, tmp_path / "out", ["colours", "shape"])
    values = {
        image: frozenset(value for value in all_values if value[0] in ("colours", "shape"))
        for image, all_values in true_values(catalogue).items()
    }
    directory = MBEIRDirectory(tmp_path / "out")
    pool = directory.pool("test", "catalog", 4)
    queries = directory.queries("test", "catalog", 4)
    assert queries and not {query.image for query in queries} & {c.image for c in pool}
    for query in queries:
        equal = {c.did for c in pool if values[c.image or ""] == values[query.image or ""]}
        assert set(query.positives) == equal
    assert [str(problem) for problem in check(tmp_path / "out")] == []


def images(root: Path, split: str) -> set[str]:
    return {c.image or "" for c in MBEIRDirectory(root).pool(split, "catalog", 0)}


def test_no_combination_leaks_but_every_value_is_trained(root: Path, values: dict[str, Values]) -> None:
    held = {split: images(root, split) for split in ("val", "test")}
    train = set(values) - held["val"] - held["test"]
    combinations = {
        split: {values[image] for image in part} for split, part in [*held.items(), ("train", train)]
    }
    assert not combinations["test"] & combinations["train"]
    assert not combinations["val"] & (combinations["train"] | combinations["test"])
    assert set().union(*combinations["test"]) <= set().union(*combinations["train"])
    assert {image for image, grains in values.items() if not grains} <= train
    assert 0.15 < len(combinations["test"]) / len(set(values.values())) < 0.25
    used = {c.image for c in MBEIRDirectory(root).train_pool().values() if c.image}
    asked = {query.image for query in MBEIRDirectory(root).train_queries() if query.image}
    assert used == train and {(image or "").replace("b.png", ".png") for image in asked} <= train


def test_a_value_of_one_combination_alone_is_never_held_out() -> None:
    values = [{("a", str(n % 7)), ("b", str(n % 5))} for n in range(35)] + [
        {("a", f"rare{n}")} for n in range(15)
    ]
    items = [Item(f"x:{n}", str(n), "", "", f"{n}.png", None, frozenset(v)) for n, v in enumerate(values)]
    parts = split_items(items, seed=3)
    assert {split: len(part) for split, part in parts.items()} == {"train": 35, "val": 4, "test": 11}
    train = set().union(*(item.grains for item in parts["train"]))
    assert all(item.grains <= train for split in ("val", "test") for item in parts[split])


def test_split_by_items(catalogue: Path, tmp_path: Path) -> None:
    convert(catalogue, tmp_path / "out", KEYS, split_by="items")
    values = true_values(catalogue)
    test = images(tmp_path / "out", "test")
    assert len(test) == round(0.22 * sum(map(bool, values.values())))
    assert all(values[image] for image in test)
    assert {values[image] for image in test} & {values[image] for image in set(values) - test}


def test_multi_grain_queries(root: Path, values: dict[str, Values]) -> None:
    directory = MBEIRDirectory(root)
    queries = directory.queries("test", "catalog_multigrain", 0)
    pool = directory.pool("test", "catalog_multigrain", 0)
    image = {c.did: c.image or "" for c in pool}
    assert {"31"} == {query.qid.split(":")[0] for query in queries}
    assert len({named(query) for query in queries}) == len(queries) <= 1000
    sizes = Counter(len(query.grains) for query in queries)
    assert set(sizes) == {2, 3, 4, 5, 6} and max(sizes.values()) <= 200
    test = images(root, "test")
    assert test <= set(image.values())
    away = 0
    for query in queries:
        grains = named(query)
        assert any(grains <= values[i] for i in test), "asks for something that no test picture has"
        assert set(query.positives) == {did for did, i in image.items() if grains <= values[i]}
        near = {did for did, i in image.items() if len(grains - values[i]) == 1}
        assert set(query.negatives) <= near and bool(query.negatives) == bool(near)
        for value in grains:
            missed = [i for i in values if grains - values[i] == {value}]
            held = set(missed) & (test | (set(values) - test - images(root, "val")))
            assert bool(held) == any(grains - values[image[did]] == {value} for did in near)
        away += bool(near)
    summary = json.loads((root / "catalog.json").read_text())["test"]["catalog_multigrain task0"]["by_grains"]
    assert sum(count["one_grain_away"] for count in summary.values()) == away > 0.9 * len(queries)
    assert {int(k): count["queries"] for k, count in summary.items()} == sizes


def test_spans_hold_the_value_and_do_not_overlap(root: Path) -> None:
    directory = MBEIRDirectory(root)
    for task in directory.tasks("test"):
        for query in directory.queries("test", *task):
            spans = sorted((grain.start, grain.end) for grain in query.grains)
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
            assert all(g.value in (query.text or "")[g.start : g.end] for g in query.grains)


def test_train_captions_say_the_name_first_and_stay_short(root: Path) -> None:
    directory = MBEIRDirectory(root)
    pool = directory.train_pool()
    for query in directory.queries("train", "catalog", 3):
        texts = [pool[did].text or "" for did in query.positives]
        number = int(Path(query.image or "").stem)
        assert all(len(text.split()) <= 25 for text in texts)
        assert texts[0].startswith(f"thing{number}. a1, b2, c3, d4, e5, f6.") == bool(number % 10)
        assert all(text.startswith(f"thing{number}") for text in texts if "thing" in text)


def test_same_seed_same_files_whatever_the_hash_seed(catalogue: Path, root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from elva.data.catalog import convert\n"
        f"convert(Path(sys.argv[1]), Path(sys.argv[2]), {KEYS!r}, alt_image_field='other')"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    command = [sys.executable, "-c", code, str(catalogue), str(tmp_path / "again")]
    repository = Path(__file__).resolve().parents[2]
    subprocess.run(command, check=True, env=environment, cwd=repository)
    files = [file.relative_to(root) for file in sorted(root.rglob("*")) if file.is_file()]
    assert all((root / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    convert(catalogue, tmp_path / "other", KEYS, alt_image_field="other", seed=1)
    assert images(tmp_path / "other", "test") != images(root, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "pictures/none.png"}, r"items\.jsonl:3: i2: image 'pictures/none\.png' does not exist"),
        ({"image": "items.jsonl"}, r"items\.jsonl:3: i2: .*cannot be decoded"),
        ({"image": "cut.png"}, r"items\.jsonl:3: i2: .*cannot be decoded"),
        ({"image": "../outside.png"}, r"items\.jsonl:3: i2: .*leaves the catalogue's folder"),
        ({"image": "link.png"}, r"items\.jsonl:3: i2: .*leaves the catalogue's folder"),
        ({"image": None}, r"items\.jsonl:3: i2: image is None, expected the path"),
        ({"image": "pictures/1.png"}, r"items\.jsonl:3: i2: .*is also that of .*items\.jsonl:2"),
        ({"other": "pictures/none.png"}, r"items\.jsonl:3: i2: other 'pictures/none\.png' does not exist"),
        ({"attributes": {"shape": {"a": 1}}}, r"items\.jsonl:3: i2: shape holds \{'a': 1\}"),
        ({"attributes": {"colours": [["red"]]}}, r"items\.jsonl:3: i2: colours holds \['red'\]"),
        ({"attributes": "red"}, r"items\.jsonl:3: i2: expected a JSON object"),
    ],
)
def test_a_bad_item_is_named_with_file_and_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_catalog(tmp_path / "in", 12)
    whole = (tmp_path / "in/pictures/3.png").read_bytes()
    (tmp_path / "outside.png").write_bytes(whole)
    (tmp_path / "in/cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/link.png").symlink_to(tmp_path / "outside.png")
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        convert(path, tmp_path / "out", KEYS, alt_image_field="other")
    assert {file.name for file in tmp_path.iterdir()} == {"in", "outside.png"}


def test_bad_catalogues_and_arguments(tmp_path: Path) -> None:
    path = write_catalog(tmp_path / "in", 12)
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"no item has the grain key 'color'; keys: .*colours.*shape"):
        convert(path, out, ["color"])
    with pytest.raises(DataError, match=r"no item has the alternative image field 'second'; fields: .*other"):
        convert(path, out, KEYS, alt_image_field="second")
    with pytest.raises(DataError, match="no item has the text field 'caption'"):
        convert(path, out, KEYS, text_field="caption")
    with pytest.raises(ValueError, match="split_by is 'random', expected one of combinations, items"):
        convert(path, out, KEYS, split_by="random")
    with pytest.raises(ValueError, match="grains is \\[\\], expected"):
        convert(path, out, [])
    with pytest.raises(DataError, match="none can be held out"):
        convert(path, out, ["id"])
    (tmp_path / "in/empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no items"):
        convert(tmp_path / "in/empty.jsonl", out, KEYS)
    (tmp_path / "in/broken.jsonl").write_text('{"id": 1}\n{"id"')
    with pytest.raises(DataError, match=r"broken\.jsonl:2: .*malformed JSON"):
        convert(tmp_path / "in/broken.jsonl", out, KEYS)
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        convert(path, out, KEYS)


def test_untidy_values_become_one_spelling(tmp_path: Path) -> None:
    path = write_catalog(tmp_path, 3)
    given = [["Oak-Wood", " "], ["oak_wood", True], [2.0, 1e9, 0.5, None]]
    lines = [
        json.dumps({"image": f"pictures/{n}.png", "m": value, "text": "x"}) for n, value in enumerate(given)
    ]
    path.write_text("\n".join(lines))
    catalog = read_catalog(path, ["m"])
    assert [{value for _, value in item.grains} for item in catalog.items] == [
        {"Oak Wood"},
        {"Oak Wood", "yes"},
        {"2", "1000000000", "0.5"},
    ]
    assert catalog.list_keys == {"m"}


def test_short_text() -> None:
    assert short_text("cat. a, b, c, d, e, f, g.") == "cat. a, b, c, d, e, f."
    assert short_text("cat. a, b.") == "cat. a, b."
    assert short_text(" ".join("abcdefghijklmnopqrstuvwxyz" * 2)).count(" ") == 24


OPENMOJI_KEYS = ["colours", "subgroup", "gender", "skin_tone"]


def test_part_of_openmoji(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "openmoji"
    lines = (source / "items.jsonl").read_text(encoding="utf-8").splitlines()[::12]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for line in lines:
        item = json.loads(line)
        for picture in filter(None, (item["image"], item.get("image_noto"))):
            (tmp_path / "in" / picture).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / picture).write_bytes((source / picture).read_bytes())
    convert(tmp_path / "in/items.jsonl", tmp_path / "out", OPENMOJI_KEYS, alt_image_field="image_noto")
    assert [str(problem) for problem in check(tmp_path / "out")] == []
    assert len(MBEIRDirectory(tmp_path / "out").tasks("test")) == 9


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whole_openmoji(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(shared_data / "openmoji/items.jsonl", out, OPENMOJI_KEYS, alt_image_field="image_noto")
    assert [str(problem) for problem in check(out)] == []
    summary = json.loads((out / "catalog.json").read_text())
    by_grains = summary["test"]["catalog_multigrain task0"]["by_grains"]
    assert {int(number): count["queries"] for number, count in by_grains.items()} == dict.fromkeys(
        range(2, 7), 200
    )
    assert all(count["one_grain_away"] == count["queries"] for count in by_grains.values())
