from __future__ import annotations

from pathlib import Path

import pytest

CAPTIONS = (
    "Two small dogs run on a beach",
    "A red bus parked near a tall building",
    "a man riding a wave",
    "a woman in a blue dress holding an umbrella",
    "three cats sleeping under a wooden table",
    "dogs",  # one grain only
    "a plate of steamed rice with green beans",
    "a white horse and a brown horse",
)
CHANGES = (
    "is blue instead of red",
    "has two dogs on a sofa",
    "make it a night scene with three lamps",
    "is darker",
)


@pytest.fixture
def paper_rows(tmp_path: Path) -> Path:
    """The four rows of the paper's MRBench in miniature, and a fifth that does not belong to it."""
    # Not at the top: pytest stops at a conftest.py that lacks a package.
    from PIL import Image

    from elva.data.mbeir import Candidate, Query
    from elva.data.writer import MBEIRWriter

    root = tmp_path / "source"
    with MBEIRWriter(root) as writer:
        writer.add_instruction("text", "image", "mscoco", 9, ["Find a picture of this caption."])
        writer.add_instruction("image", "text", "mscoco", 9, ["Find a caption of this picture."])
        writer.add_instruction("image", "image", "nights", 4, ["Find a picture that looks alike."])
        writer.add_instruction("image,text", "image", "cirr", 8, ["Find the picture with this change."])
        writer.add_instruction("text", "text", "webqa", 2, ["Find an answer."])
        for number, caption in enumerate(CAPTIONS):
            image = f"mbeir_images/{number}.png"
            writer.save_image(image, Image.new("RGB", (40, 30), (30 * number, 80, 200)))
            for dataset, task, prefix in (("mscoco", 0, 9), ("nights", 4, 4), ("cirr", 7, 8)):
                writer.add_candidate(
                    "test", dataset, task, Candidate(f"{prefix}:{number}", None, image, "image")
                )
            writer.add_candidate("test", "mscoco", 3, Candidate(f"9:{100 + number}", caption, None, "text"))
            writer.add_candidate("test", "webqa", 1, Candidate(f"2:{number}", caption, None, "text"))
            own = (f"9:{number}",)
            writer.add_query("test", "mscoco", Query(f"9:{200 + number}", caption, None, "text", 0, own))
            pair = (f"9:{100 + number}",)
            writer.add_query("test", "mscoco", Query(f"9:{300 + number}", None, image, "image", 3, pair))
            # of its own, so that no two questions show the same
            similar = f"mbeir_images/similar/{number}.png"
            writer.save_image(similar, Image.new("RGB", (40, 30), (30 * number, 90, 190)))
            alike = (f"4:{(number + 1) % len(CAPTIONS)}",)
            writer.add_query("test", "nights", Query(f"4:{100 + number}", None, similar, "image", 4, alike))
            writer.add_query(
                "test", "webqa", Query(f"2:{100 + number}", caption, None, "text", 1, (f"2:{number}",))
            )
        for number, change in enumerate(CHANGES):
            query = Query(
                f"8:{100 + number}",
                change,
                f"mbeir_images/{number}.png",
                "image,text",
                7,
                (f"8:{number + 4}",),
            )
            writer.add_query("test", "cirr", query)
    return root
