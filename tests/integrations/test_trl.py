"""The reward in TRL: a real GRPOTrainer on a small text model built offline, and the function by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from elva.integrations.trl import ELVAReward
from elva.losses import elva_reward
from elva.models import tiny

CAPTIONS = ["a red cat on a mat", "a blue dog by a tree", "a green bird in a bush", "a pink car on a hill"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def table(texts: list[str]) -> torch.Tensor:
    """A fixed embedding of every text: counts of its letters."""
    return torch.tensor([[float(text.count(chr(97 + i))) + 0.1 for i in range(26)] for text in texts])


def expected(query: str, positive: str, negatives: list[str], **options) -> float:
    rows = table([query, positive, *negatives])
    return float(elva_reward(rows[0], rows[1], rows[2:], **options))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A saved Qwen2 of two layers, and its tokenizer with a chat template."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tiny.train_tokenizer(CAPTIONS * 4)
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    path = tmp_path_factory.mktemp("policy")
    Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("conversational", [False, True])
def test_grpo_trainer_runs_on_the_reward(policy, conversational, tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'elva[trl]'")
    from datasets import Dataset

    calls = []

    class Recorded(ELVAReward):
        def __call__(self, prompts, completions, completion_ids=None, **columns):
            rewards = super().__call__(prompts, completions, completion_ids, **columns)
            calls.append((prompts, completions, columns["positive"], columns["negatives"], rewards))
            return rewards

    prompts = [f"Describe {caption}:" for caption in CAPTIONS]
    rows = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": p}] for p in prompts] if conversational else prompts,
            "positive": CAPTIONS,
            "negatives": [[c for c in CAPTIONS if c != own][: 1 + i % 3] for i, own in enumerate(CAPTIONS)],
        }
    )
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        beta=0.2,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=0,
    )
    trainer = trl.GRPOTrainer(str(policy), Recorded(table, delta=0.2), arguments, train_dataset=rows)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()

    def text(value):
        return value if isinstance(value, str) else value[0]["content"]

    join = "\n" if conversational else ""
    assert len(calls) == 2
    for asked, written, positive, negatives, rewards in calls:
        assert isinstance(asked[0], list) is isinstance(written[0], list) is conversational
        assert len(rewards) == 4 and all(math.isfinite(reward) for reward in rewards)
        for p, c, own, others, reward in zip(asked, written, positive, negatives, rewards, strict=True):
            assert reward == pytest.approx(
                expected(text(p) + join + text(c), own, others, delta=0.2), abs=1e-6
            )
        assert len(set(rewards)) > 1, "the completions of the group earn the same: nothing to learn"
    logged = [line["rewards/Recorded/mean"] for line in trainer.state.log_history if "loss" in line]
    assert logged == pytest.approx([sum(call[-1]) / 4 for call in calls], abs=1e-6)
    assert any(not torch.equal(p, old) for p, old in zip(trainer.model.parameters(), before, strict=True))


def test_rows_of_different_lengths_and_without_a_positive():
    reward = ELVAReward(table)
    found = reward(
        ["ab", "cd", "ef"],
        ["cc", "dd", "ff"],
        positive=["abc", None, "eff"],
        negatives=[["xyz", "abd"], ["never read"], []],
    )
    assert found[1] is None
    assert found[0] == pytest.approx(expected("abcc", "abc", ["xyz", "abd"]), abs=1e-6)
    alone = torch.nn.functional.cosine_similarity(*table(["efff", "eff"]).unsqueeze(1))
    assert found[2] == pytest.approx(0.6 * float(alone), abs=1e-6)
    assert reward(["ab"], ["c"], positive=[None], negatives=[[]]) == [None]


def test_rows_of_another_data_set_have_neither_column():
    found = ELVAReward(table)(
        ["ab", "cd"], ["cc", "dd"], positive=["abc", None], negatives=[np.array(["xyz", "abd"]), None]
    )
    assert found == [pytest.approx(expected("abcc", "abc", ["xyz", "abd"]), abs=1e-6), None]


def test_all_rows_without_negatives():
    found = ELVAReward(table)(["ab", "ef"], ["cc", "ff"], positive=["abc", "eff"], negatives=[[], []])
    for reward, (query, positive) in zip(found, [("abcc", "abc"), ("efff", "eff")], strict=True):
        cosine = torch.nn.functional.cosine_similarity(*table([query, positive]).unsqueeze(1))
        assert reward == pytest.approx(0.6 * float(cosine), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "name"),
    [("ab", r"prompts\[0\] with its completion"), ("pos", r"positive\[1\]"), ("neg", r"negatives\[1\]\[0\]")],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_is_named(text, name, value):
    def embed(texts):
        return torch.where(torch.tensor([[t == text] for t in texts]), value, table(texts))

    columns = {"positive": ["x", "pos"], "negatives": [["y"], ["neg"]]}
    with pytest.raises(ValueError, match=f"embed: 1 of 6 embeddings are not finite, e.g. that of {name};"):
        ELVAReward(embed)(["a", "c"], ["b", "d"], **columns)


def test_captions_and_completions_that_look_like_paths_are_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 48), "red").save("mug.png")
    encoder = tiny.create(CAPTIONS * 2)
    columns = {"positive": ["mug.png"], "negatives": [["absent.jpg", {"image": "mug.png"}]]}
    found = ELVAReward(encoder)(["a mug:"], ["mug.png"], **columns)
    inputs = [{"text": text} for text in ("a mug:mug.png", "mug.png", "absent.jpg")]
    query, own, *negatives = encoder.encode([*inputs, {"image": "mug.png"}])
    assert found == pytest.approx([float(elva_reward(query, own, torch.stack(negatives)))], abs=1e-5)
    assert ELVAReward(encoder.encode)(["a mug:"], ["mug.png"], **columns) == pytest.approx(found, abs=1e-5)

    class Sentences:
        modalities = ("text", "image")

        def encode(self, inputs):
            assert all(isinstance(value, dict) for value in inputs)
            return table([value.get("text", "") for value in inputs])

    assert ELVAReward(Sentences())(["a"], ["b"], **columns)[0] is not None


PLACE = {"type": "image", "image": None, "text": None}


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize(
    "content", [[PLACE, {"type": "text", "text": "a red", "image": None}], "a red"], ids=["place", "text"]
)
def test_a_picture_that_stands_in_a_column_is_the_prompts(column, content):
    red, blue = (Image.new("RGB", (48, 48), colour) for colour in ("red", "blue"))
    seen = []

    def embed(inputs):
        seen.extend(inputs)
        return torch.rand(len(inputs), 3)

    pictures = [red, blue] if column == "image" else [[red], [blue]]
    prompts = [[{"role": "user", "content": content}]] * 2
    written = [[{"role": "assistant", "content": "cat"}]] * 2
    ELVAReward(embed)(prompts, written, positive=["x", "y"], negatives=[[], []], **{column: pictures})
    assert seen[:2] == [{"text": "a red\ncat", "image": red}, {"text": "a red\ncat", "image": blue}]


def test_a_picture_already_in_the_message_is_not_taken_twice():
    red = Image.new("RGB", (48, 48), "red")
    seen = []

    def embed(inputs):
        seen.extend(inputs)
        return torch.rand(len(inputs), 3)

    prompt = [{"role": "user", "content": [{"type": "image", "image": red}]}]
    ELVAReward(embed)([prompt], [[]], positive=["x"], negatives=[[]], images=[[red]])
    assert seen[0] == {"text": "", "image": red}


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (
            [PLACE],
            {},
            "1 places for pictures and 0 pictures in the columns image and images, expected one for each",
        ),
        ([PLACE], {"images": [["a", "b"]]}, "1 places for pictures and 2 pictures in the columns"),
        ([PLACE] * 2, {"images": [["a", "b"]]}, "2 pictures given, expected at most one"),
        (
            [{"type": "image_url", "image_url": "x"}],
            {},
            "a part of type 'image_url' with type, image_url given",
        ),
        ([{"type": "image", "url": "http://x"}], {}, "a part of type 'image' with type, url given"),
        ([PLACE], {"image": ["a", "b"]}, "image: 2 rows given, expected 1"),
    ],
)
def test_pictures_that_cannot_be_placed_are_named(content, columns, message):
    prompt = [{"role": "user", "content": content}]
    with pytest.raises(ValueError, match=message):
        ELVAReward(table)([prompt], [[]], positive=["x"], negatives=[["y"]], **columns)


def test_a_candidate_is_embedded_once():
    seen = []

    def embed(texts):
        seen.extend(texts)
        return table(texts).numpy()

    ELVAReward(embed)(["ab"] * 3, ["c", "d", "e"], positive=["abc"] * 3, negatives=[["xyz", "abd"]] * 3)
    assert seen == ["abc", "abd", "abe", "abc", "xyz", "abd"]


def test_messages_with_a_picture_reach_the_encoder_as_one_input():
    encoder = tiny.create(CAPTIONS * 2)
    picture, other = (Image.new("RGB", (48, 48), colour) for colour in ("red", "blue"))
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "a red"}]},
    ]
    written = [{"role": "assistant", "content": "cat"}]
    found = ELVAReward(encoder)(
        [prompt], [written], positive=[{"image": picture}], negatives=[[{"image": other}]]
    )
    query, own, negative = encoder.encode(
        [{"text": "a red\ncat", "image": picture}, {"image": picture}, {"image": other}]
    )
    assert found == pytest.approx([float(elva_reward(query, own, negative[None]))], abs=1e-5)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"negatives": [["b"]]}, ValueError, "positive: the data set has no such column"),
        ({"positive": ["a"]}, ValueError, "negatives: the data set has no such column"),
        ({"positive": ["a", "b"], "negatives": [["c"]]}, ValueError, "positive: 2 rows given, expected 1"),
        ({"positive": ["a"], "negatives": ["bc"]}, TypeError, r"negatives\[0\]: str given, expected a list"),
    ],
)
def test_columns_that_cannot_be_used_are_named(columns, error, message):
    with pytest.raises(error, match=message):
        ELVAReward(table)(["p"], ["c"], **columns)


def test_other_bad_input_is_named():
    columns = {"positive": ["a"], "negatives": [["b"]]}
    with pytest.raises(TypeError, match="embed: int given, expected a function or an object with encode"):
        ELVAReward(3)
    with pytest.raises(TypeError, match=r"completions\[0\]: str given, expected a str or a list of messages"):
        ELVAReward(table)([[{"role": "user", "content": "a"}]], ["c"], **columns)
    with pytest.raises(ValueError, match=r"embed: an embedding of shape \[1, 26\] for 3 inputs"):
        ELVAReward(lambda texts: table(texts[:1]))(["p"], ["c"], **columns)
    two = [{"type": "image", "image": Image.new("RGB", (8, 8))}] * 2
    with pytest.raises(ValueError, match=r"prompts\[0\]: 2 pictures given"):
        ELVAReward(table)([[{"role": "user", "content": two}]], [[]], **columns)
