"""MTEB's own evaluator on a made-up retrieval task, offline: its numbers are ours."""

from __future__ import annotations

import builtins
import json

import pytest
import torch
from PIL import Image, ImageDraw

from elva.evaluation.metrics import hit_rate_at, ndcg_at, recall_at
from elva.evaluation.ranks import positive_ranks
from elva.integrations.mteb import ELVAEncoder
from elva.models import MultimodalEncoder, tiny

mteb = pytest.importorskip("mteb", reason="MTEB is not installed: pip install 'elva[mteb]'")

COLOURS = ["red", "green", "blue", "black", "orange", "pink", "yellow", "brown"]
SHAPES = ["ellipse", "rectangle"]
INSTRUCTION = "Find a picture of this:"


def draw(colour: str, shape: str) -> Image.Image:
    image = Image.new("RGB", (48, 48), "white")
    getattr(ImageDraw.Draw(image), shape)((8, 8, 40, 36), fill=colour)
    return image


@pytest.fixture(scope="module")
def encoder() -> MultimodalEncoder:
    return tiny.create([f"a {c} {s}" for c in COLOURS for s in SHAPES] * 2, seed=0)


@pytest.fixture(scope="module")
def collection():
    things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    queries = [f"a {colour} {shape}" for colour, shape in things]
    # The other shape of the colour is relevant too: hit rate and recall then differ.
    relevant = {f"q{i}": {f"d{i}": 1, f"d{i ^ 1}": 1} for i in range(len(things))}
    return queries, [draw(*thing) for thing in things], relevant


@pytest.fixture(scope="module")
def task(collection):
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    queries, pictures, relevant = collection

    class ColouredShapes(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="ColouredShapes",
            description="Drawn shapes by their colour and name.",
            reference=None,
            dataset={"path": "made/up", "revision": "1"},
            type="Any2AnyRetrieval",
            category="t2i",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_5",
            date=("2026-01-01", "2026-01-02"),
            domains=["Constructed"],
            task_subtypes=["Image Text Retrieval"],
            license="cc0-1.0",
            annotations_creators="derived",
            dialect=[],
            modalities=["text", "image"],
            sample_creation="created",
            bibtex_citation="",
            prompt={"query": INSTRUCTION},
        )

        def load_data(self, num_proc=None, **kwargs):
            corpus = Dataset.from_dict({"id": [f"d{i}" for i in range(len(pictures))], "image": pictures})
            asked = Dataset.from_dict({"id": [f"q{i}" for i in range(len(queries))], "text": queries})
            split = {"corpus": corpus, "queries": asked, "relevant_docs": relevant, "top_ranked": None}
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return ColouredShapes()


@pytest.mark.parametrize("mode", ["direct", "generative"])
def test_its_evaluator_and_ours_agree(encoder, task, collection, mode):
    queries, pictures, relevant = collection
    model = ELVAEncoder(encoder, query_mode=mode)
    assert isinstance(model, mteb.models.EncoderProtocol)
    result = mteb.evaluate(
        model, task, cache=None, co2_tracker=False, show_progress_bar=False, encode_kwargs={"batch_size": 5}
    )
    (found,) = result[0].scores["test"]
    ranks = positive_ranks(
        encoder.encode(queries, INSTRUCTION, mode=mode),
        encoder.encode(pictures, mode="direct"),
        [sorted(int(did[1:]) for did in relevant[f"q{row}"]) for row in range(len(queries))],
    )
    hits = {k: float(hit_rate_at(ranks, k).mean()) for k in (1, 3, 5, 10)}
    assert len(set(hits.values())) > 2, "the numbers show nothing"
    for k, expected in hits.items():
        assert found[f"hit_rate_at_{k}"] == pytest.approx(expected, abs=1e-5)
        assert found[f"recall_at_{k}"] == pytest.approx(float(recall_at(ranks, k).mean()), abs=1e-5)
        assert found[f"ndcg_at_{k}"] == pytest.approx(float(ndcg_at(ranks, k).mean()), abs=1e-5)
    assert found["main_score"] == found["hit_rate_at_5"] != found["recall_at_5"]
    assert result.model_name == "local/encoder"


def test_texts_with_pictures_and_the_tasks_instructions(encoder, task):
    from mteb.types import PromptType

    model = ELVAEncoder(encoder)
    batches = [{"text": ["a red cat", "in blue"], "image": [draw("red", "ellipse"), draw("blue", "ellipse")]}]
    items = [{"text": t, "image": i} for t, i in zip(*batches[0].values(), strict=True)]
    where = {"hf_split": "test", "hf_subset": "default", "show_progress_bar": False}

    def encode(kind):
        return model.encode(batches, task_metadata=task.metadata, prompt_type=kind, **where)

    torch.testing.assert_close(encode(PromptType.query), encoder.encode(items, INSTRUCTION))
    torch.testing.assert_close(encode(PromptType.document), encoder.encode(items, mode="direct"))
    embeddings = encode(None)
    torch.testing.assert_close(embeddings, encode(PromptType.query))
    pairs = model.similarity_pairwise(embeddings, embeddings.flip(0))
    torch.testing.assert_close(pairs, model.similarity(embeddings, embeddings)[[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="a batch with audio given, expected 'text' or 'image'"):
        model.encode([{"audio": [1]}], task_metadata=task.metadata, **where)
    with pytest.raises(ValueError, match="precision: 'int8' given"):
        model.encode(batches, task_metadata=task.metadata, precision="int8", **where)


def test_results_are_kept_apart_by_weights_and_settings(encoder, tmp_path):
    path = tmp_path / "rl" / "model"
    encoder.save_pretrained(path)
    model = ELVAEncoder(path, device="cpu")
    assert model.mteb_model_meta.name == "local/rl-model"
    assert model.mteb_model_meta.modalities == ["text", "image"]
    other = tmp_path / "other" / "model"
    tiny.create(["a red ellipse"] * 2, seed=1).save_pretrained(other)
    revisions = {ELVAEncoder(p, device="cpu").mteb_model_meta.revision for p in (path, path, other)}
    assert len(revisions) == 2
    direct = ELVAEncoder(encoder, query_mode="direct", name="me/mine", revision="7").mteb_model_meta
    assert (direct.name, direct.revision) == ("me/mine", "7")
    assert direct.experiment_kwargs != model.mteb_model_meta.experiment_kwargs
    with pytest.raises(ValueError, match="document_mode: 'both' given"):
        ELVAEncoder(encoder, document_mode="both")


@pytest.mark.parametrize("change", ["prompt", "max_pixels", "max_summary_tokens", "bin", "base"])
def test_cached_scores_are_not_those_of_another_model(change, encoder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    path = base = tmp_path / "model"
    encoder.save_pretrained(base)
    if change == "bin":
        torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
        (base / "model.safetensors").unlink()
    if change == "base":
        path = tmp_path / "adapter"
        wrapped = get_peft_model(
            MultimodalEncoder.from_pretrained(base, device="cpu").model, LoraConfig(target_modules=["q_proj"])
        )
        wrapped.peft_config["default"].base_model_name_or_path = str(base)
        wrapped.save_pretrained(path)

    def kept_at():
        meta = ELVAEncoder(path, device="cpu").mteb_model_meta
        return meta.name, meta.revision, meta.experiment_name

    first = kept_at()
    assert kept_at() == first
    if change == "bin":
        weights = torch.load(base / "pytorch_model.bin")
        torch.save({key: value + 1e-3 for key, value in weights.items()}, base / "pytorch_model.bin")
    elif change == "base":
        other = tiny.create([f"a {c} {s}" for c in COLOURS for s in SHAPES] * 2, seed=1)
        other.model.save_pretrained(base)
    else:
        values = {"prompt": "paper", "max_pixels": 2304, "max_summary_tokens": 3}
        settings = json.loads((base / "elva.json").read_text())
        (base / "elva.json").write_text(json.dumps({**settings, change: values[change]}))
    assert kept_at() != first


def test_without_mteb_the_error_names_the_extra(encoder, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("mteb"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"elva\[mteb\]"):
        ELVAEncoder(encoder)
