"""What the numbers among the settings may be: outside of these a run trains nothing, or nothing that was meant."""

from __future__ import annotations

import math

LARGEST_SEED = 2**32 - 1
TEMPERATURES = (1e-4, 100.0)

SETTINGS: dict[str, tuple[float, float]] = {
    "seed": (0, LARGEST_SEED),
    "lora.r": (1, math.inf),
    "lora.alpha": (1, math.inf),
    "lora.dropout": (0, 0.99),
    "loss.temperature": TEMPERATURES,
    "negatives.n_hard": (0, math.inf),
    "negatives.n_random": (0, math.inf),
    "negatives.max_score": (-1, 1),
    "negatives.margin": (-2, 2),
    "negatives.instances": (1, math.inf),
    "negatives.pool_limit": (1, math.inf),
    "tasks": (0, 8),
    "exclude_tasks": (0, 8),
    "summary_probability": (0, 1),
    "max_completion_length": (1, math.inf),
    "reward.alpha": (-100, 100),
    "reward.epsilon": (-100, 100),
    "reward.delta": (-2, 2),
    "reward.gamma": (-100, 100),
    "surrogate.weight": (1e-6, 1e6),
    "surrogate.temperature": TEMPERATURES,
    "surrogate.margin_temperature": TEMPERATURES,
    "surrogate.tier_weight": (0, 1e6),
    "rl.num_generations": (1, math.inf),
    "rl.max_completion_length": (1, math.inf),
    "rl.temperature": (1e-2, 100),
    "rl.top_p": (1e-6, 1),
    "rl.top_k": (0, math.inf),
    "rl.beta": (0, 1e3),
    "rl.epsilon": (1e-6, 1 - 1e-6),
    "rl.epsilon_high": (1e-6, 1e3),
    "rl.length_penalty": (-100, 100),
    "rl.micro_batch_tokens": (1, math.inf),
}
TRAINER: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-10, 10),
    "num_train_epochs": (0, math.inf),
    "max_steps": (-1, math.inf),
    "per_device_train_batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "warmup_steps": (0, math.inf),
    "weight_decay": (0, 100),
    "adam_beta1": (0, 1 - 1e-9),
    "adam_beta2": (0, 1 - 1e-9),
    "adam_epsilon": (0, 1),
    "max_grad_norm": (0, math.inf),
    "logging_steps": (1e-6, math.inf),
    "save_steps": (1e-6, math.inf),
    "save_total_limit": (1, math.inf),
    "dataloader_num_workers": (0, math.inf),
    "dataloader_prefetch_factor": (1, math.inf),
    "torch_empty_cache_steps": (1, math.inf),
    "neftune_noise_alpha": (0, math.inf),
    "ddp_timeout": (1, math.inf),
}


def expectation(value: float, limits: tuple[float, float] | None) -> str | None:
    """What a number ought to be, in words, where it is none such: finite, and within the limits. None where it is."""
    low, high = limits or (-math.inf, math.inf)
    if math.isfinite(value) and low <= value <= high:
        return None
    if low == -math.inf:
        return "a finite number"
    return f"at least {low:g}" if high == math.inf else f"{low:.10g} to {high:.10g}"
