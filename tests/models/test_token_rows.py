"""PEFT's trainable token rows without a copy of the embedding: the same results, and nothing of its size."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elva.models.token_rows import TokenRows, keep_rows_apart
from elva.training.config import LoraSettings
from elva.training.lora import attach_adapter


class LargestResult(TorchDispatchMode):
    """Elements of the largest tensor that an operator makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if not function.is_view:
            made = (value.numel() for value in tree_leaves(result) if isinstance(value, torch.Tensor))
            self.elements = max(self.elements, *made, 0)
        return result


def adapted(encoder, indices):
    """PEFT's model with trained rows that differ from the embedding's."""
    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj", trainable_token_indices=indices)
    model = get_peft_model(encoder.model, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("several", [False, True])
def test_results_and_gradients_are_pefts(own_encoder, dtype, several):
    indices = [own_encoder.ret_id, *([5, 17] if several else [])]
    theirs = adapted(own_encoder, indices)
    ours = copy.deepcopy(theirs)
    keep_rows_apart(ours)
    kinds = [type(module) for module in ours.modules() if isinstance(module, TrainableTokensLayer)]
    assert kinds == [TokenRows, TokenRows], "the embedding and the tied head"
    ids = torch.tensor([[3, own_encoder.ret_id, 17, 5, 8, own_encoder.ret_id]])
    results = []
    for model in (ours, theirs):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits = model(input_ids=ids, use_cache=False).logits
        weights = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(logits.float().logsumexp(-1).sum(), weights)
        results.append([logits, *grads])
    assert any(grad.shape == (len(indices), own_encoder.hidden_size) and grad.any() for grad in results[0])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        if dtype is None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        else:
            assert (one - other).norm() <= 1e-2 * other.norm()


def test_nothing_of_the_embeddings_size_is_made(own_encoder, mixed_inputs):
    size = own_encoder.model.get_input_embeddings().weight.numel()
    encoder = own_encoder
    attach_adapter(encoder, LoraSettings(r=2))
    with torch.no_grad():
        batch = encoder.prepare(mixed_inputs[:1])
        with LargestResult() as made:
            encoder.generate_summaries(batch, num_generations=2, max_new_tokens=3)
            encoder.hidden_states(batch, model=encoder.model)
    assert 0 < made.elements < size
    # nor for a head in another precision, where only its size or dtype is asked for
    encoder.autocast_dtype = torch.bfloat16
    with torch.no_grad(), LargestResult() as made:
        encoder._special_ids()
    assert made.elements < size
    with torch.no_grad(), LargestResult() as made:
        TrainableTokensLayer.forward(
            encoder.base_model.get_input_embeddings().token_adapter, torch.tensor([1])
        )
    assert made.elements < size, "the layer's class is changed, PEFT's forward finds ours"


def test_pefts_own_layer_would_be_seen(own_encoder):
    model = adapted(own_encoder, [own_encoder.ret_id])
    size = own_encoder.model.get_input_embeddings().weight.numel()
    with torch.no_grad(), LargestResult() as made:
        model(input_ids=torch.tensor([[3, 4]]), use_cache=False)
    assert made.elements >= size


def test_switched_off_and_merged_rows(own_encoder, mixed_inputs):
    before = own_encoder.encode(mixed_inputs, mode="direct")
    own_encoder.model = adapted(own_encoder, [own_encoder.ret_id])
    keep_rows_apart(own_encoder.model)
    trained = own_encoder.encode(mixed_inputs, mode="direct")
    assert (trained - before).abs().max() > 1e-3
    with own_encoder.model.disable_adapter():
        assert torch.equal(own_encoder.encode(mixed_inputs, mode="direct"), before)
    own_encoder.merge_adapter()
    merged = own_encoder.encode(mixed_inputs, mode="direct")
    torch.testing.assert_close(merged, trained, atol=1e-5, rtol=0)


def test_another_kind_of_embedding_is_refused():
    class Scaled(nn.Embedding):
        pass

    model = nn.Sequential(TrainableTokensLayer(Scaled(4, 3), "default", [0]))
    with pytest.raises(
        TypeError, match=r"tokens are trained in a Scaled, expected nn\.Embedding or nn\.Linear"
    ):
        keep_rows_apart(model)
