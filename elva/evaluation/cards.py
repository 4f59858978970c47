"""The gallery as HTML: one card a query."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from elva.data.mbeir import Grain
from elva.evaluation.gallery import Answer, GalleryItem
from elva.evaluation.style import GRAIN_COLOURS

_TEXT_SHOWN = 140


def gallery_section(items: Sequence[GalleryItem]) -> str:
    """The section of the report, empty without items; everything from the data is escaped."""
    if not items:
        return ""
    keys = sorted({grain.key for item in items for grain in item.grains})
    colours = {key: index % GRAIN_COLOURS for index, key in enumerate(keys)}
    cards = "\n".join(_card(item, colours) for item in items)
    return (
        "<h2>Gallery</h2><p>Queries drawn at random, few grains first. Grains are coloured by kind; right answers "
        f"have a green frame and a tick.</p>\n{cards}"
    )


def _card(item: GalleryItem, colours: dict[str, int]) -> str:
    picture = f'<img src="{escape(item.picture)}" alt="picture of the query">' if item.picture else ""
    text = f"<blockquote>{highlight(item.text, item.grains, colours)}</blockquote>" if item.text else ""
    summary = ""
    if item.summary.strip():
        words = _mark_words(item.summary.strip(), item, colours)
        summary = f'<p class="summary"><b>Summary</b>{words}</p>'
    answers = "".join(_answer(place, answer) for place, answer in enumerate(item.answers, start=1))
    return (
        f'<article class="card query"><div class="ask">{picture}{text}</div>{summary}{_rank(item)}'
        f'<ol class="answers">{answers}</ol></article>'
    )


def highlight(text: str, grains: Sequence[Grain], colours: dict[str, int]) -> str:
    """``text`` with each grain's span coloured and its key above it; a span inside another is left plain."""
    parts, end = [], 0
    for grain in sorted(grains, key=lambda grain: (grain.start, -grain.end)):
        if grain.start < end:
            continue
        span = escape(text[grain.start : grain.end])
        parts.append(escape(text[end : grain.start]))
        parts.append(
            f'<mark class="g{colours[grain.key]}"><ruby>{span}<rt>{escape(grain.key)}</rt></ruby></mark>'
        )
        end = grain.end
    return "".join([*parts, escape(text[end:])])


def _mark_words(summary: str, item: GalleryItem, colours: dict[str, int]) -> str:
    """The summary with the grains that it names in their colours."""
    phrases: dict[str, int] = {}
    for grain in item.grains:
        for phrase in (grain.value.replace("_", " "), (item.text or "")[grain.start : grain.end]):
            if phrase.strip():
                phrases.setdefault(" ".join(phrase.lower().split()), colours[grain.key])
    if not phrases:
        return escape(summary)
    longest_first = sorted(phrases, key=len, reverse=True)
    pattern = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in longest_first)
    parts, end = [], 0
    for match in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", summary, re.IGNORECASE):
        colour = phrases[" ".join(match[0].lower().split())]
        parts += [escape(summary[end : match.start()]), f'<mark class="g{colour}">{escape(match[0])}</mark>']
        end = match.end()
    return "".join([*parts, escape(summary[end:])])


def _rank(item: GalleryItem) -> str:
    if item.rank == 0:
        return '<p class="rank">No right answer is in the pool.</p>'
    if item.rank == 1:
        return '<p class="rank first">The first answer is right.</p>'
    return f'<p class="rank">First right answer at rank {item.rank}.</p>'


def _answer(place: int, answer: Answer) -> str:
    tick = f"{place} ✓" if answer.correct else str(place)
    label = f"answer {place}, {'right' if answer.correct else 'wrong'}"
    picture = f'<img src="{escape(answer.picture)}" alt="{label}">' if answer.picture else ""
    text = answer.text or ""
    short = text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1].rstrip() + "…"
    words = f"<p>{escape(short)}</p>" if short else ""
    kind = ' class="right"' if answer.correct else ""
    return f'<li{kind} aria-label="{label}"><span class="place">{tick}</span>{picture}{words}</li>'
