"""Every picture enters here: which files are opened, how large they may be, and what of them is seen.

The encoder, the catalogue's reader, `elva data check` and all others call these functions, so that what one of them
takes the others take too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# An allow-list: Pillow knows some fifty formats, PostScript (which starts Ghostscript) among them.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
MAX_PIXELS = 89_478_485
"""Where Pillow begins to warn of decompression bombs: a quarter of a GiB in RGB, far above what an encoder sees."""
MAX_RATIO = 200
"""The longer side by the shorter one: above it Qwen-VL's image processors refuse a picture."""

ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
WHITE_IS_ZERO = 0
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_REFUSED = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<!DOCTYPE svg", "SVG"),
    (b"<?xml", "SVG or other XML"),
)
# Pillow's writers and readers of these come as packages of their own, if at all.
_SUFFIXES = {
    ".arw",
    ".avif",
    ".cr2",
    ".dng",
    ".exr",
    ".hdr",
    ".heic",
    ".heif",
    ".hif",
    ".jfif",
    ".jp2",
    ".jpe",
    ".jxl",
}
_SUFFIXES |= {".nef", ".psb", ".svg", ".svgz"}


class PictureError(ValueError):
    """A picture that cannot be used; the message says why, and the caller adds which one it is."""


@contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """The decoded picture of a file, in its own mode.

    Raises PictureError for what is no regular file, of none of ``FORMATS``, above ``MAX_PIXELS`` or ``MAX_RATIO``
    (before anything is decoded), or broken.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise PictureError("not a regular file")
        picture = Image.open(path, formats=_formats())
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(_reason(path, error)) from error
    with picture:
        check_size(picture)
        try:
            picture.load()
        except Exception as error:  # decoders raise nearly every type on broken files
            raise PictureError(_described(error)) from error
        check_size(picture)
        yield picture


def read_rgb(path: str | Path) -> Image.Image:
    """The picture of a file as the encoder sees it (``to_rgb``); raises PictureError as ``open_picture`` does."""
    with open_picture(path) as picture:
        return to_rgb(picture)


def check_size(image: Image.Image) -> None:
    """PictureError for a picture without pixels, or above ``MAX_PIXELS`` or ``MAX_RATIO``."""
    width, height = image.size
    shown = f"picture of {width} × {height} pixels refused"
    if min(width, height) < 1:
        raise PictureError(f"{shown}: expected at least one")
    if width * height > MAX_PIXELS:
        raise PictureError(f"{shown}: expected at most {MAX_PIXELS} pixels")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise PictureError(f"{shown}: expected sides of at most {MAX_RATIO} : 1")


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB; transparency becomes white (drawings with black outlines would vanish on black).

    16-bit samples are scaled. PictureError for 32-bit and float samples, whose white is not known.
    """
    white, inverted = _white(image)  # before the turn, which forgets the file's format
    upright = _upright(image)
    try:
        if white is not None:
            upright = _scaled(upright, white, inverted)
        if upright.mode in ALPHA_MODES or "transparency" in upright.info:
            rgba = (upright.convert("LA") if upright.mode == "La" else upright).convert("RGBA")
            canvas = Image.new("RGBA", rgba.size, "white")
            canvas.alpha_composite(rgba)
            upright = canvas
        return upright.convert("RGB")
    except (ValueError, OSError) as error:
        raise PictureError(_described(error)) from error


@cache
def picture_suffixes() -> frozenset[str]:
    """Lower-case suffixes of picture files (".png"): those that Pillow registers, and common ones it does not read."""
    return frozenset(Image.registered_extensions()) | _SUFFIXES


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF: from Pillow 11.3


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        with open(path, "rb") as file:
            head = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
        kind = next((kind for mark, kind in _REFUSED if head.startswith(mark)), None)
        given = "no picture that can be identified" if kind is None else f"{kind} is not opened"
        return f"{given}, expected one of {', '.join(_formats())}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"refused: expected at most {MAX_PIXELS} pixels: {error}"
    return _described(error)


def _described(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _white(image: Image.Image) -> tuple[int | None, bool]:
    """The sample that is white where samples have more than eight bits, else None; and whether black is the largest."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))
        bits = bits[0] if isinstance(bits, tuple) else bits
        return 2**bits - 1, tags.get(_PHOTOMETRIC) == WHITE_IS_ZERO
    # Pillow before 11 reads 16-bit PNG, and every one 16-bit PPM, as "I"
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 2**16 - 1, False
    if image.mode in ("I", "F"):
        kind = "32-bit" if image.mode == "I" else "float"
        raise PictureError(
            f"{kind} samples (mode {image.mode}) say not what is white; save it with 8 or 16 bits"
        )
    return None, False


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block turns nothing, and the pixels are whole
        return image


def _scaled(image: Image.Image, white: int, inverted: bool) -> Image.Image:
    """8-bit grey of samples from 0 to ``white``; with alpha where one sample stands for transparency."""
    samples = np.asarray(image.convert("I"))
    shares = samples.clip(0, white) / white
    grey = Image.fromarray(np.rint((1 - shares if inverted else shares) * 255).astype(np.uint8))
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    alpha = Image.fromarray(np.where(samples == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))
