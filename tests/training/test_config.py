import typing

import pytest
from transformers import TrainingArguments

from elva.training.config import CONFIGS, ConfigError, InstructConfig, RLConfig, load_config
from elva.training.limits import SETTINGS, TRAINER

NEEDED = ["model=m", "output=o", "data=d"]


def test_defaults_are_the_papers():
    config = load_config("rl", overrides=NEEDED)
    assert isinstance(config, RLConfig)
    assert (config.rl.num_generations, config.rl.beta) == (8, 0.2)
    assert (config.reward.alpha, config.reward.epsilon) == (0.4, 0.6)
    assert (config.negatives.n_hard, config.negatives.n_random) == (50, 50)
    assert (config.rl.candidates, config.rl.gradient, config.rl.credit, config.rl.random_negatives) == (
        "generate",
        "score",
        "rollout",
        "pool",
    )


def test_file_and_overrides(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "model: m\ndata: d\noutput: o\nloss: {temperature: 0.1}\ntrainer: {learning_rate: 1e-4}\n"
    )
    config = load_config("instruct", file, ["loss.temperature=1", "trainer.max_steps=3", "tasks=[0, 3]"])
    assert isinstance(config, InstructConfig)
    assert config.loss.temperature == 1.0 and isinstance(config.loss.temperature, float)
    assert config.trainer == {"learning_rate": 1e-4, "max_steps": 3}
    assert config.tasks == [0, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=m", "output=o"], "data: missing"),
        ([*NEEDED, "rl.gradent=score"], "did you mean rl.gradient"),
        ([*NEEDED, "rl.gradient=both"], "expected one of score, pathwise, surrogate"),
        ([*NEEDED, "rl.num_generations=many"], "rl.num_generations: got 'many', expected int"),
        ([*NEEDED, "rl.micro_batch_tokens=0"], "rl.micro_batch_tokens: got 0, expected at least 1"),
        ([*NEEDED, "rl=3"], "expected a group of settings"),
        ([*NEEDED, "seed"], "expected key=value"),
        ([*NEEDED, "negatives.n_random=true"], "expected int"),
        ([*NEEDED, "lora.alpha=true"], "lora.alpha: got True, expected int"),
        ([*NEEDED, "lora.r=0"], "lora.r: got 0, expected at least 1"),
        ([*NEEDED, "lora.dropout=1"], "lora.dropout: got 1.0, expected 0 to 0.99"),
        ([*NEEDED, "rl.temperature=1e30"], r"rl.temperature: got 1e\+30, expected 0.01 to 100"),
        ([*NEEDED, "rl.beta=-1"], "rl.beta: got -1.0, expected 0 to 1000"),
        ([*NEEDED, "reward.gamma=.nan"], "reward.gamma: got nan, expected -100 to 100"),
        ([*NEEDED, "negatives.max_score=.nan"], "negatives.max_score: got nan, expected -1 to 1"),
        ([*NEEDED, "negatives.margin=.inf"], "negatives.margin: got inf, expected -2 to 2"),
        ([*NEEDED, "negatives.instances=0"], "negatives.instances: got 0, expected at least 1"),
        ([*NEEDED, "negatives.n_hard=-1"], "negatives.n_hard: got -1, expected at least 0"),
        ([*NEEDED, "exclude_tasks=['0']"], "exclude_tasks: got '0', expected int"),
        ([*NEEDED, "tasks=[0, 9]"], "tasks: got 9, expected 0 to 8"),
        ([*NEEDED, "seed=-1"], "seed: got -1, expected 0 to 4294967295"),
    ],
)
def test_bad_settings_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config("rl", overrides=overrides)


@pytest.mark.parametrize("name", sorted({*SETTINGS, *TRAINER}))
def test_every_limit_is_that_of_a_setting(name):
    """A misspelt limit would limit nothing."""
    group, _, own = name.rpartition(".")
    classes = [typing.get_type_hints(cls) for cls in CONFIGS.values()]
    if group:
        classes = [typing.get_type_hints(hints[group]) for hints in classes if group in hints]
    if name in TRAINER:
        classes = [typing.get_type_hints(TrainingArguments)]
    assert any(own in hints for hints in classes)


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match="nothere"):
        load_config("rl", tmp_path / "nothere.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config("rl", bad)
    bad.write_text("- 1")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config("rl", bad)
    with pytest.raises(ConfigError, match="expected one of base, text, instruct, rl"):
        load_config("sft")


@pytest.mark.parametrize(
    "override",
    [
        "lora=" + "[" * 5000,
        "lora=" + "{a: " * 3000,
        "seed=" + "9" * 5000,
        "seed=2026-13-45",
        "seed={",
        "lora={r: [}",
        "x" * 9000,
        "model=" + "m" * 9000 + ": : [",
        "lora={[1]: 2}",
        "seed=!!python/object/apply:os.system ['true']",
    ],
)
def test_c33_values_that_are_none_are_one_short_line(override, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config("text", overrides=[*NEEDED, override])
    assert str(caught.value).startswith(f"--set {override[:20]}") and len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    name, separator, value = override.partition("=")
    if separator:
        (tmp_path / "c.yaml").write_text(f"{name}: {value}\n")
        with pytest.raises(ConfigError, match=r"--config .*c.yaml: ") as caught:
            load_config("text", tmp_path / "c.yaml")
        assert "\n" not in str(caught.value)
