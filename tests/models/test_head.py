"""The head as `linear_logprob` takes it is the head that the model applies."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from elva.models.head import Head


def whole(head: Head) -> torch.Tensor:
    """[V, H], one weight."""
    if head.trainable_rows is None:
        return head.weight
    return head.weight.index_copy(0, head.trainable_rows, head.row_values)


def applied(encoder) -> torch.Tensor:
    """[V, H]: what the model's own head does to the unit vectors."""
    return encoder.base_model.get_output_embeddings()(torch.eye(encoder.hidden_size)).T


def untie(encoder) -> None:
    model = encoder.model
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False


def train_ret(encoder) -> torch.Tensor:
    """Wrap the model as the stages do; returns the [RET] row, moved."""
    config = LoraConfig(r=2, target_modules=r".*\.q_proj", trainable_token_indices=[encoder.ret_id])
    encoder.model = get_peft_model(encoder.model, config)
    (row,) = (p for name, p in encoder.model.named_parameters() if "trainable_tokens_delta" in name)
    with torch.no_grad():
        row.normal_()
    return row


@pytest.mark.parametrize("tied", [True, False])
def test_a_plain_head(tied, own_encoder):
    if not tied:
        untie(own_encoder)
    head = own_encoder.head()
    assert head.weight is own_encoder.model.lm_head.weight
    assert (head.weight is own_encoder.model.get_input_embeddings().weight) == tied
    assert head.trainable_rows is None and head.row_values is None


def test_a_tied_head_has_the_trained_row_while_the_adapter_is_on(own_encoder):
    before = own_encoder.head().weight.detach().clone()
    row = train_ret(own_encoder)
    head = own_encoder.head()
    assert not head.weight.requires_grad
    assert head.trainable_rows.tolist() == [own_encoder.ret_id]
    torch.testing.assert_close(whole(head), applied(own_encoder))
    (gradient,) = torch.autograd.grad(head.row_values.sum(), row)
    assert torch.equal(gradient, torch.ones_like(row))
    assert not torch.equal(whole(head), before)
    with own_encoder.model.disable_adapter():
        off = own_encoder.head()
        assert torch.equal(whole(off), before) and torch.equal(applied(own_encoder), before)
        assert not off.row_values.requires_grad
    own_encoder.merge_adapter()
    merged = own_encoder.head()
    assert merged.trainable_rows is None
    torch.testing.assert_close(merged.weight, whole(head))


def test_an_untied_head_does_not_train_with_the_embedding(own_encoder):
    untie(own_encoder)
    train_ret(own_encoder)
    head = own_encoder.head()
    assert head.trainable_rows is None and not head.weight.requires_grad
    torch.testing.assert_close(whole(head), applied(own_encoder))


@pytest.mark.parametrize("head", [nn.Linear(192, 9, bias=True), nn.Sequential()])
def test_another_head_is_named(head, own_encoder):
    own_encoder.model.lm_head = head
    with pytest.raises(TypeError, match=r"model: the head is .*; expected nn.Linear without bias"):
        own_encoder.head()
