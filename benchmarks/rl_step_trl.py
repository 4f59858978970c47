"""A step of stage 3 against TRL's GRPOTrainer, for the part that TRL covers: sample G completions, score, learn.

    python -m benchmarks.rl_step_trl

The setting that is fair to both: the same untrained Qwen2-VL with the same randomised LoRA weights, the same text-only
prompts (TRL takes pictures only through a processor that needs torchvision), G and lengths, β > 0, one update a batch,
which spares TRL the pass for old log-probabilities. TRL's reward is a number made of token ids; ours is the ranking
reward, read from the rollout's states. On TRL's sampled tokens and advantages both must have the same loss.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.rl_problem import Setting, make_problem
from benchmarks.step_pair import whole_step
from elva.models.encoder import MultimodalEncoder
from elva.training.fast_step import FastStep, Share
from elva.training.rl import RLTrainer
from elva.training.rollouts import Rollouts

NAMES = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="timed steps of each")] = 3,
    negatives: Annotated[int, typer.Option(min=0, help="N + 2 prompts a step")] = 14,
) -> None:
    """Seconds of a step, TRL over ours."""
    setting = Setting(negatives=negatives, image_size=0)
    with tempfile.TemporaryDirectory() as folder:
        problem = make_problem(setting, Path(folder), device="cpu")
        ours, items = problem.trainer, problem.items
        plain_head(ours.encoder)
        ours_seconds = [sum(whole_step(problem, "fast")[0].values()) for _ in range(rounds + 1)][1:]
        trl = run_trl(ours, items, setting, rounds + 1, folder)
        found, expected = policy_loss(ours, items, trl.seen), trl.losses[-1]
    if abs(found - expected) > 1e-4 * max(1.0, abs(expected)):
        raise SystemExit(f"the losses differ on the same tokens: TRL {expected}, ours {found}")
    theirs = trl.seconds[1:]
    print(
        f"seconds of a step: TRL {_spread(theirs)}, ours {_spread(ours_seconds)}; loss {expected:.6f} and {found:.6f}"
    )
    print(f"step_ratio={statistics.median(theirs) / statistics.median(ours_seconds):.3g}")


def plain_head(encoder: MultimodalEncoder) -> None:
    """TRL reads ``weight`` and ``bias`` of the head itself, past PEFT's trained [RET] row: leave that row as it was."""
    head = encoder.base_model.get_output_embeddings()
    head.bias = None
    with torch.no_grad():
        for name, parameter in encoder.model.named_parameters():
            if "trainable_tokens" in name:
                parameter.copy_(head.weight[[encoder.ret_id]])


def run_trl(ours: RLTrainer, items: list[dict[str, Any]], setting: Setting, steps: int, folder: str) -> Any:
    """TRL's trainer after some steps without learning: ``seconds``, ``losses`` and ``seen``, the last inputs."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Watched(GRPOTrainer):  # type: ignore[misc, unused-ignore]
        seconds: list[float]
        losses: list[float]
        seen: dict[str, torch.Tensor]

        def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
            start = time.perf_counter()
            loss: torch.Tensor = super().training_step(*arguments, **options)
            self.seconds.append(time.perf_counter() - start)
            return loss

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            self.losses.append(float(loss.detach()))
            self.seen = inputs
            return loss

    encoder = ours.encoder
    prompts = [encoder.processor.prompt.render(item["text"]) for item in items]
    config = GRPOConfig(
        output_dir=folder,
        learning_rate=0.0,
        max_steps=steps,
        per_device_train_batch_size=len(items) * setting.num_generations,
        num_generations=setting.num_generations,
        max_completion_length=setting.completion_tokens - 1,
        beta=ours.config.rl.beta,
        loss_type="grpo",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = Watched(
        model=encoder.model,
        reward_funcs=_reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=encoder.tokenizer,
    )
    # TRL takes the given adapter as it is for the reference; ours is the model without one, as TRL's of a new adapter
    encoder.model.delete_adapter("ref")
    trainer.seconds, trainer.losses = [], []
    trainer.train()
    return trainer


def _reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [float(sum(ids) % 7) for ids in completion_ids]


def policy_loss(ours: RLTrainer, items: list[dict[str, Any]], seen: dict[str, torch.Tensor]) -> float:
    """Our policy term on TRL's prompts, completions and advantages."""
    step = FastStep(ours)
    generations = ours.config.rl.num_generations
    # TRL shuffles; rollouts of one prompt side by side again
    order = sorted(range(len(seen["prompt_ids"])), key=lambda row: seen["prompt_ids"][row].tolist())
    seen = {name: seen[name][order] for name in NAMES}
    masks = seen["completion_mask"].bool()
    # what TRL sampled, and our [RET] behind it, which was not sampled and counts for nothing
    completions = [
        [*ids[mask].tolist(), ours.encoder.ret_id]
        for ids, mask in zip(seen["completion_ids"], masks, strict=True)
    ]
    rows = range(0, len(completions), generations)
    prompts = {
        "input_ids": seen["prompt_ids"][rows],
        "attention_mask": seen["prompt_mask"][rows],
        "mm_token_type_ids": torch.zeros_like(seen["prompt_ids"][rows]),
    }
    nothing = torch.empty(len(rows), generations, 0)
    rollouts = Rollouts(prompts, completions, [False] * len(completions), generations, nothing)
    share = Share(rollouts, seen["advantages"].unflatten(0, (-1, generations)), None)
    ours.encoder.model.train()
    with torch.no_grad():
        return sum(float(step._run(piece, ours.encoder.model)[0]) for piece in step._pieces(share))


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    typer.run(main)
