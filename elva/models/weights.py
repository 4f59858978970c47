"""A model's weights as transformers loads them, and an error where it would put random ones in their place."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from elva.models.files import file_of, read_object, weight_files

SHOWN = 3
REPORT = "LOAD REPORT"


def load_model(model_class: Any, name: str, *, label: str | None = None, **options: Any) -> Any:
    """``model_class.from_pretrained(name, **options)``, with every weight from the files and none left over.

    A head that is tied to the embeddings need not be there. No code of the checkpoint is run. ``label`` names the
    checkpoint in errors (``name`` by default).

    Raises:
        ValueError: weights that are missing, left over, of another shape or no floating-point numbers.
    """
    label = label or name
    _require_floating(name, label)
    options = {"trust_remote_code": False, **options}
    try:
        with _without_report():
            model, found = model_class.from_pretrained(
                name, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except pickle.UnpicklingError as error:
        raise pickled(label) from error
    mismatched = [
        f"{key} {list(given)}, expected {list(expected)}"
        for key, given, expected in sorted(found["mismatched_keys"])
    ]
    subject = f"{label}: the weights do not fit {type(model).__name__}"
    require_fit(subject, found["missing_keys"], found["unexpected_keys"], mismatched)
    return model


def require_fit(
    subject: str, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str] = ()
) -> None:
    """ValueError that counts and lists weights that a model misses, does not know, or has in another shape.

    ``subject`` says what does not fit what.
    """
    missing, unexpected, mismatched = sorted(missing), sorted(unexpected), list(mismatched)
    faults = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for names, what in (
            (missing, "of its layers have no weights in the file"),
            (unexpected, "weights have no layer"),
            (mismatched, "weights have another shape"),
        )
        if names
    ]
    if not faults:
        return
    prefix = _prefix(missing, unexpected)
    advice = f"; names begin with {prefix!r}: was a wrapper saved? Remove the prefix" if prefix else ""
    raise ValueError(f"{subject}: {', '.join(faults)}{advice}")


def require_floating(name: str, dtypes: Iterable[tuple[str, Any]]) -> None:
    """ValueError for a weight whose dtype is none of floating point: it was cast, or is no weight."""
    wrong = [f"{key} {dtype}" for key, dtype in dtypes if not _is_floating(dtype)]
    if wrong:
        more = ", …" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{name}: {len(wrong)} weights are no floating-point numbers ({', '.join(wrong[:SHOWN])}{more})"
        )


def _require_floating(name: str, label: str) -> None:
    config = file_of(name, "config.json")
    if config is not None and read_object(config).get("quantization_config") is not None:
        return  # packed in integers; transformers checks what it unpacks
    for file in weight_files(name):
        require_floating(label, _dtypes(file, label))


def _dtypes(file: Path, label: str) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as opened:
                yield from ((key, opened.get_slice(key).get_dtype()) for key in opened.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise damaged(file, error) from error
        return
    try:
        tensors = torch.load(file, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise pickled(label) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise pickled(label)
    yield from ((key, tensor.dtype) for key, tensor in tensors.items())


def damaged(file: Path | str, error: Exception) -> ValueError:
    """The error for a file of weights that safetensors cannot read."""
    return ValueError(f"{file}: the file of weights is damaged or cut off: {error}")


def pickled(label: str) -> ValueError:
    """The error for a pickle that is no dictionary of tensors; nothing else in it is unpickled."""
    return ValueError(
        f"{label}: its .bin file holds more than tensors, or is damaged, and is not read; save the weights as "
        ".safetensors"
    )


def _is_floating(dtype: Any) -> bool:
    """Of torch's dtypes and of safetensors' names for them (F32, BF16, F8_E4M3 …)."""
    if isinstance(dtype, torch.dtype):
        return dtype.is_floating_point
    return str(dtype).startswith(("F", "BF"))


def _prefix(missing: list[str], unexpected: list[str]) -> str:
    """What stands before all unexpected names, if the missing ones are the same without it; "" otherwise."""
    common = _common(unexpected).removesuffix(_common(missing))
    tails = {_tail(name) for name in missing}
    known = sum(_tail(name.removeprefix(common)) in tails for name in unexpected)
    shared = any(name.startswith(common) for name in missing)
    return common if 2 * known > len(unexpected) > 1 and not shared else ""


def _common(names: list[str]) -> str:
    """What all begin with, up to a dot."""
    first, last = min(names, default=""), max(names, default="")
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return first[: first.rfind(".", 0, alike) + 1]


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers' table of missing and unexpected weights, which may have hundreds of lines, stays away."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return REPORT not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
