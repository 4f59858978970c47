from __future__ import annotations

from pathlib import Path

import pytest

from elva.data import DataError
from elva.data.nli import Triplet, read_triplets, write_triplets

TRIPLETS = [Triplet('A dog, "Rex", runs.', "Ein Hund läuft.", "A dog\u2028sleeps."), Triplet("a", "b", "c")]


def test_json_lines_round_trip(tmp_path: Path) -> None:
    write_triplets(tmp_path / "nli.jsonl", TRIPLETS)
    assert read_triplets(tmp_path / "nli.jsonl") == TRIPLETS


def test_simcse_csv_with_quotes_and_line_breaks(tmp_path: Path) -> None:
    file = tmp_path / "nli_for_simcse.csv"
    file.write_text(
        'sent0,sent1,hard_neg\n"A dog, ""Rex"", runs.","two\nlines",no\na,b,c\n', encoding="utf-8"
    )
    assert read_triplets(file) == [Triplet('A dog, "Rex", runs.', "two\nlines", "no"), Triplet("a", "b", "c")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"anchor":"a","positive":"b","negative":"c"}\n{"anchor"', ":2: -: malformed JSON"),
        ("a.jsonl", b'{"anchor":"a","positive":"b"}\n', ":1: -: negative is None, expected a text"),
        ("a.jsonl", b'{"anchor":"a","positive":" ","negative":"c"}\n', ":1: -: positive is ' '"),
        ("a.jsonl", b'{"anchor":1,"positive":"b","negative":"c"}\n', ":1: -: anchor is 1"),
        ("a.jsonl", b"[]\n", ":1: -: the line is a JSON list"),
        ("a.jsonl", b"\xff\n", ":1: -: malformed JSON"),
        ("a.jsonl", b"", ": no rows"),
        (
            "a.csv",
            "sent0,sent1,hard_neg\n".encode("utf-16"),
            ": cannot be read: the file is UTF-16 text, expected",
        ),
        ("a.csv.gz", b"\x1f\x8b\x08\x00", ": cannot be read: the file is gzip, expected UTF-8 text"),
        ("a.csv", b"", ":1: -: header is None"),
        ("a.csv", b"a,b,c\n1,2,3\n", ":1: -: header is ['a', 'b', 'c'], expected sent0,sent1,hard_neg"),
        ("a.csv", b"sent0,sent1,hard_neg\n", ": no rows"),
        ("a.csv", b"sent0,sent1,hard_neg\na,b,c\na,b\n", ":3: -: hard_neg is None"),
        ("a.csv", b"sent0,sent1,hard_neg\na,b,c,d\n", ":2: -: 4 columns, expected 3"),
        ("a.csv", b"sent0,sent1,hard_neg\n\xff,b,c\n", "malformed csv"),
        ("a.csv", b"sent0,sent1,hard_neg\na,b,c\n" + b"x" * 200_000 + b",b,c\n", ":3: -: malformed csv"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_triplets(file)
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.csv"):
        with pytest.raises(DataError, match=f"{name}: cannot be read: No such file"):
            read_triplets(tmp_path / name)


def test_snli(shared_data: Path) -> None:
    triplets = read_triplets(shared_data / "snli" / "nli.jsonl")
    assert len(triplets) == 6458
    assert triplets[0].positive == "Two woman are holding packages."
