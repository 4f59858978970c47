"""Stages and arms of the demo, each resumable: base once; then for every seed text → instruct and the arms."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from elva.evaluation.results import Results
from elva.files import atomic_file
from elva.models.files import weight_files
from elva.training.config import CONFIGS, ConfigError, build, set_override
from elva.training.run import run_stage

STAGE_2 = "stage 2"
BASE_SEED = 0
Announce = Callable[[str], None]


@dataclass
class ArmRun:
    """What an arm cost and logged. ``encoded_items``: queries' rollouts and candidates that went through the model."""

    seconds: float
    queries: int
    encoded_items: int


@dataclass
class DemoRun:
    """One seed: results and costs by row of the table, and the learning curves of every stage."""

    seed: int
    results: dict[str, Results]
    arms: dict[str, ArmRun]
    histories: dict[str, list[dict[str, Any]]]
    models: dict[str, Path]


def load_settings(name_or_path: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """`quick`, `proof`, or a YAML file of the same layout; `key.sub=value` overrides on top."""
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        text = Path(name_or_path).read_text(encoding="utf-8")
    else:
        resource = resources.files("elva.demo") / f"{name_or_path}.yaml"
        if not resource.is_file():
            raise ConfigError(f"--settings {name_or_path}: expected quick, proof or a YAML file")
        text = resource.read_text(encoding="utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    known = sorted(settings)
    for override in overrides or []:
        set_override(settings, override)
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigError(
            f"--set {unknown[0]}: no such part of the settings, expected one of {', '.join(known)}"
        )
    return settings


def run_base(settings: dict[str, Any], data: Path, output: Path, announce: Announce) -> Path:
    """Run (or finish) the base stage in ``output``; returns its model's directory.

    One for all seeds: it stands in for the pretrained model, of which a researcher has one too.
    """
    base = settings["base"]
    return Path(_stage(base, "base", base["model"], data, output, BASE_SEED, announce)[0])


def run_seed(
    settings: dict[str, Any], base: Path, data: Path, output: Path, seed: int, announce: Announce
) -> DemoRun:
    """Run (or finish) what one seed trains and measures below ``output``, from the model of :func:`run_base`."""
    results: dict[str, Results] = {}
    arms: dict[str, ArmRun] = {}
    models: dict[str, Path] = {}
    histories = {"base": _history(base.parent)}
    model = str(base)
    for stage in ("text", "instruct"):
        model, histories[stage], _ = _stage(
            settings[stage], stage, model, data, output / stage, seed, announce
        )
    stage_2 = model
    models[STAGE_2] = Path(stage_2)
    results[STAGE_2] = _measure(
        settings["evaluation"], STAGE_2, stage_2, data, output / "instruct", seed, announce
    )
    for name, arm in settings["arms"].items():
        values = copy.deepcopy(arm)
        directory = output / _slug(name)
        model, history, seconds = _stage(
            values, values.pop("stage"), stage_2, data, directory, seed, announce, name
        )
        histories[name] = history
        arms[name] = ArmRun(seconds, _total(history, "queries"), _total(history, "encoded_items"))
        models[name] = Path(model)
        results[name] = _measure(settings["evaluation"], name, model, data, directory, seed, announce)
    return DemoRun(seed, results, arms, histories, models)


def _stage(
    values: dict[str, Any],
    stage: str,
    model: str,
    data: Path,
    output: Path,
    seed: int,
    announce: Announce,
    name: str | None = None,
) -> tuple[str, list[dict[str, Any]], float]:
    config = build(
        CONFIGS[stage], {**values, "model": model, "data": str(data), "output": str(output), "seed": seed}
    )
    record = output / "seconds.json"
    start = time.perf_counter()
    trained = run_stage(config)
    if not record.is_file():
        with atomic_file(record) as temporary:
            temporary.write_text(json.dumps(time.perf_counter() - start), encoding="utf-8")
    seconds = json.loads(record.read_text(encoding="utf-8"))
    history = _history(output)
    announce(f"{name or stage}: {seconds:.0f} s, loss {_first_last(history)}")
    return str(trained), history, seconds


def _history(output: Path) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = json.loads((output / "history.json").read_text(encoding="utf-8"))
    return history


def _measure(
    settings: dict[str, Any],
    name: str,
    model: str,
    data: Path,
    directory: Path,
    seed: int,
    announce: Announce,
) -> Results:
    from elva.evaluation.retrieval import evaluate
    from elva.models.encoder import MultimodalEncoder

    record, asked = directory / "results.json", directory / "evaluation.json"
    question = json.dumps({"settings": settings, "model": _weights(model), "data": str(data)}, sort_keys=True)
    if record.is_file() and asked.is_file() and asked.read_text(encoding="utf-8") == question:
        return Results.from_json(record.read_text(encoding="utf-8"))
    results = evaluate(MultimodalEncoder.from_pretrained(model), data, **settings)
    asked.unlink(missing_ok=True)  # a kill between the two files leaves no answer to the wrong question
    for file, text in ((record, results.to_json()), (asked, question)):
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    announce(f"{name}: measured in {results.seconds:.0f} s")
    return results


def _weights(model: str) -> list[list[Any]]:
    """Which weights: the files' names, sizes and times. A stage writes its model once."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weight_files(model)]


def _total(history: list[dict[str, Any]], figure: str) -> int:
    """Sum over steps of a figure that is logged as its mean since the last log line."""
    total, last = 0.0, 0
    for line in history:
        if figure in line:
            total += line[figure] * (line["step"] - last)
            last = line["step"]
    return round(total)


def _first_last(history: list[dict[str, Any]]) -> str:
    losses = [line["loss"] for line in history if "loss" in line]
    return f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else "not logged"


def _slug(name: str) -> str:
    return (
        "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-").replace("--", "-")
    )
