"""FSDP2 on two processes (gloo): the contrastive stages' step and result are those of one process."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from elva.losses import InfoNCELoss
from elva.models import MultimodalEncoder
from elva.training.config import ConfigError, RLConfig, TextConfig, build
from elva.training.contrastive import embed
from elva.training.lora import attach_adapter
from elva.training.sharded import refuse_unless_contrastive, trained_weights, whole_encoder

NEEDED = {"data": "d", "output": "o"}
ITEMS = [
    {"text": "a red circle", "image": None},
    {"text": "a blue star", "image": None},
    {"text": None, "image": Image.new("RGB", (96, 96), "red")},
    {"text": "with a star", "image": Image.new("RGB", (96, 96), "blue")},
]


def config_of(model) -> TextConfig:
    return build(TextConfig, {**NEEDED, "model": str(model), "lora": {"r": 4, "alpha": 8, "dropout": 0.0}})


def step(encoder) -> float:
    """Pictures as keys of texts; SGD on what trains."""
    optimiser = torch.optim.SGD([p for p in encoder.model.parameters() if p.requires_grad], lr=0.1)
    loss = InfoNCELoss()(embed(encoder, ITEMS[:2], encoder.model), embed(encoder, ITEMS[2:], encoder.model))
    loss.backward()
    optimiser.step()
    return loss.item()


def starting_point(model):
    encoder = MultimodalEncoder.from_pretrained(model, device="cpu")
    torch.manual_seed(0)
    attach_adapter(encoder, config_of(model).lora)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return encoder


def worker(rank, model, folder):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    encoder = starting_point(model)
    mesh = dist.init_device_mesh("cpu", (2,))
    for layer in encoder.base_model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(encoder.model, mesh=mesh)
    loss = step(encoder)
    trained = trained_weights(encoder.model)
    if rank == 0:
        torch.save({"loss": loss, "trained": trained}, f"{folder}/result")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_split_step_is_that_of_one_process(untrained_model, tmp_path):
    mp.spawn(worker, args=(str(untrained_model), str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "result")
    encoder = starting_point(untrained_model)
    before = copy.deepcopy(trained_weights(encoder.model))
    assert step(encoder) == pytest.approx(found["loss"], abs=1e-5)
    expected = trained_weights(encoder.model)
    assert expected.keys() == found["trained"].keys()
    moved = max(float((expected[name] - before[name]).abs().max()) for name in expected)
    assert moved > 1e-3
    for name, weight in expected.items():
        torch.testing.assert_close(found["trained"][name], weight, atol=1e-4 * moved, rtol=1e-4)
    whole = whole_encoder(config_of(untrained_model), found["trained"])
    torch.testing.assert_close(
        whole.encode(ITEMS, mode="direct"), encoder.encode(ITEMS, mode="direct"), atol=1e-5, rtol=0
    )


def test_weights_of_another_adapter_are_refused(untrained_model):
    with pytest.raises(RuntimeError, match="trained weights that the adapter does not have"):
        whole_encoder(config_of(untrained_model), {})


def test_stages_that_decode_are_refused():
    refuse_unless_contrastive(build(TextConfig, {**NEEDED, "model": "m"}))
    with pytest.raises(ConfigError, match=r"FSDP runs the stages text and instruct .*/zero2\.yaml"):
        refuse_unless_contrastive(build(RLConfig, {**NEEDED, "model": "m"}))
