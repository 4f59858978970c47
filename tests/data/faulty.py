"""A small directory in M-BEIR's layout, and ways to spoil it."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from elva.data import Candidate, Grain, MBEIRWriter, Query

QUERIES = "query/test/mbeir_scenes_task0_test.jsonl"
POOL = "cand_pool/local/mbeir_scenes_task0_test_cand_pool.jsonl"
QRELS = "qrels/test/mbeir_scenes_task0_test_qrels.txt"
INSTRUCTIONS = "instructions/query_instructions.tsv"


def build(root: Path) -> Path:
    with MBEIRWriter(root) as writer:
        writer.add_instruction("text", "image", "scenes", 20, ["Find the picture."])
        for split in ("train", "val", "test"):
            for n in range(6):
                image = f"mbeir_images/{n}.png"
                grains = (Grain("shape", "ball", 0, 4),)
                writer.add_query(
                    split,
                    "scenes",
                    Query(f"20:{n}", f"ball {n}", None, "text", 0, (f"20:{n}",), grains=grains),
                )
                writer.add_candidate(split, "scenes", 0, Candidate(f"20:{n}", None, image, "image"))
        for n in range(6):
            writer.save_image(f"mbeir_images/{n}.png", Image.effect_noise((64, 64), 90))
    return root


def change(root: Path, relative: str, line: int, **values: object) -> None:
    """Overwrite fields of one record (lines count from 1)."""
    lines = (root / relative).read_text(encoding="utf-8").splitlines()
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | values)
    (root / relative).write_text("\n".join(lines) + "\n", encoding="utf-8")


def append(root: Path, relative: str, content: bytes) -> None:
    with (root / relative).open("ab") as file:
        file.write(content)
