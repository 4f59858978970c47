import pytest

from elva.data.captions import FILE, CaptionedPicture, read_captions, write_captions
from elva.data.records import DataError

PICTURES = [
    CaptionedPicture("mbeir_images/a.png", ("eine Tür", "a door")),
    CaptionedPicture("mbeir_images/b.png", ("x",)),
]


def test_round_trip(tmp_path):
    assert list(read_captions(tmp_path)) == []
    write_captions(tmp_path, PICTURES)
    assert list(read_captions(tmp_path)) == PICTURES


BAD_LINES = [
    "{",
    "[]",
    "3",
    '{"img_path": "a"}',
    '{"img_path": 1, "captions": ["a"]}',
    '{"img_path": "a", "captions": []}',
    '{"img_path": "a", "captions": "abc"}',
    '{"img_path": "a", "captions": ["a", null]}',
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, line):
    write_captions(tmp_path, PICTURES)
    with (tmp_path / FILE).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"captions/train\.jsonl:3: -: expected"):
        list(read_captions(tmp_path))
