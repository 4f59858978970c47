"""What the trainers of all stages share: batches of Python examples, deterministic draws, averaged metrics."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from elva.models.adapters import read_adapter, require_adapter
from elva.training.checkpoints import STATE, reading
from elva.training.disk import writing
from elva.training.losses_so_far import LossesSoFar

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder


FIGURES = "elva"
"""Our entry of a checkpoint's trainer_state.json, beside those of Trainer's callbacks."""


class ExampleDataset(Dataset[Any]):
    """A list as a dataset: an example is a pure function of its index, so a resumed run sees the same ones."""

    def __init__(self, examples: Sequence[Any]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


class EpochSampler(Sampler[int]):
    """A shuffle that depends on (seed, epoch) alone. Trainer's own is drawn from the global generator, whose state at
    that moment differs between a run and its resumption: the resumed one would see other examples.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        random.Random(f"{self.seed}:{self.epoch}").shuffle(order)
        return iter(order)


def collate(examples: list[Any]) -> dict[str, list[Any]]:
    return {"examples": examples}


def autocast_dtype(arguments: TrainingArguments) -> torch.dtype | None:
    """The dtype of accelerate's autocast under these settings (or the launcher's); None without mixed precision."""
    dtypes = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}
    return dtypes.get(arguments.mixed_precision)


class BarMetrics(ProgressCallback):
    """Trainer's progress bar with the latest figures behind it, instead of a printed dictionary a line."""

    SHOWN = ("loss", "reward", "reward_std", "kl", "frac_reward_zero_std", "completions/mean_length")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {key: f"{float(logs[key]):.3g}" for key in self.SHOWN if key in logs}
            self.training_bar.set_postfix(shown, refresh=False)


class _AllStepsTaken(Exception):
    """The checkpoint is that of the last step."""


class Resumption(TrainerCallback):
    """Takes up the figures of a checkpoint, once Trainer has read it."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.restore_figures(state.stateful_callbacks.get(FIGURES))
        if state.global_step >= state.max_steps:
            raise _AllStepsTaken


class StageTrainer(Trainer):
    """HF Trainer over an encoder and a list of examples.

    A subclass implements ``loss(examples, model) -> scalar``. Whatever is drawn while training comes from
    ``draw(key)`` or ``generator()``, which depend on (seed, step) alone: a resumed run repeats it exactly.

    Mixed precision is accelerate's for the forwards of its wrapper, and the same for those that the encoder runs itself
    (docs/architecture.md, "Mixed precision").
    """

    def __init__(
        self,
        encoder: MultimodalEncoder,
        arguments: TrainingArguments,
        examples: Sequence[Any],
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.encoder = encoder
        self.examples = examples
        encoder.autocast_dtype = autocast_dtype(arguments)
        self._recorded: dict[str, list[torch.Tensor | float]] = defaultdict(list)
        super().__init__(
            model=encoder.model,
            args=arguments,
            train_dataset=ExampleDataset(examples),
            data_collator=collate,
            callbacks=callbacks,
        )
        self.losses = LossesSoFar(self._mean_over_processes)
        self.add_callback(Resumption(self))
        self.current_gradient_accumulation_steps = 1  # Trainer sets it while it trains
        # compute_loss returns a plain mean over the micro-batch
        self.loss_is_scaled_for_ga = False
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(BarMetrics())

    def loss(self, examples: list[Any], model: torch.nn.Module) -> torch.Tensor:
        raise NotImplementedError

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self.loss(inputs["examples"], model)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss at step {self.state.global_step} is {loss.item()}; lower trainer.learning_rate "
                "or look at the examples of this step"
            )
        return (loss, {}) if return_outputs else loss

    def train(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().train(*arguments, **options)
        except _AllStepsTaken:
            # Trainer would take one step more where the last one does not end an epoch
            self.log({"total_flos": self.state.total_flos, "train_loss": 0.0})
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            return None

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **options)
        self.losses.add(loss)
        return loss

    def draw(self, key: str) -> random.Random:
        """A generator for one example (named by ``key``) at this step."""
        return random.Random(f"{self.args.seed}:{self.state.global_step}:{key}")

    def generator(self, key: str) -> torch.Generator:
        """A torch generator on the encoder's device for this step and process."""
        seed = self.draw(f"{key}:{self.args.process_index}").getrandbits(60)
        return torch.Generator(device=self.encoder.device).manual_seed(seed)

    def record(self, **values: torch.Tensor | float) -> None:
        """Keep figures of this micro-batch, scalars; their mean is logged with the next log line.

        Nobody waits for a tensor's value before that.
        """
        for name, value in values.items():
            kept = value.detach() if isinstance(value, torch.Tensor) else value
            self._recorded[name.replace("__", "/")].append(kept)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        """As Trainer, which only warns of weights that the checkpoint lacks and goes on from untrained ones."""
        if not self.is_fsdp_enabled:
            require_adapter(self.encoder.model, read_adapter(resume_from_checkpoint), resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint, "optimizer.pt or scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint, "rng_state.pth"):
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading(checkpoint, "scaler.pt"):
            scaled = checkpoint is not None and getattr(self.accelerator, "scaler", None) is not None
            if scaled and not (Path(str(checkpoint)) / "scaler.pt").is_file():
                raise FileNotFoundError("there is none")  # Trainer would begin with another scale
            super()._load_scaler(checkpoint)

    def take_recorded(self) -> dict[str, list[float]]:
        """All figures since the last call, one a micro-batch. Waits for the device."""
        found = {name: [float(value) for value in values] for name, values in self._recorded.items()}
        self._recorded.clear()
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            # Trainer's figure leaves out the steps between the last line and the checkpoint it goes on from
            logs["loss"] = self.losses.window(self.state.global_step)
            logs.update({name: fmean(values) for name, values in self.take_recorded().items()})
        if "train_loss" in logs:
            logs["train_loss"] = self.losses.whole(self.state.global_step)
        super().log(logs, start_time)

    def restore_figures(self, kept: dict[str, Any] | None) -> None:
        """Go on from the figures of a checkpoint; without them (a run's begin, an older checkpoint) from here."""
        self._recorded.clear()
        if kept is None:
            self.losses.begin(self.state.global_step)
            return
        with reading(f"checkpoint of step {self.state.global_step}", f"{FIGURES} of {STATE}"):
            self.losses.restore(kept["losses"])
            recorded = {name: [float(value) for value in values] for name, values in kept["recorded"].items()}
        self._recorded.update(recorded)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        recorded = {name: [float(value) for value in values] for name, values in self._recorded.items()}
        kept: Any = self.state.stateful_callbacks
        kept[FIGURES] = {"losses": self.losses.to_json(), "recorded": recorded}
        with writing(Path(str(self.args.output_dir))):
            super()._save_checkpoint(*arguments, **options)

    def _mean_over_processes(self, value: float) -> float:
        if self.args.world_size == 1:
            return value
        return float(self.accelerator.reduce(torch.tensor(value, device=self.args.device), "mean"))

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> EpochSampler:
        return EpochSampler(len(self.examples), self.args.seed)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0
