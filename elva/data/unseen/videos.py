"""Captions that ask for their video: MSR-VTT (1k-A) and MSVD. A video is a picture of eight of its frames."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from elva.data.records import DataError
from elva.data.unseen.frames import sample_frames
from elva.data.unseen.protocol import UnseenSet
from elva.data.unseen.row import Row
from elva.data.unseen.source import VIDEOS, Source, sentence
from elva.data.unseen.tiles import tile
from elva.data.writer import IMAGE_FOLDER, MBEIRWriter
from elva.progress import track

INSTRUCTION = "The pictures show moments of a video in order. Find the video that this caption describes."
COLUMNS = 4
METRICS = ("R@1", "R@5", "R@10")
MSRVTT_FILE = "MSRVTT_JSFUSION_test.csv"
MSVD_LIST, MSVD_CAPTIONS = "test_list.txt", "AllVideoDescriptions.txt"


def _write(
    source: Source, writer: MBEIRWriter, row: Row, folder: str, captions: dict[str, list[str]]
) -> None:
    files = source.files(folder, VIDEOS)
    missing = [name for name in captions if name not in files]
    if missing:
        raise DataError(
            f"{source.root / folder}: no video {missing[0]} ({len(missing)} missing). {source.advice}"
        )
    for name, texts in track(captions.items(), f"Sampling {row.dataset}", total=len(captions)):
        did = row.candidate(image=_picture(writer, row, files[name]))
        for text in texts:
            row.query([did], text=text)


def _picture(writer: MBEIRWriter, row: Row, video: Path) -> str:
    relative = f"{IMAGE_FOLDER}/{row.dataset}/{video.stem}.jpg"
    if not (writer.root / relative).is_file():
        writer.save_image(relative, tile(sample_frames(video), COLUMNS))
    return relative


def _convert_msrvtt(source: Source, writer: MBEIRWriter) -> None:
    captions: dict[str, list[str]] = defaultdict(list)
    for where, record in source.csv(MSRVTT_FILE):
        captions[sentence(record, "video_id", where)].append(sentence(record, "sentence", where))
    if not captions:
        raise DataError(f"{MSRVTT_FILE}: no line below the header")
    _write(source, writer, Row(writer, "msrvtt", 60, 0, INSTRUCTION), "videos", captions)


def _convert_msvd(source: Source, writer: MBEIRWriter) -> None:
    names = source.text(MSVD_LIST).split()
    captions: dict[str, list[str]] = {name: [] for name in names}
    for name, text in _descriptions(source):
        if name in captions:
            captions[name].append(text)
    silent = [name for name, texts in captions.items() if not texts]
    if silent or not captions:
        what = f"no description of {silent[0]}, which {MSVD_LIST} names" if silent else "no video is listed"
        raise DataError(f"{MSVD_CAPTIONS if silent else MSVD_LIST}: {what}")
    _write(source, writer, Row(writer, "msvd", 61, 0, INSTRUCTION), "YouTubeClips", captions)


def _descriptions(source: Source) -> Iterator[tuple[str, str]]:
    """(video, description) of each line; lines that begin with # are comments."""
    for line in source.text(MSVD_CAPTIONS).split("\n"):
        name, _, text = line.strip().partition(" ")
        if text.strip() and not line.startswith("#"):
            yield name, text.strip()


MSRVTT = UnseenSet(
    "msrvtt",
    ("msrvtt",),
    METRICS,
    f"MSR-VTT needs {MSRVTT_FILE} (github.com/ArrowLuo/CLIP4Clip, msrvtt_data.zip) and the videos as "
    "videos/**/video7020.mp4 (MSRVTT.zip of Frozen-in-Time).",
    _convert_msrvtt,
)
MSVD = UnseenSet(
    "msvd",
    ("msvd",),
    METRICS,
    f"MSVD needs {MSVD_CAPTIONS} and the clips in YouTubeClips/ (cs.utexas.edu/users/ml/clamp/videoDescription), and "
    f"{MSVD_LIST} (github.com/ArrowLuo/CLIP4Clip, msvd_data.zip).",
    _convert_msvd,
)
