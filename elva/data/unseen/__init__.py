"""The sets that the paper evaluates on without training: from their authors' layouts to M-BEIR's.

Ids 40 to 61; every row has one instruction, since none is published. docs/unseen-sets.md lists what differs.
"""

from __future__ import annotations

from pathlib import Path

from elva.data.unseen.caption_pairs import FLICKR30K, SHAREGPT4V, URBAN1K
from elva.data.unseen.circo import CIRCO
from elva.data.unseen.fashioniq_multiturn import FASHIONIQ_MULTITURN
from elva.data.unseen.genecis import GENECIS
from elva.data.unseen.protocol import UnseenSet
from elva.data.unseen.source import Source
from elva.data.unseen.two_captions import CCNEG, SUGARCREPE
from elva.data.unseen.videos import MSRVTT, MSVD
from elva.data.unseen.visdial import VISDIAL
from elva.data.writer import MBEIRWriter
from elva.locks import lock_directory

__all__ = ["SETS", "UnseenSet", "convert_unseen", "unseen_set_of"]

_ALL = (
    FLICKR30K,
    SHAREGPT4V,
    URBAN1K,
    CIRCO,
    GENECIS,
    VISDIAL,
    FASHIONIQ_MULTITURN,
    SUGARCREPE,
    CCNEG,
    MSRVTT,
    MSVD,
)
SETS: dict[str, UnseenSet] = {each.name: each for each in _ALL}
_BY_DATASET = {dataset: each for each in _ALL for dataset in each.datasets}


def convert_unseen(name: str, source: str | Path, out: str | Path) -> None:
    """Write the set ``name`` (a key of ``SETS``) from the directory ``source`` to a new M-BEIR directory ``out``.

    Pictures are hard links where the file system allows it. The same call after a kill goes on: pictures that are there
    are kept.

    Raises:
        ValueError: an unknown name.
        DataError: a file is missing (the message says where it comes from) or a record is faulty.
        FileExistsError: ``out`` holds a data set already.
        ImportError: a set of videos, without the extra ``video``.
    """
    if name not in SETS:
        raise ValueError(f"no set {name!r}, expected one of {', '.join(SETS)}")
    chosen = SETS[name]
    if not Path(source).is_dir():
        raise NotADirectoryError(f"{source} is not a directory. {chosen.download}")
    with lock_directory(out), MBEIRWriter(out) as writer:
        chosen.convert(Source(source, chosen.download), writer)


def unseen_set_of(dataset: str) -> UnseenSet | None:
    """The set that a row of the layout belongs to; None for other data sets."""
    return _BY_DATASET.get(dataset)
