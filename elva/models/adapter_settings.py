"""An adapter's settings as PEFT takes them, without anything in them that could run for ever."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elva.models.files import file_of, read_object

ADAPTER_CONFIG = "adapter_config.json"
SECONDS = 5.0
"""What all expressions of an adapter may take on all names of a model's layers; they need milliseconds."""

ALL_LINEAR = "all-linear"
NAMES = re.compile(r"[\w.\-]+")
# In a process of its own, because nothing else stops an expression that is trying.
MATCHER = """
import json, re, sys
given = json.load(sys.stdin)
find = {"whole": re.fullmatch, "end": lambda e, name: re.match(rf"(.*\\.)?({e})$", name)}[given["rule"]]
json.dump([[name for name in given["names"] if find(e, name)] for e in given["expressions"]], sys.stdout)
"""


def adapter_settings(name: str, model: Any) -> Any:
    """The ``PeftConfig`` of the adapter in ``name``, for use without training.

    Regular expressions are matched against the names of ``model``'s layers here, within a limit of time, and replaced
    by the names that they found: PEFT, which would match them without a limit, gets literal names.

    Raises:
        ValueError: settings that PEFT does not know, an expression that is none or that does not come to an end.
    """
    from peft import PeftConfig

    file = file_of(name, ADAPTER_CONFIG)
    assert file is not None
    read_object(file)  # PEFT's own error for what is no JSON object does not name the file
    try:
        settings: Any = PeftConfig.from_pretrained(str(file.parent))
    except (
        Exception
    ) as error:  # PEFT checks little: what a wrong value raises depends on where it is first used
        raise ValueError(f"{file}: PEFT cannot use it: {type(error).__name__}: {error}") from error
    settings.inference_mode = True
    _require_scales(settings, file)
    _make_literal(settings, [key for key, _ in model.named_modules()], file)
    return settings


def _require_scales(settings: Any, file: Path) -> None:
    """PEFT computes with whatever stands here, and takes true for 1."""
    for name, rank in _with_pattern(settings, "r", "rank_pattern"):
        if type(rank) is not int or rank < 1:
            raise ValueError(f"{file}: {name} is {rank!r}, expected a whole number above 0")
    for name, alpha in _with_pattern(settings, "lora_alpha", "alpha_pattern"):
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise ValueError(f"{file}: {name} is {alpha!r}, expected a finite number")


def _with_pattern(settings: Any, key: str, pattern: str) -> Iterator[tuple[str, Any]]:
    """A number of the adapter and those of single layers, by name; of another kind of adapter there are none."""
    if (value := getattr(settings, key, None)) is not None:
        yield key, value
    values = getattr(settings, pattern, None)
    if isinstance(values, dict):
        yield from ((f"{pattern}[{name!r}]", value) for name, value in values.items())


def _make_literal(settings: Any, names: list[str], file: Path) -> None:
    for key in ("modules_to_save", "layers_pattern"):
        _require_names(key, getattr(settings, key, None), file)
    for key in ("target_modules", "exclude_modules"):
        expression = getattr(settings, key, None)
        if isinstance(expression, str) and expression and expression != ALL_LINEAR:
            (found,) = _match(key, "whole", [expression], names, file)
            setattr(settings, key, set(found) or {expression})
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(settings, key, None)
        if patterns:
            _set_patterns(settings, key, patterns, names, file)


def _set_patterns(settings: Any, key: str, patterns: Any, names: list[str], file: Path) -> None:
    if not isinstance(patterns, dict):
        raise ValueError(
            f"{file}: {key} is {type(patterns).__name__}, expected an object of names and numbers"
        )
    literal: dict[str, Any] = {}
    for pattern, found in zip(patterns, _match(key, "end", list(patterns), names, file), strict=True):
        for name in found:
            literal.setdefault(re.escape(name), patterns[pattern])  # of two that match, PEFT takes the first
    setattr(settings, key, literal)


def _require_names(key: str, given: Any, file: Path) -> None:
    """PEFT puts these into expressions of its own."""
    names = [given] if isinstance(given, str) else given or []
    for name in names:
        if not isinstance(name, str) or not NAMES.fullmatch(name):
            raise ValueError(f"{file}: {key} holds {name!r}, expected names of layers")


def _match(key: str, rule: str, expressions: list[str], names: list[str], file: Path) -> list[list[str]]:
    """For every expression the names that it matches: as a whole, or from some dot on to the end."""
    given = json.dumps({"rule": rule, "expressions": expressions, "names": names})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", MATCHER],
            input=given,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{file}: {key} is an expression that does not come to an end within {SECONDS:g} s: {expressions}"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"{file}: {key} is no regular expression: {expressions}: {reason}") from None
    found: list[list[str]] = json.loads(done.stdout)
    return found
