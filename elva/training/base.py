"""The base stage: a small preset becomes a captioner, standing in for the pretrained MLLM nobody ships with us."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from elva.training.examples import CaptionExample
from elva.training.trainer import StageTrainer


class BaseTrainer(StageTrainer):
    """Next-token loss on `caption [RET]` behind the same prompt that stage 3 and evaluation use."""

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        # A saved Qwen-VL carries the hub's older parameter names. Trainer would load them into the module as they
        # are, match none, and go on from untrained weights without a word; from_pretrained translates them.
        target = model or self.model
        saved = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype)
        target.load_state_dict(saved.state_dict())

    def loss(self, examples: list[CaptionExample], model: torch.nn.Module) -> torch.Tensor:
        encoder = self.encoder
        captions = [self.draw(example.key).choice(example.captions) for example in examples]
        completions = [
            [*encoder.tokenizer.encode(caption, add_special_tokens=False), encoder.ret_id]
            for caption in captions
        ]
        prompts = encoder.prepare([example.item for example in examples])
        batch, mask = encoder.append(prompts, completions, ret=True)
        width = max(map(len, completions))
        logits = encoder.token_logits(encoder.hidden_states(batch, model)[:, -width - 1 : -1])
        targets = batch["input_ids"][:, -width:].masked_fill(~mask[:, -width:], -100)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
