"""The profile of a step of stage 3: what it sums up, and that the whole command writes what it says."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from benchmarks.profile_step import PHASE, main, summarise
from elva.ops import tiered_rank


def test_operators_phases_and_shares_of_known_steps():
    similarity, between = torch.randn(64, 200, requires_grad=True), torch.randn(64, 200)
    plan = schedule(wait=0, warmup=1, active=2, repeat=1)
    with profile(activities=[ProfilerActivity.CPU], schedule=plan, acc_events=True) as profiler:
        for _ in range(3):
            with record_function(f"{PHASE}reward"):
                out = [tiered_rank(similarity, between).logsumexp.sum() for _ in range(3)]
            with record_function(f"{PHASE}backward"):
                sum(out).backward()
            profiler.step()
    found = summarise(profiler.key_averages(), 2, "cpu")
    assert {name: row.calls for name, row in found.ours.items()} == {
        "elva::tiered_rank": 3,
        "elva::tiered_rank_backward": 3,
    }
    assert set(found.phases) == {"reward", "backward"}
    assert 0 < found.ours["elva::tiered_rank"].total < found.phases["reward"]
    assert 0 < found.ours["elva::tiered_rank_backward"].own < found.phases["backward"]
    assert sum(found.phases.values()) < found.seconds == found.busy
    assert sum(row.own for row in found.operators.values()) < found.seconds


@pytest.mark.slow
def test_the_demos_step_is_traced_drawn_and_printed(tmp_path, capsys):
    main(
        tmp_path,
        steps=1,
        warmup=1,
        overrides=["trainer.per_device_train_batch_size=4", "negatives.instances=4"],
        top=5,
    )
    printed = capsys.readouterr().out
    for word in ("aten::mm", "elva::rank_reward", "elva::tiered_rank_backward", "generate", "optimizer"):
        assert word in printed
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {f"{PHASE}policy", f"{PHASE}backward", "elva::rank_reward"} <= names
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))


def test_bad_settings_are_one_line(tmp_path):
    settings = tmp_path / "rl.yaml"
    settings.write_text("{model: m, data: d, output: o, rl: {beat: 1}}")
    with pytest.raises(typer.BadParameter, match=r"rl\.beat: no such setting; did you mean rl\.beta"):
        main(tmp_path, config=settings)
