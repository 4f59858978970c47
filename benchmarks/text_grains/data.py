"""Captions with paraphrases and one-grain negatives, and what a model is asked about them."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

Encode = Callable[[Sequence[str]], Tensor]
"""n texts -> [n, D], L2-normalised."""
PARAPHRASES = 2
TRIPLETS = 300
# val alone has 115 pictures, too few to choose by, and a pool less than half of test's.
DEV_SHARE = 4


@dataclass(frozen=True)
class Row:
    """A caption, other captions of its picture, and texts that change one grain of it: (text, kind of edit)."""

    picture: int
    caption: str
    paraphrases: tuple[str, ...]
    negatives: tuple[tuple[str, str], ...]


def read_rows(folder: Path, split: str) -> list[Row]:
    """``folder/coco_grains/{split}.jsonl``; FileNotFoundError names the file and the variable that points to it."""
    rows = []
    for record in _records(folder / "coco_grains" / f"{split}.jsonl"):
        negatives = tuple((negative["text"], negative["edit"]) for negative in record["negatives"])
        rows.append(Row(record["image_id"], record["caption"], tuple(record["paraphrases"]), negatives))
    return [row for row in rows if row.paraphrases and row.negatives]


@cache
def split_rows(folder: Path, split: str) -> list[Row]:
    """``test``, ``train``, ``dev`` (val and the held-out part of train) or ``train without dev``."""
    if split in ("test", "train"):
        return read_rows(folder, split)
    held_out = [row for row in read_rows(folder, "train") if row.picture % DEV_SHARE == 0]
    if split == "dev":
        return read_rows(folder, "val") + held_out
    return [row for row in read_rows(folder, "train") if row.picture % DEV_SHARE]


def read_triplets(folder: Path) -> list[tuple[str, str, str]]:
    """The first ``TRIPLETS`` of ``folder/snli/nli.jsonl``: anchor, entailed, contradicted."""
    records = _records(folder / "snli" / "nli.jsonl")[:TRIPLETS]
    return [(record["anchor"], record["positive"], record["negative"]) for record in records]


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: set ELVA_SHARED_DATA to the folder with coco_grains/ and snli/")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def batches(rows: Sequence[Row], steps: int, batch_size: int, seed: int) -> list[list[tuple[str, str, str]]]:
    """(paraphrase, caption, negative) of different pictures in each batch; the same for every loss."""
    draw = random.Random(seed)
    by_picture: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_picture[row.picture].append(row)
    found, order = [], []
    for _ in range(steps):
        if len(order) < batch_size:
            order = sorted(by_picture)
            draw.shuffle(order)
        chosen, order = order[:batch_size], order[batch_size:]
        drawn = [draw.choice(by_picture[picture]) for picture in chosen]
        found.append(
            [(draw.choice(row.paraphrases), row.caption, draw.choice(row.negatives)[0]) for row in drawn]
        )
    return found


def masked(text: str, other: str) -> str | None:
    """``text`` without the words that ``other`` does not share; None where nothing or everything would go."""
    ours, theirs = re.findall(r"\S+", text), re.findall(r"\S+", other.lower())
    matcher = SequenceMatcher(None, [word.lower() for word in ours], theirs, autojunk=False)
    kept = [word for block in matcher.get_matching_blocks() for word in ours[block.a : block.a + block.size]]
    return " ".join(kept) if 0 < len(kept) < len(ours) else None


def retrieval(encode: Encode, rows: Sequence[Row]) -> dict[str, Any]:
    """Shares in [0, 1], and what they are means of, a query each: ``hits``, ``right``.

    ``r1``, ``r5``: a paraphrase finds a caption of its picture among all captions and all negatives; ties count against
    it, and a candidate that is the paraphrase itself is left out. ``r1_apart``: R@1 where the paraphrase's own edits
    are left out too, which otherwise win most often. ``accuracy``: it is nearer to its caption than to that caption's
    negatives; by kind of edit in ``edits``. ``pictures``: the picture of each query.
    """
    queries = [(place, text) for place, row in enumerate(rows) for text in row.paraphrases[:PARAPHRASES]]
    negatives = [(place, text, edit) for place, row in enumerate(rows) for text, edit in row.negatives]
    captions = encode([row.caption for row in rows])
    wrong = encode([text for _, text, _ in negatives])
    asked = encode([text for _, text in queries])
    candidates = [row.caption for row in rows] + [text for _, text, _ in negatives]
    pictures = torch.tensor([row.picture for row in rows] + [-1] * len(negatives))
    same = torch.tensor([[text == other for other in candidates] for _, text in queries])
    right_answers = torch.tensor([rows[place].picture for place, _ in queries])[:, None] == pictures
    scores = asked @ torch.cat([captions, wrong]).T
    ranks = first_ranks(scores, right_answers, same)
    sources = [row.caption for row in rows] + [rows[place].caption for place, _, _ in negatives]
    from_query = torch.tensor([[text == source for source in sources] for _, text in queries])
    apart = first_ranks(scores, right_answers, same | from_query)
    own: dict[int, list[int]] = defaultdict(list)
    for index, (place, _, _) in enumerate(negatives):
        own[place].append(index)
    right: list[float] = []
    edits: dict[str, list[float]] = defaultdict(list)
    for row, (place, _) in enumerate(queries):
        won = (asked[row] @ captions[place] > wrong[own[place]] @ asked[row]).float().tolist()
        right.append(fmean(won))
        for index, value in zip(own[place], won, strict=True):
            edits[negatives[index][2]].append(value)
    return {
        "r1": float((ranks <= 1).float().mean()),
        "r5": float((ranks <= 5).float().mean()),
        "r1_apart": float((apart <= 1).float().mean()),
        "accuracy": fmean(right),
        "edits": {edit: fmean(values) for edit, values in sorted(edits.items())},
        "hits": (ranks <= 1).int().tolist(),
        "right": right,
        "apart": (apart <= 1).int().tolist(),
        "pictures": [rows[place].picture for place, _ in queries],
    }


def first_ranks(scores: Tensor, right: Tensor, left_out: Tensor) -> Tensor:
    """[Q] rank of the best right answer: 1 + wrong ones that score at least as much. All arguments [Q, M]."""
    scores = scores.masked_fill(left_out, -torch.inf)
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return 1 + ((scores >= best) & ~right & ~left_out).sum(1)


def grain_distance(encode: Encode, rows: Sequence[Row]) -> float:
    """Mean of 1 - cosine of a text and itself without the edited words, one edit a caption.

    Words of the caption where the edit replaces some, of the negative where it adds some; swaps mask nothing.
    """
    pairs = []
    for row in rows:
        for text, edit in row.negatives[:1]:
            whole, other = (text, row.caption) if edit.startswith("add") else (row.caption, text)
            without = masked(whole, other)
            if without is not None and not edit.startswith("swap"):
                pairs.append((whole, without))
    whole, without = (encode(list(texts)) for texts in zip(*pairs, strict=True))
    return float((1 - (whole * without).sum(1)).mean())


def entailment(encode: Encode, triplets: Sequence[tuple[str, str, str]]) -> float:
    """Share of (anchor, entailed, contradicted) where the entailed sentence is the nearer one."""
    anchor, positive, negative = (encode(list(texts)) for texts in zip(*triplets, strict=True))
    return float(((anchor * positive).sum(1) > (anchor * negative).sum(1)).float().mean())
