"""The judge through transformers, on weights that know nothing: it runs, and its rubbish is treated as such."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from elva.data.mrbench import asking, build, open_judge
from elva.data.mrbench.answers import Answer, Question
from elva.data.mrbench.checkpoint import CheckpointJudge
from elva.data.mrbench.judges import JudgeError, JudgeFault, Outcome, ask
from elva.data.mrbench.log import AnswerLog
from elva.models import tiny


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> CheckpointJudge:
    folder = tmp_path_factory.mktemp("judge") / "model"
    tiny.create(["two dogs run", "a red bus"] * 4).save_pretrained(folder)
    return CheckpointJudge(str(folder), max_new_tokens=4)


def test_it_reads_text_and_pictures_and_hears_what_was_wrong(
    judge: CheckpointJudge, paper_rows: Path
) -> None:
    picture = Question("9:1", None, paper_rows / "mbeir_images/1.png")
    assert isinstance(judge.reply(Question("9:1", "two dogs", None), []), str)
    assert judge.reply(picture, []) == judge.reply(picture, [])
    outcome = ask(judge, picture)
    assert (outcome.answer, outcome.attempts) == (None, 3)
    assert outcome.reason


def test_an_unreadable_picture_is_the_questions_fault(judge: CheckpointJudge, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(JudgeFault, match="the picture cannot be read"):
        judge.reply(Question("9:1", None, tmp_path / "x.png"), [])


def test_a_build_with_it_ends_with_the_reason(
    judge: CheckpointJudge, paper_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "HOPELESS", 2)
    with pytest.raises(JudgeError, match="through transformers: no usable answer to 2 questions in a row"):
        build(paper_rows, judge, tmp_path / "out", per_task=2)


def test_answers_are_kept_by_the_judges_weights_and_the_pictures_content(tmp_path: Path) -> None:
    names = set()
    for seed in (0, 1, 0):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        tiny.create(["two dogs run"] * 4, seed=seed).save_pretrained(folder)
        names.add(CheckpointJudge(str(folder)).name)
    assert len(names) == 2 and all(name.startswith(f"{folder} (") for name in names)
    picture = tmp_path / "1.png"
    question, said = Question("9:1", None, picture), Outcome(Answer("two dogs", ()), 1)
    for content, known in ((b"one", False), (b"one", True), (b"two", False)):
        picture.write_bytes(content)
        log = AnswerLog(tmp_path / "answers.jsonl", open_judge("rules"))
        assert (log.get(question) == said) is known
        log.add(question, said)
        log.close()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no directory, expected one with a Qwen-VL checkpoint"):
        open_judge(str(tmp_path / "absent"))
