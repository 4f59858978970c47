"""What a catalogue's fields say: values as one speaks them, what stands for nothing, and what cannot be read."""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from elva.data.records import DataError, described
from elva.data.wording import comparable, is_blank, stands_for_nothing, visible

Value = tuple[str, str]
"""One grain value: (key, value)."""
Grains = frozenset[Value]


class ValueReader:
    """Reads fields of records; ``missing`` counts the texts that it took for nothing, by key.

    Spellings that differ only in Unicode form, format characters, white space or case are one value: the first met.
    """

    def __init__(self) -> None:
        self.missing: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._spelling: dict[Value, str] = {}

    def grains(self, record: Mapping[str, Any], keys: Sequence[str], where: str) -> Grains:
        """The values under ``keys``, each element of a list on its own; DataError for what is no text or number."""
        values = []
        for key in keys:
            given = lookup(record, key)
            for element in given if isinstance(given, list) else [given]:
                text = self._spoken(element, where, key)
                if text:
                    values.append((key, self._spelling.setdefault((key, comparable(text)), text)))
        return frozenset(values)

    def line(self, given: object, where: str, key: str) -> str:
        """A text (or number) with single spaces; empty where there is none; DataError for anything else."""
        if given is None:
            return ""
        if isinstance(given, bool | list | Mapping):
            raise DataError(f"{where}: {key} is {described(given)}, expected a text")
        return " ".join(self._text(given, where, key).split())

    def _spoken(self, value: object, where: str, key: str) -> str:
        """A value as one says it, empty where it is missing."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, list | Mapping):
            raise DataError(
                f"{where}: {key} holds {described(value)}, expected a text, a number or a list of them"
            )
        text = self._text(value, where, key)
        if _is_written_list(text):
            raise DataError(
                f"{where}: {key} is {described(text)}, a list or object written as text; expected JSON's own"
            )
        return spoken_key(composed(text))

    def _text(self, value: object, where: str, key: str) -> str:
        if isinstance(value, float):
            if math.isinf(value):
                raise DataError(f"{where}: {key} is {value}, expected a finite number")
            if math.isnan(value):
                return ""
            return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")
        text = str(value).strip()
        if stands_for_nothing(text):
            self.missing[key][comparable(text)] += 1
            return ""
        return "" if is_blank(text) else text


def lookup(record: Mapping[str, Any], key: str) -> object:
    """What the item gives for a key: in its attributes, else (also for null) in itself; in any Unicode form."""
    key = composed(key)
    given = (record.get("attributes") or {}).get(key)
    return record.get(key) if given is None else given


def with_composed_keys(record: Mapping[str, Any]) -> dict[str, Any]:
    """The item as ``lookup`` reads it: its keys, and those of its attributes, in one Unicode form."""
    item = {composed(key): value for key, value in record.items()}
    if item.get("attributes"):
        item["attributes"] = {composed(key): value for key, value in item["attributes"].items()}
    return item


def composed(key: str) -> str:
    return unicodedata.normalize("NFC", key)


def spoken_key(key: str) -> str:
    """Dashes and underscores between words as spaces, and single spaces.

    An accent or an invisible character, which stays, belongs to its word. A dash between digits ("3-5", "2021-03-04")
    or of an exponent ("1e-5") is part of a number.
    """
    words = "".join("x" if unicodedata.combining(c) or not visible(c) else c for c in key)
    for dashes in reversed(list(_DASHES.finditer(words))):
        key = f"{key[: dashes.start()]} {key[dashes.end() :]}"
    return " ".join(key.split())


_DASHES = re.compile(r"(?<=\w)(?!(?<=\d)[-‐‑﹣－]\d|(?<=\d[eE])-\d)[-‐‑﹣－_]+(?=\w)|_+")


def _is_written_list(text: str) -> bool:
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return False
    for parse in (ast.literal_eval, json.loads):
        try:
            return isinstance(parse(text), list | dict)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return False
