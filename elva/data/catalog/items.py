"""Read a catalogue: one JSON object a line, a picture with attributes that may be lists, missing or untidy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elva.data.mbeir import DataError, read_json_lines
from elva.data.records import record_id
from elva.pictures import PictureError, read_rgb
from elva.progress import track

Value = tuple[str, str]
"""One grain value: (key, value)."""
Grains = frozenset[Value]

MAX_NAME_WORDS = 12


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a catalogue.

    ``image`` and ``alt_image`` are relative to the folder of the catalogue; ``text`` and ``name`` are empty where
    it gives none; ``grains`` holds each element of a list-valued attribute on its own.
    """

    where: str
    id: str
    name: str
    text: str
    image: str
    alt_image: str | None
    grains: Grains


@dataclass(frozen=True, slots=True)
class Catalog:
    """The items of a catalogue; ``folder`` is resolved, ``list_keys`` are the keys that some item gives a list for."""

    folder: Path
    items: list[Item]
    list_keys: frozenset[str]


def read_catalog(
    path: Path,
    grains: Sequence[str],
    image_field: str = "image",
    alt_image_field: str | None = None,
    text_field: str = "text",
) -> Catalog:
    """Read a catalogue, with every picture opened and decoded once.

    A grain key is looked up in ``item["attributes"]``, then in the item itself. Absent, null and empty values are
    missing; numbers become text; dashes and underscores inside a value become spaces; spellings that differ
    only in case are one value (the first one met). Raises DataError, naming ``path:line``, for a picture that
    is missing, broken, used twice or outside the catalogue's folder and for a value that is an object or a list in
    a list; naming the keys that exist, for a key that no item has.
    """
    records = list(read_json_lines(path, str(path)))
    if not records:
        raise DataError(f"{path}: no items, expected one JSON object a line")
    for where, record in records:
        if not isinstance(record, Mapping) or not isinstance(record.get("attributes"), Mapping | None):
            raise DataError(
                f"{where}: {record_id(record, 'id')}: expected a JSON object; 'attributes' likewise"
            )
    _check_keys(path, [record for _, record in records], grains, image_field, alt_image_field, text_field)
    folder = path.parent.resolve()
    spelling: dict[Value, str] = {}
    users: dict[str, str] = {}
    items = []
    for where, record in track(records, "reading pictures", total=len(records)):
        identifier = str(record.get("id") or "no id")
        image = _picture(folder, record.get(image_field), f"{where}: {identifier}: {image_field}")
        if image in users:
            raise DataError(
                f"{where}: {identifier}: {image_field} {image!r} is also that of {users[image]}, "
                "expected every picture once"
            )
        users[image] = where
        alternative = record.get(alt_image_field) if alt_image_field else None
        if alternative is not None:
            alternative = _picture(folder, alternative, f"{where}: {identifier}: {alt_image_field}")
        text = _line_of_text(record.get(text_field))
        values = _values(record, grains, f"{where}: {identifier}")
        items.append(
            Item(
                where=where,
                id=identifier,
                name=_name(record.get("name"), text),
                text=text,
                image=image,
                alt_image=alternative,
                grains=frozenset((k, spelling.setdefault((k, v.casefold()), v)) for k, v in values),
            )
        )
    lists = {key for _, record in records for key in grains if isinstance(_lookup(record, key), list)}
    return Catalog(folder, items, frozenset(lists))


def _check_keys(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    grains: Sequence[str],
    image_field: str,
    alt_image_field: str | None,
    text_field: str,
) -> None:
    fields = {key for record in records for key in record} - {"attributes"}
    attributes = {key for record in records for key in record.get("attributes") or ()}
    for key in grains:
        if key not in fields | attributes:
            raise DataError(f"{path}: no item has the grain key {key!r}; keys: {_names(fields | attributes)}")
    # "text" is only a default: a catalogue without texts gets sentences of its attributes instead.
    for name, field in (("image", image_field), ("alternative image", alt_image_field), ("text", text_field)):
        if field is not None and field not in fields and (name, field) != ("text", "text"):
            raise DataError(f"{path}: no item has the {name} field {field!r}; fields: {_names(fields)}")


def _names(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))


def _picture(folder: Path, given: object, where: str) -> str:
    """The path of a picture that can be decoded, relative to the catalogue's (resolved) folder."""
    if not isinstance(given, str) or not given:
        raise DataError(f"{where} is {given!r}, expected the path of a picture")
    try:
        resolved = (folder / given).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} {given!r} is not a usable path: {error}") from error
    if Path(given).is_absolute() or not resolved.is_relative_to(folder):
        raise DataError(
            f"{where} {given!r} leaves the catalogue's folder {folder}, expected a path inside it"
        )
    try:
        if not resolved.is_file():
            raise DataError(f"{where} {given!r} does not exist in {folder}, expected a picture")
        read_rgb(resolved)
    except PictureError as error:
        raise DataError(f"{where} {given!r} cannot be decoded ({error}), expected a whole picture") from error
    return resolved.relative_to(folder).as_posix()


def _lookup(record: Mapping[str, Any], key: str) -> object:
    attributes = record.get("attributes") or {}
    return attributes[key] if key in attributes else record.get(key)


def _values(record: Mapping[str, Any], keys: Sequence[str], where: str) -> list[Value]:
    values = []
    for key in keys:
        given = _lookup(record, key)
        for element in given if isinstance(given, list) else [given]:
            if isinstance(element, list | Mapping):
                raise DataError(
                    f"{where}: {key} holds {element!r}, expected a text, a number or a list of them"
                )
            if value := _spoken(element):
                values.append((key, value))
    return values


def _spoken(value: object) -> str:
    """A value as one says it, empty where it is missing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        return str(int(value) if value.is_integer() else value)
    return spoken_key(str(value)) if value is not None else ""


def spoken_key(key: str) -> str:
    """Dashes and underscores between words as spaces, and single spaces."""
    return " ".join(re.sub(r"(?<=\w)[-_]+(?=\w)|_+", " ", key).split())


def _line_of_text(given: object) -> str:
    return " ".join(given.split()) if isinstance(given, str) else ""


def _name(given: object, text: str) -> str:
    """The item's name, else the first clause of its text."""
    name = _line_of_text(given) or re.split(r"[.,;!?](?:\s|$)", text, maxsplit=1)[0]
    return " ".join(name.split()[:MAX_NAME_WORDS])
