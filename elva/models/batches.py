"""Batches: dicts of left-padded tensors that a Qwen-VL forward takes, one picture at most per row.

Keys: ``input_ids``, ``attention_mask``, ``mm_token_type_ids`` (0 text, 1 image), each [n, L] int64; and where
any row has a picture ``image_grid_thw`` [images, 3] int64 and either ``pixel_values`` [total patches, patch dim]
float32 or ``image_features`` [total image tokens, H · levels] of a frozen tower (``elva.models.vision``), in row order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Batch = dict[str, Tensor]

ROW_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids")
PICTURE_KEYS = ("pixel_values", "image_features")


def rope_positions(batch: Batch, merge_size: int) -> Tensor:
    """M-RoPE positions [3, n, L] int64 (time, height, width), as all Qwen-VL models from 2 to 3 number them.

    A picture of h × w merged patches starting at position p takes (p, p + row, p + column); the text after it
    goes on at p + max(h, w). Computed without a loop over rows, so that no position waits for the GPU.
    ``merge_size`` is the vision tower's spatial merge.
    """
    mask = batch["attention_mask"].long()
    text = (mask.cumsum(-1) - 1).clamp_min(0)
    if "image_grid_thw" not in batch:
        return text.expand(3, *text.shape)
    image = batch["mm_token_type_ids"] == 1
    has_image = image.any(-1)
    grid_row = (has_image.long().cumsum(0) - 1).clamp_min(0)
    grid = batch["image_grid_thw"][grid_row] // merge_size
    height, width = grid[:, 1:2], grid[:, 2:3]
    patch = (image.long().cumsum(-1) - 1).clamp_min(0)
    start = torch.where(image, text - patch, 0).amax(-1, keepdim=True)
    after = (image.long().cumsum(-1) > 0) & ~image
    shifted = torch.where(after, text - height * width + torch.maximum(height, width), text)
    offsets = torch.stack([torch.zeros_like(patch), patch // width, patch % width])
    return torch.where(image, start + offsets, shifted)


def append(
    batch: Batch, completions: Sequence[Sequence[int]] | Tensor, pad_id: int, ret_id: int | None = None
) -> tuple[Batch, Tensor]:
    """Prompt + completion of every row, left-padded again.

    ``completions``: n lists of token ids of any length, or an int tensor [n, T] without padding. With
    ``ret_id``, that token is added to rows that do not end in it. Returns the new batch and a bool mask [n,
    L'] that is True on the tokens given as completions (not on an added ``ret_id``). Pictures are shared
    with ``batch``.
    """
    rows = completions.tolist() if isinstance(completions, Tensor) else [list(row) for row in completions]
    n, device = batch["input_ids"].shape[0], batch["input_ids"].device
    if len(rows) != n:
        raise ValueError(
            f"completions: {len(rows)} given, expected one for each of the {n} rows of the batch"
        )
    given = [len(row) for row in rows]
    if ret_id is not None:
        rows = [row if row and row[-1] == ret_id else [*row, ret_id] for row in rows]
    width = max((len(row) for row in rows), default=0)
    tail = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    steps = torch.arange(width, device=device)
    tail_mask = steps < lengths[:, None]
    tail_given = steps < torch.tensor(given, device=device)[:, None]
    zeros = torch.zeros_like(tail_mask, dtype=torch.long)
    columns = {
        "input_ids": tail.reshape(n, width).to(device),
        "attention_mask": tail_mask.long(),
        "mm_token_type_ids": zeros,
    }
    joined = {key: torch.cat([batch[key], columns[key].to(batch[key].dtype)], dim=1) for key in ROW_KEYS}
    given_mask = torch.cat([torch.zeros_like(batch["input_ids"], dtype=torch.bool), tail_given], dim=1)
    # Rotating a row to the right moves the padding of its completion in front of its prompt.
    total = joined["input_ids"].shape[1]
    source = (torch.arange(total, device=device) - (width - lengths)[:, None]) % max(total, 1)
    longest = int(joined["attention_mask"].sum(-1).max()) if n else 0
    keep = slice(total - longest, total)
    padded = {key: value.gather(1, source)[:, keep] for key, value in joined.items()}
    images = {key: value for key, value in batch.items() if key not in ROW_KEYS}
    return {**padded, **images}, given_mask.gather(1, source)[:, keep]


def _with_images(batch: Batch, rows: Tensor) -> Batch:
    """The rows of ``batch`` numbered in ``rows`` (any order, repeats allowed) with their pictures."""
    taken = {key: batch[key][rows] for key in ROW_KEYS}
    if "image_grid_thw" not in batch:
        return taken
    has_image = (batch["mm_token_type_ids"] == 1).any(-1)
    image_of_row = has_image.long().cumsum(0) - 1
    images = image_of_row[rows][has_image[rows]]
    if images.numel() == 0:
        return taken
    grid = batch["image_grid_thw"]
    taken["image_grid_thw"] = grid[images]
    for key in PICTURE_KEYS:
        if key in batch:
            patches = grid.prod(-1)
            # the tower merges the same number of patches into each token
            parts = batch[key].split((patches * batch[key].shape[0] // patches.sum()).tolist())
            taken[key] = torch.cat([parts[image] for image in images.tolist()])
    return taken


def repeat(batch: Batch, times: int) -> Batch:
    """Every row ``times`` times, copies side by side (item-major), with its picture."""
    if times < 1:
        raise ValueError(f"times: {times} given, expected at least 1")
    rows = torch.arange(batch["input_ids"].shape[0], device=batch["input_ids"].device)
    return batch if times == 1 else _with_images(batch, rows.repeat_interleave(times))


def select(batch: Batch, rows: Sequence[int] | Tensor) -> Batch:
    """The rows numbered in ``rows`` (int64, any order) with their pictures, without the padding that all share."""
    taken = _with_images(batch, torch.as_tensor(rows, dtype=torch.long, device=batch["input_ids"].device))
    longest = int(taken["attention_mask"].sum(-1).max()) if taken["input_ids"].shape[0] else 0
    first = taken["input_ids"].shape[1] - longest
    return taken | {key: taken[key][:, first:] for key in ROW_KEYS}
