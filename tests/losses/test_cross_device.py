"""InfoNCE over several ranks equals one process on the joint batch: loss, and gradients after averaging."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from elva.losses import CachedInfoNCELoss, InfoNCELoss

ROWS = {2: [3, 5], 3: [4, 1, 2]}
EXTRA, NEGATIVES = [2, 0, 1], [1, 3, 2]


class Problem:
    """The joint batch, the same on every rank, and each rank's part of it."""

    def __init__(self, world: int, even: bool = False) -> None:
        torch.manual_seed(0)
        self.rows, self.world = [4] * world if even else ROWS[world], world
        extra = [1] * world if even else EXTRA
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        self.query = [torch.randn(n, 5).double() for n in self.rows]
        self.keys = [torch.randn(n + extra[r], 5).double() for r, n in enumerate(self.rows)]
        self.negatives = [torch.randn(NEGATIVES[r], 5).double() for r in range(world)]
        self.query_ids = [torch.randint(0, 4, (n,)) for n in self.rows]
        self.key_ids = [torch.randint(0, 9, (len(k),)) for k in self.keys]

    def joint(self, options: dict, ids: bool, negatives: bool) -> tuple[torch.Tensor, nn.Module, InfoNCELoss]:
        encoder, loss = copy.deepcopy(self.encoder), InfoNCELoss(**options)
        firsts = torch.tensor([0, *[len(k) for k in self.keys]]).cumsum(0)
        labels = torch.cat([torch.arange(n) + firsts[r] for r, n in enumerate(self.rows)])
        extra = {}
        if ids:
            extra = {"query_ids": torch.cat(self.query_ids), "key_ids": torch.cat(self.key_ids)}
        if negatives:
            extra["negatives"] = encoder(torch.cat(self.negatives))
        value = loss(encoder(torch.cat(self.query)), encoder(torch.cat(self.keys)), labels, **extra)
        value.backward()
        return value.detach(), encoder, loss


def averaged(tensor: torch.Tensor, world: int) -> torch.Tensor:
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world


def assert_equal_to_joint(problem, value, encoder, loss, expected) -> None:
    joint_value, joint_encoder, joint_loss = expected
    torch.testing.assert_close(averaged(value, problem.world), joint_value)
    for one, other in zip(encoder.parameters(), joint_encoder.parameters(), strict=True):
        torch.testing.assert_close(averaged(one.grad, problem.world), other.grad)
    for one, other in zip(loss.parameters(), joint_loss.parameters(), strict=True):
        torch.testing.assert_close(averaged(one.grad, problem.world), other.grad)


def check_plain(rank: int, problem: Problem) -> None:
    for bidirectional in (False, True):
        for ids in (False, True):
            for negatives in (False, True):
                options = {"temperature": 0.4, "bidirectional": bidirectional, "learnable_temperature": True}
                expected = problem.joint(options, ids, negatives)
                encoder, loss = copy.deepcopy(problem.encoder), InfoNCELoss(cross_device=True, **options)
                extra = {}
                if ids:
                    extra = {"query_ids": problem.query_ids[rank], "key_ids": problem.key_ids[rank]}
                if negatives:
                    extra["negatives"] = encoder(problem.negatives[rank])
                value = loss(encoder(problem.query[rank]), encoder(problem.keys[rank]), **extra)
                value.backward()
                assert_equal_to_joint(problem, value, encoder, loss, expected)


def check_cached(rank: int, problem: Problem) -> None:
    """DDP averages the gradients itself, after the last piece only."""
    options = {"temperature": 0.4}
    expected_value, expected, _ = problem.joint(options, False, True)
    encoder = DistributedDataParallel(copy.deepcopy(problem.encoder))
    loss = CachedInfoNCELoss(mini_batch_size=2, cross_device=True, **options)
    value = loss(encoder, problem.query[rank], problem.keys[rank], negatives=problem.negatives[rank])
    value.backward()
    torch.testing.assert_close(averaged(value, problem.world), expected_value)
    for one, other in zip(encoder.module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def check_fsdp(rank: int, problem: Problem) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Its forward is a collective, so every rank needs as many pieces.
    problem = Problem(problem.world, even=True)
    options = {"temperature": 0.4}
    expected_value, expected, _ = problem.joint(options, False, False)
    encoder = copy.deepcopy(problem.encoder)
    fully_shard(encoder, mesh=init_device_mesh("cpu", (problem.world,)))
    loss = CachedInfoNCELoss(mini_batch_size=2, cross_device=True, **options)
    value = loss(encoder, problem.query[rank], problem.keys[rank])
    value.backward()
    torch.testing.assert_close(averaged(value, problem.world), expected_value)
    for one, other in zip(encoder.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad.full_tensor(), other.grad)


def check_half(rank: int, problem: Problem) -> None:
    """Keys travel in their own dtype, and their gradients come back in it."""
    keys = problem.keys[rank].bfloat16().requires_grad_()
    query = problem.query[rank].bfloat16().requires_grad_()
    InfoNCELoss(cross_device=True)(query, keys).backward()
    assert keys.grad.dtype == torch.bfloat16
    assert keys.grad.abs().sum() > 0


def check_errors(rank: int, problem: Problem) -> None:
    loss = InfoNCELoss(cross_device=True)
    with pytest.raises(ValueError, match="mask covers this rank's keys only"):
        shape = (len(problem.query[rank]), len(problem.keys[rank]))
        loss(problem.query[rank], problem.keys[rank], mask=torch.ones(shape, dtype=torch.bool))
    empty = torch.zeros(0, 5).double()
    with pytest.raises(ValueError, match="query has no rows on any rank"):
        loss(empty, empty)
    # A shard without queries still lends its keys, and hears of them.
    keys = problem.keys[rank].clone().requires_grad_()
    query = problem.query[rank] if rank else empty
    value = loss(query, keys, torch.arange(len(query)))
    value.backward()
    assert value == 0 if rank == 0 else value > 0
    assert keys.grad.abs().sum() > 0


CHECKS = {f.__name__: f for f in (check_plain, check_cached, check_fsdp, check_half, check_errors)}


def worker(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        for check in CHECKS.values():
            check(rank, Problem(world))
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_equals_one_process(world: int, tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [rank.communicate(timeout=100)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(outputs)


def test_without_a_process_group_it_changes_nothing() -> None:
    query, keys = torch.randn(3, 4), torch.randn(5, 4)
    assert torch.equal(InfoNCELoss(cross_device=True)(query, keys), InfoNCELoss()(query, keys))


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    # Past all checks: without the interpreter's teardown, in which FSDP's threads now and then abort the process.
    os._exit(0)
