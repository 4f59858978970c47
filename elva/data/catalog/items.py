"""Read a catalogue: one JSON object a line, a picture with attributes that may be lists, missing or untidy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from elva.data.catalog.copies import fingerprint, without_copies
from elva.data.catalog.item import Catalog, Item
from elva.data.catalog.values import (
    Grains,
    Value,
    ValueReader,
    composed,
    lookup,
    spoken_key,
    with_composed_keys,
)
from elva.data.lines import numbered_lines
from elva.data.mbeir import DataError, read_json_lines, reason_of
from elva.data.records import described, record_id, shortened
from elva.files import leads_out
from elva.pictures import PictureError, read_rgb
from elva.progress import track

__all__ = ["Catalog", "Grains", "Item", "Value", "read_catalog", "spoken_key"]

MAX_NAME_WORDS = 12


def read_catalog(
    path: Path,
    grains: Sequence[str],
    image_field: str = "image",
    alt_image_field: str | None = None,
    text_field: str = "text",
) -> Catalog:
    """Read a catalogue, with every picture opened and decoded once.

    A grain key is looked up in ``item["attributes"]``, else (also for null) in the item itself. Absent, null and empty
    values are missing, as are "nan", "None", "N/A" and dashes alone (``stands_for_nothing``; counted by key in
    ``Catalog.missing``); numbers become text; dashes and underscores inside a value become spaces; spellings that
    differ only in Unicode form, format characters, white space or case are one value (the first one met). Items whose
    picture an earlier item has, and second pictures that are another picture of the catalogue, are left out by their
    pixels (``Catalog.left_out``).

    Raises DataError, naming ``path:line``, for a picture that is missing, unusable, used twice or outside the
    catalogue's folder, for a value that is an object, a list in a list, or a list or object written as text, and for a
    name or text that is neither a text nor a number; naming the keys that exist, for a key that no item has.
    """
    _refuse_other_forms(path)
    records = list(read_json_lines(path, str(path)))
    for where, record in records:
        if not isinstance(record, Mapping) or not isinstance(record.get("attributes"), Mapping | None):
            raise DataError(
                f"{where}: {record_id(record, 'id')}: expected a JSON object; 'attributes' likewise"
            )
    records = [(where, with_composed_keys(record)) for where, record in records]
    image_field, text_field = composed(image_field), composed(text_field)
    alt_image_field = composed(alt_image_field) if alt_image_field else None
    _check_keys(path, [record for _, record in records], grains, image_field, alt_image_field, text_field)
    folder = path.parent.resolve()
    values = ValueReader()
    users: dict[str, str] = {}
    pixels: dict[str, bytes] = {}
    items = []
    for where, record in track(records, "reading pictures", total=len(records)):
        identifier = "no id" if record.get("id") in (None, "") else shortened(str(record["id"]))
        named = f"{where}: {identifier}"
        image = _picture(folder, record.get(image_field), f"{named}: {image_field}", pixels)
        if image in users:
            raise DataError(
                f"{named}: {image_field} {image!r} is also that of {users[image]}, "
                "expected every picture once"
            )
        users[image] = where
        alternative = record.get(alt_image_field) if alt_image_field else None
        if alternative is not None:
            alternative = _picture(folder, alternative, f"{named}: {alt_image_field}", pixels)
        text = values.line(record.get(text_field), named, text_field)
        items.append(
            Item(
                where=where,
                id=identifier,
                name=_name(values.line(record.get("name"), named, "name"), text),
                text=text,
                image=image,
                alt_image=alternative,
                grains=values.grains(record, grains, named),
            )
        )
    lists = {key for _, record in records for key in grains if isinstance(lookup(record, key), list)}
    kept, left_out = without_copies(items, pixels)
    return Catalog(
        folder,
        kept,
        frozenset(lists),
        dict(left_out),
        {key: dict(texts) for key, texts in values.missing.items()},
    )


def _refuse_other_forms(path: Path) -> None:
    try:
        first = next(numbered_lines(path), None)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if first is None:
        raise DataError(f"{path}: no items, expected one JSON object a line")
    number, line = first
    if line.lstrip().startswith(b"["):
        raise DataError(f"{path}: a JSON array, expected one JSON object a line (jq -c '.[]' writes it so)")
    if not line.lstrip().startswith(b"{"):
        found = described(line.decode("utf-8", "replace").strip())
        raise DataError(f"{path}:{number}: begins with {found}, expected one JSON object a line (no CSV)")


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
        if composed(key) not in fields | attributes:
            raise DataError(f"{path}: no item has the grain key {key!r}; keys: {_names(fields | attributes)}")
    # "text" is only a default: a catalogue without texts gets sentences of its attributes instead.
    for name, field in (("image", image_field), ("alternative image", alt_image_field), ("text", text_field)):
        if field is not None and field not in fields and (name, field) != ("text", "text"):
            raise DataError(f"{path}: no item has the {name} field {field!r}; fields: {_names(fields)}")


def _names(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))


def _picture(folder: Path, given: object, where: str, pixels: dict[str, bytes]) -> str:
    """The path of a picture that can be decoded, relative to the (resolved) folder; its fingerprint into ``pixels``."""
    if not isinstance(given, str) or not given:
        raise DataError(f"{where} is {described(given)}, expected the path of a picture")
    try:
        resolved = (folder / given).resolve()
        found = resolved.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} {described(given)} is not a usable path: {reason_of(error)}") from error
    inside = resolved.is_relative_to(folder)
    if Path(given).is_absolute() or (not found and PureWindowsPath(given).is_absolute()):
        expected = repr(resolved.relative_to(folder).as_posix()) if inside and found else "a path"
        raise DataError(f"{where} {given!r} is absolute, expected {expected}, relative to {folder}")
    if not inside:
        raise DataError(
            f"{where} {given!r} leaves the catalogue's folder {folder}, expected a path inside it"
        )
    slashed = given.replace("\\", "/")
    if not found and not leads_out(slashed) and (folder / slashed).is_file():
        raise DataError(f"{where} {given!r} is written with backslashes; expected {slashed!r}")
    if not found:
        raise DataError(f"{where} {given!r} does not exist in {folder}, expected a picture")
    relative = resolved.relative_to(folder).as_posix()
    if relative not in pixels:
        try:
            pixels[relative] = fingerprint(read_rgb(resolved))
        except PictureError as error:
            raise DataError(
                f"{where} {given!r} cannot be decoded ({error}), expected a whole picture"
            ) from error
    return relative


def _name(given: str, text: str) -> str:
    """The item's name, else the first clause of its text."""
    name = given or re.split(r"[.,;!?](?:\s|$)", text, maxsplit=1)[0]
    return " ".join(name.split()[:MAX_NAME_WORDS])
