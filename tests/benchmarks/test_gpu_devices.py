"""No tensor of the host may meet one of the GPU: every case runs on the meta device, which stands in for it.

Meta tensors have shapes, dtypes and a device and no numbers, so a mixture of devices is an error there as on a GPU, and
the largest sizes cost nothing. A case that asks for a number ends there.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from unittest import SkipTest

import pytest
import torch

from benchmarks.contenders import RACES
from benchmarks.gpu import check_similarity_topk, subject
from benchmarks.gpu.bench_cases import SIZES
from benchmarks.gpu.cases import Setting, load
from benchmarks.gpu.check import OPERATORS
from benchmarks.problems import PROBLEMS
from elva.ops import accuracy as rule
from elva.ops.accuracy import Accuracy

NUMBERS = ("cannot be called on meta tensors", "Cannot copy out of meta tensor")


class Generator:
    """The meta device has none."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def manual_seed(self, seed: int) -> Generator:
        return self


def without_generator(draw):
    def drawn(*shape, generator, device, **options):
        assert torch.device(device) == generator.device, "drawn on another device than the generator's"
        return draw(*shape, device=device, **options)

    return drawn


@pytest.fixture(autouse=True)
def meta_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("randn", "rand", "randint", "randperm"):
        monkeypatch.setattr(torch, name, without_generator(getattr(torch, name)))
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(subject, "memory", lambda *a: nullcontext())
    for group in OPERATORS:
        monkeypatch.setattr(f"benchmarks.gpu.check_{group}.memory", lambda *a: nullcontext())
    for module in (rule, check_similarity_topk):
        monkeypatch.setattr(module, "accuracy", compared)


def compared(found, plain, exact) -> Accuracy:
    assert found.device == plain.device == exact.device == torch.device("meta")
    assert found.shape == plain.shape == exact.shape
    return Accuracy(0.0, 1.0)


def outcome(run) -> str:
    """What became of a run; another error than the lack of numbers is raised."""
    try:
        run()
    except SkipTest:
        return "skipped"
    except NotImplementedError:
        return "asked for a number"
    except RuntimeError as error:
        if not any(text in str(error) for text in NUMBERS):
            raise
        return "asked for a number"
    return "ran"


@pytest.mark.parametrize("group", OPERATORS)
def test_every_case_keeps_to_its_device(group: str):
    # Devices hang on no dtype: each case once.
    cases = {case.key["case"]: case for case in load(OPERATORS[group], Setting("meta", 1.0, ""))}
    outcomes = {name: outcome(case.run) for name, case in cases.items()}
    counts = Counter(outcomes.values())
    assert counts["ran"] > len(cases) // 3 or group == "similarity_topk", (
        counts
    )  # a search is compared by numbers
    huge = [name for name in cases if "2^31" in name]
    assert huge and all(outcomes[name] != "skipped" for name in huge)


@pytest.mark.parametrize("operator", SIZES)
def test_inputs_of_the_timed_sizes_are_made_on_the_device(operator: str):
    for shape in SIZES[operator].values():
        inputs = PROBLEMS[operator].inputs(shape, "meta", torch.bfloat16)
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
        assert {x.device for x in tensors} == {torch.device("meta")}
        assert {x.dtype for x in tensors} <= {torch.bfloat16, torch.int64}


@pytest.mark.parametrize("operator", SIZES)
def test_every_contender_keeps_to_its_device(operator: str):
    race = RACES[operator]
    for shape in SIZES[operator].values():
        inputs = PROBLEMS[operator].inputs(shape, "meta", torch.bfloat16)
        for function in race.contenders.values():
            outcome(lambda function=function, inputs=inputs: race.step(function, inputs))
        outcome(lambda inputs=inputs: race.sample(inputs))


def test_a_mixture_would_be_seen():
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(3, device="meta") + torch.ones(3)
