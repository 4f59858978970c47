from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from elva.data import DataError, Instructions, Query, clean, query_text
from elva.data.instructions import InstructionRow

HEADER = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\tprompt_3\tprompt_4\n"
PROMPTS = ("One.", "Two.", "Three.", "Four.")
ROW = InstructionRow("text", "image", "MSCOCO", 9, PROMPTS)


def query(n: int) -> Query:
    return Query(f"9:{n}", "a dog", None, "text", 0, ("9:1",))


def test_reading_keeps_the_order_and_drops_empty_wordings(tmp_path: Path) -> None:
    file = tmp_path / "query_instructions.tsv"
    rows = (
        'text\timage\tMSCOCO\t9\tFind "it", please.\tGet it.\t\t\r\nimage,text\timage\tCIRR\t8\tChange it.\n'
    )
    file.write_text(HEADER + rows, encoding="utf-8")
    instructions = Instructions.read(file)
    assert instructions.prompts(9, "text", "image") == ['Find "it", please.', "Get it."]
    assert instructions.prompts(8, "image,text", "image") == ["Change it."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ":1: -: header is"),
        ("a\tb\n", ":1: -: header is"),
        (HEADER + "text\timage\tMSCOCO\n", ":2: -: 3 columns"),
        (HEADER + "text\tvideo\tMSCOCO\t9\tFind.\n", ":2: -: cand_modality is 'video'"),
        (HEADER + "text\timage\tMSCOCO\tnine\tFind.\n", ":2: -: dataset_id is 'nine'"),
        (HEADER + "\ntext\timage\tMSCOCO\t9\t\t\n", ":3: -: no prompt"),
        (HEADER + "text\timage\tMSCOCO\t9\tFind.\n" * 2, "two instructions for dataset 9"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "query_instructions.tsv"
    file.write_text(content)
    with pytest.raises(DataError) as error:
        Instructions.read(file)
    assert message in str(error.value)


def test_a_missing_row_names_dataset_and_modalities() -> None:
    with pytest.raises(DataError, match="9:1: no instruction for dataset 9, text -> text"):
        Instructions([ROW]).choose(query(1), "text")


def test_fixed_is_the_first_wording_and_random_uses_all() -> None:
    instructions = Instructions([ROW])
    assert {instructions.choose(query(n), "image", "fixed", seed=n) for n in range(20)} == {"One."}
    drawn = Counter(instructions.choose(query(n), "image", "random") for n in range(2000))
    assert set(drawn) == set(PROMPTS)
    assert min(drawn.values()) > 400  # 500 expected, standard deviation 19
    with pytest.raises(ValueError, match="policy is 'first'"):
        instructions.choose(query(1), "image", "first")


def test_random_depends_on_seed_and_qid_only() -> None:
    """Not on the order of calls, nor on the process (str hashes differ between processes)."""
    instructions = Instructions([ROW])
    here = [instructions.choose(query(n), "image", "random", seed=3) for n in range(40)]
    assert here[::-1] == [
        instructions.choose(query(n), "image", "random", seed=3) for n in reversed(range(40))
    ]
    assert here != [instructions.choose(query(n), "image", "random", seed=4) for n in range(40)]
    program = (
        "from elva.data import Instructions, Query\n"
        "from elva.data.instructions import InstructionRow\n"
        f"i = Instructions([InstructionRow('text', 'image', 'MSCOCO', 9, {PROMPTS!r})])\n"
        "q = [Query(f'9:{n}', 'a dog', None, 'text', 0, ('9:1',)) for n in range(40)]\n"
        "print('|'.join(i.choose(x, 'image', 'random', seed=3) for x in q))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.strip() == "|".join(here)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (' "a dog" ', "A dog."),
        ("is it a dog?", "Is it a dog?"),
        ("A dog!", "A dog!"),
        ("a\rdog,", "Adog,."),
        ('""', ""),
        (None, ""),
    ],
)
def test_cleaning_follows_uniir(text: str | None, expected: str) -> None:
    assert clean(text) == expected


def test_query_text_joins_instruction_and_text() -> None:
    assert query_text("find a picture of", 'a "red" ball') == 'Find a picture of. a "red" ball.'
    assert query_text("Find the caption.", None) == "Find the caption."
