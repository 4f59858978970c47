"""A model's weights as transformers loads them, and an error where it would put random ones in their place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch

from elva.models.files import file_of, read_object
from elva.models.weight_files import check_files, listed

REPORT = "LOAD REPORT"


def load_model(model_class: Any, name: str, *, label: str | None = None, **options: Any) -> Any:
    """``model_class.from_pretrained(name, **options)``, with every weight from the files and none left over.

    A head that is tied to the embeddings need not be there. No code of the checkpoint is run. ``label`` names the
    checkpoint in errors (``name`` by default).

    Raises:
        ValueError: weights that are missing, left over, there twice, of another shape, no floating-point numbers or
            not finite; quantized ones that transformers cannot use here.
    """
    label = label or name
    quantized = _is_quantized(name)
    check_files(name, label, packed=quantized)
    options = {"trust_remote_code": False, **options}
    try:
        with _without_report():
            model, found = model_class.from_pretrained(
                name, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except Exception as error:  # what a quantizer raises for settings that it cannot use is of many kinds
        if not quantized:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{label}/config.json: transformers cannot use its quantization_config: {reason}"
        ) from error
    mismatched = [
        f"{key} {list(given)}, expected {list(expected)}"
        for key, given, expected in sorted(found["mismatched_keys"])
    ]
    subject = f"{label}: the weights do not fit {type(model).__name__}"
    require_fit(subject, found["missing_keys"], found["unexpected_keys"], mismatched)
    _require_unpacked(model, label)
    # a quantizer's own kinds of tensors have no minimum
    plain = ((key, weight) for key, weight in model.named_parameters() if type(weight.data) is torch.Tensor)
    require_finite_weights(label, plain)
    return model


def require_fit(
    subject: str, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str] = ()
) -> None:
    """ValueError that counts and lists weights that a model misses, does not know, or has in another shape.

    ``subject`` says what does not fit what.
    """
    missing, unexpected, mismatched = sorted(missing), sorted(unexpected), list(mismatched)
    faults = [
        f"{len(names)} {what} ({listed(names)})"
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


def require_finite_weights(label: str, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """ValueError for weights with NaN or infinity in them: no answer would show those of a head or a tower."""
    wrong = [key for key, weight in weights if weight.is_floating_point() and not _is_finite(weight.detach())]
    if wrong:
        raise ValueError(
            f"{label}: {len(wrong)} weights hold NaN or infinity ({listed(wrong)}); they are damaged, or dtype is too "
            "narrow for them"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    if not weight.numel():
        return True
    wide = weight.float() if weight.dtype.itemsize == 1 else weight  # float8 has no minimum
    # NaN is the minimum and maximum of whatever holds it; no mask of the weight's size is made
    return bool(torch.stack(torch.aminmax(wide)).isfinite().all())


def _is_quantized(name: str) -> bool:
    config = file_of(name, "config.json")
    return config is not None and bool(read_object(config).get("quantization_config"))


def _require_unpacked(model: Any, label: str) -> None:
    """torch's own layers compute with a weight as it is: what is packed belongs in a quantizer's layers."""
    packed = [
        (f"{path}.{key}", weight.dtype)
        for path, layer in model.named_modules()
        if type(layer).__module__.startswith("torch.nn.")
        for key, weight in layer.named_parameters(recurse=False)
        if not weight.is_floating_point() or weight.dtype.itemsize == 1
    ]
    if packed:
        raise ValueError(
            f"{label}: {len(packed)} weights are packed ({listed(f'{key} {dtype}' for key, dtype in packed)}) and its "
            "quantization_config unpacks none of them; expected weights of 16 bits or more"
        )


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
