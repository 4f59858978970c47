"""Stage configurations: dataclasses read from YAML, with `--set key=value` on top."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from elva.training.limits import SETTINGS, expectation

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+$")


@dataclass
class LoraSettings:
    """LoRA on the language model's linear layers (PEFT). Defaults follow LamRA's stage 1 (docs/method.md)."""

    r: int = 64
    alpha: int = 128
    dropout: float = 0.05


@dataclass
class ContrastiveLossSettings:
    """InfoNCE of stages 1 and 2. `temperature` is τ."""

    temperature: float = 0.05
    bidirectional: bool = False


@dataclass
class NegativeSettings:
    """Balanced negatives (docs/method.md): filtered hard ones, mined with the stage's starting model.

    Candidates scoring above `max_score`, or above the positive's score minus `margin`, are dropped
    as suspected false negatives; the next `n_hard` are kept. `n_random` are drawn from the pool.
    """

    n_hard: int = 0
    n_random: int = 0
    max_score: float | None = None
    margin: float | None = None
    instances: int | None = None
    pool_limit: int | None = None


@dataclass
class RewardSettings:
    """The paper's reward (docs/method.md): α, ε, δ, γ."""

    alpha: float = 0.4
    epsilon: float = 0.6
    delta: float = 0.1
    gamma: float = 0.5
    normalize_gamma: bool = True
    clamp_negative_weight: bool = False


@dataclass
class SurrogateSettings:
    """The smooth ranking and margin loss of `rl.gradient: surrogate` (see `elva.losses.ELVALoss`)."""

    weight: float = 1.0
    temperature: float = 0.05
    margin_temperature: float = 0.05
    tier_weight: float = 0.3


@dataclass
class RolloutSettings:
    """Stage 3. Names and defaults of clip, KL and sampling are TRL's; G = 8 and β = 0.2 are the paper's.

    `length_penalty`: taken off the reward of a summary of `max_completion_length` tokens, less off shorter ones.
    `step`: `plain` runs every rollout as a sequence of its own (slow; what `fast` is tested against).
    `micro_batch_tokens`: tokens that `step: fast` runs together; memory grows with it.
    `use_vllm`: summaries are written by vLLM in this process (needs the package and a GPU; `step: fast` only).
    """

    num_generations: int = 8
    max_completion_length: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    beta: float = 0.2
    epsilon: float = 0.2
    epsilon_high: float | None = None
    scale_rewards: str = "group"
    candidates: str = "generate"
    gradient: str = "score"
    credit: str = "rollout"
    random_negatives: str = "pool"
    length_penalty: float = 0.0
    step: str = "fast"
    micro_batch_tokens: int = 16384
    use_vllm: bool = False


@dataclass
class StageConfig:
    """What every stage needs: where it starts, what it reads, where it writes, and HF Trainer's settings.

    `trainer` takes the fields of `transformers.TrainingArguments` that have to do with training (with
    `save_strategy: no` a run that was killed begins anew). `vision_cache`: a directory that keeps the frozen vision
    tower's features, for later epochs and other runs.
    """

    model: str
    output: str
    data: str
    seed: int = 0
    attn_implementation: str = "auto"
    vision_cache: str | None = None
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass
class BaseConfig(StageConfig):
    """Captioner pre-training of a small preset (`model: tiny` or `small`): all weights are trained."""

    image_size: int = 96


@dataclass
class TextConfig(StageConfig):
    """Stage 1: InfoNCE on NLI triplets, or on the text-to-text pairs of an M-BEIR directory."""

    lora: LoraSettings = field(default_factory=LoraSettings)
    loss: ContrastiveLossSettings = field(default_factory=ContrastiveLossSettings)
    use_negatives: bool = False


@dataclass
class InstructConfig(StageConfig):
    """Stage 2: InfoNCE on M-BEIR pairs. `summary_probability` is the share of steps whose queries are
    read behind a sampled summary, which is how [RET] learns to be read there before stage 3."""

    lora: LoraSettings = field(default_factory=lambda: LoraSettings(r=128, alpha=256))
    loss: ContrastiveLossSettings = field(default_factory=ContrastiveLossSettings)
    negatives: NegativeSettings = field(default_factory=NegativeSettings)
    tasks: list[int] | None = None
    exclude_tasks: list[int] | None = None
    summary_probability: float = 0.0
    max_completion_length: int = 64


@dataclass
class RLConfig(StageConfig):
    """Stage 3: GRPO on the ranking and margin rewards, with a fresh adapter on the merged stage-2 model."""

    lora: LoraSettings = field(default_factory=LoraSettings)
    negatives: NegativeSettings = field(default_factory=lambda: NegativeSettings(n_hard=50, n_random=50))
    tasks: list[int] | None = None
    exclude_tasks: list[int] | None = None
    rl: RolloutSettings = field(default_factory=RolloutSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    surrogate: SurrogateSettings = field(default_factory=SurrogateSettings)


CONFIGS: dict[str, type[StageConfig]] = {
    "base": BaseConfig,
    "text": TextConfig,
    "instruct": InstructConfig,
    "rl": RLConfig,
}
CHOICES = {
    "candidates": ("generate", "shared", "direct"),
    "gradient": ("score", "pathwise", "surrogate"),
    "credit": ("rollout", "item"),
    "random_negatives": ("batch", "pool"),
    "scale_rewards": ("group", "batch", "none"),
    "step": ("fast", "plain"),
}

C = TypeVar("C")


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it and what is expected."""


def load_config(
    stage: str, file: str | Path | None = None, overrides: list[str] | None = None
) -> StageConfig:
    """Read a stage's YAML file and apply `key.sub=value` overrides (values are YAML).

    Raises ConfigError for an unknown stage, key or choice, a value of the wrong type, or a missing one.
    """
    if stage not in CONFIGS:
        raise ConfigError(f"stage: got {stage!r}, expected one of {', '.join(CONFIGS)}")
    values: Any = {}
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {file}: {error}") from error
        values = _yaml(text, f"--config {file}") or {}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: got a {type(values).__name__}, expected a mapping of settings")
    for override in overrides or []:
        set_override(values, override)
    return build(CONFIGS[stage], values)


def build(cls: type[C], values: dict[str, Any], prefix: str = "") -> C:
    """Make the dataclass `cls` from a mapping, checking every key, type and choice."""
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise ConfigError(f"{prefix}{key}: no such setting{hint} (there are: {', '.join(fields)})")
        arguments[key] = _coerce(hints[key], value, f"{prefix}{key}")
    for key, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and key not in arguments:
            raise ConfigError(f"{prefix}{key}: missing; give it in the file or with --set {prefix}{key}=…")
    return cls(**arguments)


def set_override(values: dict[str, Any], override: str) -> None:
    """Apply one `key.sub=value` (the value is YAML) to nested settings, in place. Raises ConfigError."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {_short(override)}: expected key=value")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {_short(override)}: {_short(parent)} is no group of settings")
    values[last] = _yaml(text, f"--set {_short(override)}")


def _yaml(text: str, name: str) -> Any:
    """ConfigError, in one line, for what is no YAML or no value (a number of thousands of digits, a 13th month)."""
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ConfigError(f"{name}: so many brackets in each other are no settings") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: {_short(' '.join(str(error).split()), 300)}") from error


def _short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _coerce(expected: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: got {value!r}, expected a group of settings")
        return build(expected, value, prefix=f"{name}.")
    if isinstance(expected, types.UnionType):
        if value is None:
            return None
        expected = next(option for option in typing.get_args(expected) if option is not type(None))
    origin = typing.get_origin(expected) or expected
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: got {value!r}, expected a group of settings")
        return {key: _number(item) for key, item in value.items()}
    value = _number(value)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, origin) or (origin is not bool and isinstance(value, bool)):
        raise ConfigError(f"{name}: got {value!r}, expected {origin.__name__}")
    if isinstance(value, list):
        return [_coerce(typing.get_args(expected)[0], item, name) for item in value]
    if origin in (int, float) and (wanted := expectation(value, SETTINGS.get(name))):
        raise ConfigError(f"{name}: got {value!r}, expected {wanted}")
    choices = CHOICES.get(name.rsplit(".", 1)[-1])
    if choices and value not in choices:
        raise ConfigError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")
    return value


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as a string; people mean the number."""
    return float(value) if isinstance(value, str) and NUMBER.match(value) else value
