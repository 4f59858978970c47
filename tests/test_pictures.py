"""The one way in for pictures: formats, limits, and the grey of deep samples."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elva.pictures import MAX_PIXELS, PictureError, open_picture, picture_suffixes, read_rgb, to_rgb

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = GREY.astype(np.uint16) * 257
TWELVE = GREY.astype(np.uint16) * 16 + GREY // 16  # 12 bits: 255 becomes 4095


def grey_of(image: Image.Image) -> np.ndarray:
    channels = np.asarray(image)
    assert channels.shape == (16, 16, 3) and (channels == channels[..., :1]).all()
    return channels[..., 0]


def save_pgm(path: Path) -> None:
    path.write_bytes(b"P5\n16 16\n65535\n" + DEEP.astype(">u2").tobytes())


DEEP_FILES: dict[str, Callable[[Path], object]] = {
    "grey.png": lambda path: Image.fromarray(DEEP).save(path),
    "grey.tif": lambda path: Image.fromarray(DEEP).save(path),
    "grey.pgm": save_pgm,
    "inverted.tif": lambda path: Image.fromarray(65535 - DEEP).save(path, tiffinfo={262: 0}),
}


@pytest.mark.parametrize("name", DEEP_FILES)
def test_a6_16_bit_files_are_scaled(tmp_path: Path, name: str) -> None:
    DEEP_FILES[name](tmp_path / name)
    assert (grey_of(read_rgb(tmp_path / name)) == GREY).all()


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_a6_16_bit_pictures_in_memory_are_scaled(order: str) -> None:
    image = Image.fromarray(DEEP.astype(order))
    assert image.mode in ("I;16", "I;16B")
    assert (grey_of(to_rgb(image)) == GREY).all()


def test_a6_12_bit_samples_have_their_own_white(tmp_path: Path) -> None:
    """Pillow reads but does not write them: a TIFF of one strip, by hand."""
    flat = TWELVE.reshape(-1, 2)
    packed = np.stack(
        [flat[:, 0] >> 4, (flat[:, 0] & 15) << 4 | flat[:, 1] >> 8, flat[:, 1] & 255], axis=1
    ).astype(np.uint8)
    data = packed.tobytes()
    tags = [
        (256, 16),
        (257, 16),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 16),
        (279, len(data)),
    ]
    entries = b"".join(
        tag.to_bytes(2, "little")
        + (4).to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, value in tags
    )
    head = b"II*\0" + (8 + len(data)).to_bytes(4, "little")
    (tmp_path / "12.tif").write_bytes(
        head + data + len(tags).to_bytes(2, "little") + entries + (0).to_bytes(4, "little")
    )
    assert (grey_of(read_rgb(tmp_path / "12.tif")) == GREY).all()


def test_a6_the_transparent_sample_of_a_16_bit_png_becomes_white(tmp_path: Path) -> None:
    Image.fromarray(DEEP).save(tmp_path / "a.png", transparency=257 * 100)
    expected = np.where(GREY == 100, 255, GREY)
    assert (grey_of(read_rgb(tmp_path / "a.png")) == expected).all()


@pytest.mark.parametrize(("dtype", "kind"), [(np.int32, "32-bit"), (np.float32, "float")])
def test_a6_samples_without_a_known_white_are_refused(tmp_path: Path, dtype: type, kind: str) -> None:
    image = Image.fromarray(DEEP.astype(dtype))
    image.save(tmp_path / "a.tif")
    for read in (lambda: to_rgb(image), lambda: read_rgb(tmp_path / "a.tif")):
        with pytest.raises(PictureError, match=rf"^{kind} samples \(mode [IF]\) say not what is white"):
            read()


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    for image in (clear, clear.convert("LA"), clear.convert("RGBa"), clear.convert("LA").convert("La")):
        assert to_rgb(image).getpixel((1, 1)) == (255, 255, 255)


def test_a_broken_exif_block_turns_nothing(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\xff\xff\xff\x7f"
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg").size == (6, 4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif", "ppm"])
def test_b21_the_usual_formats_are_read(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / f"a.{suffix}")
    assert read_rgb(tmp_path / f"a.{suffix}").size == (8, 6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript is not opened"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "PostScript is not opened"),
        (b"%PDF-1.7\n", "PDF is not opened"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG is not opened"),
        (b"", "no picture that can be identified"),
        (b"P6\n-3 9\n255\n", ""),
    ],
)
def test_b21_other_content_is_refused_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PictureError, match=f"^{reason}"):
        read_rgb(tmp_path / "a.png")


def test_b21_formats_that_only_pillow_reads_are_refused(tmp_path: Path) -> None:
    for suffix in ("ico", "pcx", "tga", "eps", "sgi"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"a.{suffix}")
        with pytest.raises(PictureError, match="expected one of PNG, JPEG, WEBP"):
            read_rgb(tmp_path / f"a.{suffix}")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_b21_sizes_are_limited_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was decoded"))
    for size, shown in (
        ((9460, 9459), "picture of 9460 × 9459 pixels refused: "),
        ((20_000, 20_000), "refused: "),
    ):
        Image.new("1", size).save(tmp_path / "a.png")
        with pytest.raises(PictureError, match=f"^{shown}expected at most {MAX_PIXELS} pixels"):
            read_rgb(tmp_path / "a.png")
    Image.new("1", (402, 2)).save(tmp_path / "a.png")
    with pytest.raises(
        PictureError, match=r"^picture of 402 × 2 pixels refused: expected sides of at most 200 : 1"
    ):
        read_rgb(tmp_path / "a.png")


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, Path("/dev/zero")):
        with pytest.raises(PictureError, match=re.escape("not a regular file")), open_picture(path):
            pass
    with pytest.raises(PictureError, match="No such file"):
        read_rgb(tmp_path / "none.png")


def test_a14_suffixes() -> None:
    assert {".jpg", ".jfif", ".jpe", ".jp2", ".avif", ".heic", ".svg", ".tif"} <= picture_suffixes()
    assert not {"", ".txt", ".json"} & picture_suffixes()
