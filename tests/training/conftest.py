from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from elva.ops import LinearLogprob


@pytest.fixture(scope="session")
def mini_scenes(tmp_path_factory) -> Path:
    """A small drawn data set: enough to train on, quick to draw."""
    # Not at the top: pytest stops at a conftest.py that lacks a package.
    from elva.data.scenes import generate

    root = tmp_path_factory.mktemp("data") / "scenes"
    generate(root, 40, seed=0)
    return root


@pytest.fixture(scope="session")
def untrained_model(mini_scenes, tmp_path_factory) -> Path:
    """A saved tiny model without any training: what the stages start from in these tests."""
    from elva.models import tiny
    from elva.training.examples import TrainingData, corpus

    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny.create(corpus(TrainingData(mini_scenes)), seed=0).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def untied_model(untrained_model, tmp_path_factory) -> Path:
    """The same with a head of its own."""
    from elva.models import MultimodalEncoder

    encoder = MultimodalEncoder.from_pretrained(untrained_model)
    head = encoder.model.lm_head
    head.weight = nn.Parameter(
        0.1 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3))
    )
    encoder.model.config.tie_word_embeddings = encoder.model.config.text_config.tie_word_embeddings = False
    path = tmp_path_factory.mktemp("model") / "untied"
    encoder.save_pretrained(path)
    return path


@pytest.fixture(params=["tied", "untied"])
def either_model(request, untrained_model, untied_model) -> Path:
    return untrained_model if request.param == "tied" else untied_model


@pytest.fixture
def all_logits() -> Callable[..., LinearLogprob]:
    """`token_logps` in plain PyTorch, through the model's own head."""

    def token_logps(encoder, rollouts, hidden, temperature=1.0):
        before = hidden[:, -rollouts.width - 1 : -1]
        logprobs = (encoder.base_model.get_output_embeddings()(before) / temperature).log_softmax(-1)
        chosen = logprobs.gather(-1, rollouts.completion_ids().unsqueeze(-1)).squeeze(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1).detach()
        return LinearLogprob(*(torch.where(rollouts.token_mask, value, 0) for value in (chosen, entropy)))

    return token_logps


@pytest.fixture
def moved() -> Callable[[torch.nn.Module], None]:
    """Puts what trains somewhere else than at the start, where most gradients are 0."""

    def move(model):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    change = 0.05 * torch.randn(parameter.shape, generator=generator)
                    parameter.add_(change.to(parameter.device))

    return move


@pytest.fixture
def relative() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """|found - expected| / |expected|; comparing with 0 shows nothing and fails."""

    def error(found, expected):
        assert expected.norm() > 0
        return float((found - expected).norm() / expected.norm())

    return error
