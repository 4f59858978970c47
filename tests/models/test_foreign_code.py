"""Code that a checkpoint brings is not run, whatever somebody types, unless the caller trusts it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from elva.data.mrbench.checkpoint import CheckpointJudge
from elva.models import MultimodalEncoder, tiny

CODE = """
from pathlib import Path
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

class Config(Qwen2VLConfig): pass
class Model(Qwen2VLForConditionalGeneration): pass
class Tokenizer(Qwen2Tokenizer): pass
class Processor(Qwen2VLImageProcessorPil): pass

Path({mark!r}).touch()
"""
FILES = {
    "config": (
        "config.json",
        {"auto_map": {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}},
    ),
    "model": (
        "config.json",
        {
            "model_type": "own",
            "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"},
        },
    ),
    "tokenizer": (
        "tokenizer_config.json",
        {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]},
        },
    ),
    "image processor": (
        "preprocessor_config.json",
        {"image_processor_type": "OwnProcessor", "auto_map": {"AutoImageProcessor": "own.Processor"}},
    ),
    "attention": ("config.json", {"_attn_implementation": "somebody/kernel"}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("code") / "model"
    tiny.create(["a red cat", "two dogs"] * 4).save_pretrained(path)
    return path


@pytest.fixture
def make(saved, tmp_path, monkeypatch):
    """A checkpoint with code, which leaves a mark where it is run; on standard input somebody says yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def change(part: str) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(saved, folder)
        file, values = FILES[part]
        settings = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**settings, **values}))
        (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
        return folder

    return change


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize(
    "load", [MultimodalEncoder.from_pretrained, CheckpointJudge], ids=["encoder", "judge"]
)
def test_a_checkpoints_code_is_not_run(part, load, make, tmp_path):
    folder = make(part)
    try:
        load(str(folder))
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    assert not (tmp_path / "ran").exists()
    assert sys.stdin.read() == "y\n" * 9, "somebody was asked"


def test_what_needs_it_says_how_to_trust(make, tmp_path):
    folder = make("image processor")
    with pytest.raises(ValueError) as error:
        MultimodalEncoder.from_pretrained(folder)
    assert str(error.value) == (
        f"{folder}: needs code of its own for its configuration, tokenizer or image processor, which is not run; if "
        "you trust it, load it with MultimodalEncoder.from_pretrained(…, trust_remote_code=True)"
    )
    loaded = MultimodalEncoder.from_pretrained(folder, trust_remote_code=True, device="cpu")
    assert (tmp_path / "ran").exists()
    assert loaded.encode(["a red cat"]).isfinite().all()
