"""The base stage: a small preset becomes a captioner, standing in for the pretrained MLLM nobody ships with us."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from elva.models.weights import load_model
from elva.training.examples import CaptionExample
from elva.training.trainer import StageTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from elva.models.encoder import MultimodalEncoder


class BaseTrainer(StageTrainer):
    """Next-token loss on `caption [RET]` behind the same prompt that stage 3 and evaluation use.

    Beside it ``word_loss``: the picture's tokens alone name the words of its captions. Without it the language model
    learns the captions' grammar first and looks at no picture for tens of thousands of examples.
    """

    def __init__(
        self,
        encoder: MultimodalEncoder,
        arguments: TrainingArguments,
        examples: Sequence[CaptionExample],
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, arguments, examples, **kwargs)
        self._rarity = self._word_rarity(examples)
        self._picture_tokens: torch.Tensor | None = None
        encoder.base_model.model.visual.merger.register_forward_hook(self._keep)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        # A saved Qwen-VL carries the hub's older parameter names. Trainer would load them into the module as they
        # are, match none, and go on from untrained weights without a word; load_model translates them.
        target: Any = self.model if model is None else model
        saved = load_model(type(target), resume_from_checkpoint, dtype=target.dtype)
        target.load_state_dict(saved.state_dict())

    def loss(self, examples: list[CaptionExample], model: torch.nn.Module) -> torch.Tensor:
        encoder = self.encoder
        captions = [self.draw(example.key).choice(example.captions) for example in examples]
        completions = [[*self._ids(caption), encoder.ret_id] for caption in captions]
        prompts = encoder.prepare([example.item for example in examples])
        batch, mask = encoder.append(prompts, completions, ret=True)
        width = max(map(len, completions))
        logits = encoder.token_logits(encoder.hidden_states(batch, model)[:, -width - 1 : -1])
        targets = batch["input_ids"][:, -width:].masked_fill(~mask[:, -width:], -100)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        if "image_grid_thw" in batch:
            words = self._word_loss([e for e in examples if e.item["image"]], batch["image_grid_thw"])
            self.record(word_loss=words)
            loss = loss + words
        return loss

    def _word_loss(self, examples: list[CaptionExample], grid: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the captions' words, weighted by rarity, under the picture's tokens read as words.

        A word's score is the log-sum-exp over the picture's tokens of their product with its embedding, so that one
        place of the picture suffices for it.
        """
        assert self._picture_tokens is not None
        embedding = self.encoder.base_model.get_input_embeddings().weight
        sizes = (grid.prod(-1) // self.encoder.base_model.config.vision_config.spatial_merge_size**2).tolist()
        # float32: behind autocast the tower's tokens are half precision, and the embedding is not
        scores = F.layer_norm(self._picture_tokens.float(), embedding.shape[-1:]) @ embedding.float().T
        pooled = torch.stack([part.logsumexp(0) for part in scores.split(sizes)])
        weights = torch.zeros_like(pooled)
        for row, example in enumerate(examples):
            ids = sorted({token for caption in example.captions for token in self._ids(caption)})
            weights[row, ids] = self._rarity[ids].to(weights)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)
        return -(weights * pooled.log_softmax(-1)).sum(-1).mean()

    def _word_rarity(self, examples: Sequence[CaptionExample]) -> torch.Tensor:
        """log(captions / captions with the token) for every token of the vocabulary."""
        counts: Counter[int] = Counter()
        captions = [caption for example in examples for caption in example.captions]
        for caption in captions:
            counts.update(set(self._ids(caption)))
        rarity = torch.zeros(self.encoder.base_model.get_input_embeddings().weight.shape[0])
        for token, count in counts.items():
            rarity[token] = math.log(len(captions) / count)
        return rarity

    def _ids(self, caption: str) -> list[int]:
        return self.encoder.tokenizer.encode(caption, add_special_tokens=False)

    def _keep(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._picture_tokens = output
