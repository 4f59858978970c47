"""The review's page in a real headless browser, driven by its keyboard."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elva.data.mrbench import build
from elva.data.mrbench.review import Review
from elva.data.mrbench.rules import RulesJudge
from elva.data.mrbench.server import serve

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture
def page() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: expected one of {', '.join(BROWSERS)} on the PATH")
    with playwright.sync_playwright() as running:
        # A sandbox inside of a container needs rights that tests do not have.
        launched = running.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        opened = launched.new_page(viewport={"width": 940, "height": 760})
        yield opened
        launched.close()


def test_a_person_reviews_with_the_keyboard(page: Any, paper_rows: Path, tmp_path: Path) -> None:
    root = tmp_path / "mrbench"
    build(paper_rows, RulesJudge(), root, per_task=3)
    review = Review(root, 4)
    server = serve(review, 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("requestfailed", lambda request: faults.append(request.url))
    url = f"http://127.0.0.1:{server.server_port}/"
    page.goto(url)
    page.get_by_text("1 of 5").wait_for()
    first = review.items[0]
    assert page.locator(".grain").count() == len(first.grains)
    assert first.text in page.evaluate(
        "(() => { const copy = document.getElementById('text').cloneNode(true);"
        "copy.querySelectorAll('small').forEach(label => label.remove()); return copy.textContent; })()"
    )

    page.keyboard.press("a")
    page.get_by_text("2 of 5").wait_for()
    assert review.decision(first) == {"decision": "accepted"}

    # the second: its first two words become one entity, in place of what the judge marked there
    second = review.items[1]
    page.keyboard.press("c")
    page.get_by_text("Correcting").wait_for()
    page.keyboard.press("Shift+ArrowRight")
    assert page.locator(".chosen").count() == 2
    page.keyboard.press("1")
    if folder := os.environ.get("ELVA_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "mrbench-review.png")
    page.keyboard.press("Enter")
    page.get_by_text("3 of 5").wait_for()
    kept = review.decision(second)
    assert kept is not None
    words = " ".join(second.text.split()[:2])
    assert {"kind": "entity", "text": words, "start": 0, "end": len(words)} in kept["grains"]

    page.keyboard.press("r")
    page.get_by_text("4 of 5").wait_for()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#state").inner_text() == "rejected"
    stored = json.loads((root / "mrbench/review.json").read_text(encoding="utf-8"))
    assert [record["decision"] for record in stored["decisions"].values()] == [
        "accepted",
        "corrected",
        "rejected",
    ]
    assert page.locator("#report").inner_text() == stored["report"]["sentence"]

    # pictures are there, and a new page goes on where this one stopped
    page.goto(url)
    page.get_by_text("4 of 5").wait_for()
    for _ in review.items:
        page.keyboard.press("ArrowLeft")
    for number, item in enumerate(review.items, start=1):
        page.get_by_text(f"{number} of 5").wait_for()
        # Not wait_for_function: the page's policy forbids the eval that it polls with.
        page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert widths == [40] * ((item.image is not None) + (item.positive_image is not None))
        page.keyboard.press("ArrowRight")
    assert faults == []
    server.shutdown()
    server.server_close()
    page.keyboard.press("a")
    page.get_by_text("Not saved").wait_for()
