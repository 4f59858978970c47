"""Frames of a video, evenly spaced, through PyAV (the extra ``video``)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from elva.data.records import DataError

COUNT = 8


def sample_frames(path: Path, count: int = COUNT) -> list[Image.Image]:
    """The middle frames of ``count`` equal parts, in RGB; fewer where the video has fewer.

    Raises ImportError without PyAV, DataError for a file without readable frames.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("videos are read through PyAV: pip install 'elva[video]'") from error
    try:
        total = _number_of_frames(path)
        wanted = {(2 * part + 1) * total // (2 * count) for part in range(count)}
        with av.open(str(path)) as container:
            frames = enumerate(container.decode(video=0))
            found = [frame.to_image() for number, frame in frames if number in wanted]
    except (av.FFmpegError, IndexError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a video: {error}") from error
    if not found:
        raise DataError(f"{path}: no frame could be read")
    return found


def _number_of_frames(path: Path) -> int:
    """By decoding: what a header or the packets say is often wrong in the collections of clips this is for."""
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))
