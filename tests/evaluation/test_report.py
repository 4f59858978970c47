"""Report, plots and gallery."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from elva.data.mbeir import Grain
from elva.evaluation.bootstrap import Difference, Interval
from elva.evaluation.cards import gallery_section, highlight
from elva.evaluation.gallery import Answer, GalleryItem, build_gallery, thumbnail
from elva.evaluation.plots import grain_distance_by_key, hit_rate_by_grains, learning_curves
from elva.evaluation.report import render_report, write_report
from elva.evaluation.results import Results, summary_markdown
from elva.evaluation.retrieval import evaluate

EVIL = '<script>alert("x")</script>'


class Outline(HTMLParser):
    """Checks that tags close in order, and collects what could load something or run."""

    VOID = frozenset({"meta", "img", "source", "br", "line", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    @classmethod
    def of(cls, page: str) -> Outline:
        outline = cls()
        outline.feed(page)
        assert outline.stack == []
        return outline


@pytest.fixture
def rows(root: Path, word_encoder: Callable) -> dict[str, Results]:
    sizes = frozenset({"small", "large"})
    return {"blind": evaluate(word_encoder(blind_to=sizes), root), "reader": evaluate(word_encoder(), root)}


def test_page_is_whole_and_self_contained(
    root: Path, word_encoder: Callable, rows: dict[str, Results]
) -> None:
    histories = {"blind": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}
    gallery = build_gallery(word_encoder(), root, n=3)
    page = render_report("Toys", rows, histories, gallery, notes=["one", "two"])
    outline = Outline.of(page)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in outline.tags}
    for _, attributes in outline.tags:
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    assert "@import" not in page
    pictures = [tag for tag, _ in outline.tags if tag == "picture"]
    assert len(pictures) == 3
    assert page.count('<article class="card query">') == 3
    assert "prefers-color-scheme: dark" in page


def test_table_says_what_the_results_say(rows: dict[str, Results]) -> None:
    page = render_report("Toys", rows)
    text = re.sub(r"<[^>]+>", " ", page)
    assert re.search(r"blind\s+100\.0\s+0\.0\s+100\.0\s+0\.\d{3}\s+50\.0", text)
    assert re.search(r"reader\s+100\.0\s+100\.0\s+100\.0\s+0\.\d{3}\s+100\.0", text)
    assert re.search(r"reader − blind\s+multi-grain hit@1\s+\+100\.0\s+\+100\.0 to \+100\.0", text)
    assert "| reader | 100.0 | 100.0 | 100.0 |" in summary_markdown(rows)


def test_given_intervals_replace_the_computed_ones(rows: dict[str, Results]) -> None:
    given = [Difference("ELVA", "control", "multi-grain hit@1", Interval(0.031, -0.002, 0.064))]
    text = re.sub(r"<[^>]+>", " ", render_report("Toys", rows, intervals=given))
    assert re.search(r"ELVA − control\s+multi-grain hit@1\s+\+3\.1\s+−0\.2 to \+6\.4", text)
    assert "reader − blind" not in text


def test_everything_from_outside_is_escaped(rows: dict[str, Results]) -> None:
    grain = Grain(EVIL, EVIL, 2, 2 + len(EVIL))
    answer = Answer(EVIL, None, correct=True)
    item = GalleryItem(f"a {EVIL} b", (grain,), None, f"of {EVIL}", (answer,), 1)
    rows["blind"].directory = EVIL
    rows["blind"].rows[0].dataset = EVIL
    grains = rows["blind"].multigrain
    assert grains is not None
    grains.grain_distance_by_key = {EVIL: 0.1}
    named = {EVIL: rows["blind"], "$x^2": rows["reader"]}
    histories = {EVIL: [{"step": 1, EVIL: 1.0}]}
    intervals = [Difference(EVIL, EVIL, EVIL, Interval(0.1, 0.0, 0.2))]
    page = render_report(EVIL, named, histories, [item], EVIL, intervals)
    assert "<script" not in page
    assert "script" not in {tag for tag, _ in Outline.of(page).tags}


def test_write_is_atomic(tmp_path: Path, rows: dict[str, Results]) -> None:
    target = tmp_path / "report.html"
    with pytest.raises(ValueError, match="at least one model"):
        write_report(target, "Toys", {})
    assert list(tmp_path.glob("report*")) == []
    write_report(target, "Toys", rows)
    assert target.read_text(encoding="utf-8").endswith("</html>\n")


def test_same_results_give_the_same_page(rows: dict[str, Results]) -> None:
    assert render_report("Toys", rows) == render_report("Toys", rows)


def test_results_without_multigrain_still_make_a_page(root: Path, word_encoder: Callable) -> None:
    results = evaluate(word_encoder(), root, tasks=["toys"])
    page = render_report("Toys", {"only": results})
    Outline.of(page)
    assert "<picture>" not in page
    assert "Is it more than luck" not in page


def test_plots_are_pictures_for_both_themes(rows: dict[str, Results]) -> None:
    for picture in (
        hit_rate_by_grains(rows),
        grain_distance_by_key(rows),
        learning_curves({"a": [{"step": 3, "x": 1}]}),
    ):
        assert picture is not None
        assert picture.light != picture.dark
        for uri in (picture.light, picture.dark):
            head, _, data = uri.partition(",")
            assert head == "data:image/svg+xml;base64"
            assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")


def test_plots_without_data_are_none() -> None:
    assert hit_rate_by_grains({}) is None
    assert grain_distance_by_key({}) is None
    assert learning_curves({}) is None
    assert (
        learning_curves({"a": [{"step": 1, "epoch": 0.1, "loss": float("nan"), "note": "x"}, {"loss": 1.0}]})
        is None
    )


def test_gallery_shows_what_was_found(root: Path, word_encoder: Callable) -> None:
    sizes = frozenset({"small", "large"})
    blind = build_gallery(word_encoder(blind_to=sizes), root, n=4, seed=1)
    sharp = build_gallery(word_encoder(), root, n=4, seed=1)
    assert [item.text for item in blind] == [item.text for item in sharp]
    assert [item.rank for item in sharp] == [1] * 4
    assert [item.rank for item in blind] == [2] * 4
    for item in sharp:
        assert [answer.correct for answer in item.answers] == [True, False, False, False, False]
    for item in blind:
        assert [answer.correct for answer in item.answers] == [False, True, False, False, False]
        assert all((answer.picture or "").startswith("data:image/") for answer in item.answers)
        assert item.summary


def test_gallery_without_multigrain_takes_the_tasks(root: Path, word_encoder: Callable) -> None:
    items = build_gallery(word_encoder(), root, n=99, tasks=["toys"])
    assert len(items) == 16
    assert any(item.picture for item in items)


def test_gallery_marks_right_and_wrong() -> None:
    answers = (Answer("no", None, correct=False), Answer("yes", None, correct=True))
    section = gallery_section([GalleryItem("ask", (), None, "", answers, 2)])
    assert section.count('<li class="right"') == 1
    assert "2 ✓" in section
    assert "First right answer at rank 2." in section
    assert gallery_section([]) == ""


def test_highlight_keeps_every_character_once() -> None:
    text = "a <red> cube & ball"
    grains = (Grain("colour", "red", 2, 7), Grain("inner", "ed", 4, 6), Grain("shape", "ball", 15, 19))
    marked = highlight(text, grains, {"colour": 0, "inner": 1, "shape": 2})
    assert marked.count("<mark") == 2
    assert '<mark class="g0"><ruby>&lt;red&gt;<rt>colour</rt></ruby></mark> cube &amp; ' in marked


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "jpeg"), ("RGBA", "png"), ("P", "png"), ("L", "jpeg")])
def test_thumbnail_is_small_and_keeps_its_shape(tmp_path: Path, mode: str, kind: str) -> None:
    path = tmp_path / "picture.png"
    Image.new(mode, (400, 200)).save(path)
    head, _, data = thumbnail(path).partition(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (176, 88)
