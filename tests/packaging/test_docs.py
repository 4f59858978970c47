"""Every operator has its page, every page the same headings, and links between the pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from elva import ops

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "kernels").glob("*.md"))
HEADINGS = ["Formula", "Data flow", "Why this tiling", "Memory", "Figures", "Known limits"]
WRITTEN = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})


def test_every_operator_has_a_page_that_the_index_links():
    operators = {name.removesuffix("_reference") for name in vars(ops) if name.endswith("_reference")}
    assert {page.stem for page in PAGES} == operators
    index = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert all(f"](kernels/{name}.md)" in index for name in operators)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_of_an_operator_has_its_headings(page):
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {page.stem}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []
