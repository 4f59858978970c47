"""One Qwen-VL model that embeds texts, pictures and both, with a generated summary or without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elva.files import atomic_directory
from elva.models import adapters, batches, shared_prefix
from elva.models.attention import resolve_attention
from elva.models.batches import Batch
from elva.models.config import CONFIG_FILE, MODES, READS, EncoderConfig, check_choice, read_config
from elva.models.generation import Generated, Sampling, SpecialIds, evaluation_mode, generate
from elva.models.head import Head, head_of
from elva.models.packing import PackedBatch, pack
from elva.models.processing import InputProcessor, join_instructions, parse_inputs
from elva.models.prompts import RET_TOKEN, get_prompt
from elva.models.vision import FrozenVision
from elva.models.vision_store import VisionStore
from elva.progress import track

ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
BANNED_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


class MultimodalEncoder:
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL model as an embedder.

    ``model`` may be wrapped by PEFT after construction; ``base_model`` is what it wraps.
    """

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, config: EncoderConfig | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.config = config or EncoderConfig()
        self._limit_pixels()
        self.ret_id = _register_ret(model, tokenizer)
        self.processor = InputProcessor(tokenizer, image_processor, get_prompt(self.config.prompt))
        self._vision = FrozenVision(self.base_model.model)

    def _limit_pixels(self) -> None:
        limit = self.config.max_pixels
        if limit is not None:
            size = self.image_processor.size
            shortest, longest = min(size["shortest_edge"], limit), min(size["longest_edge"], limit)
            self.image_processor.size = {"shortest_edge": shortest, "longest_edge": longest}

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        attn_implementation: str = "auto",
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
    ) -> MultimodalEncoder:
        """Load a directory written by ``save_pretrained``, or any Qwen-VL checkpoint (directory or hub name).

        A PEFT adapter (``adapter_config.json``) beside or instead of the weights is merged into them. A tokenizer
        without ``[RET]`` gets one. ``read_config`` says what is read of how a retriever of others embeds.
        ``dtype`` None: the checkpoint's own. ``device`` None: a GPU if there is one.
        FileNotFoundError for a path without a directory; ValueError for another architecture or pooling, or an adapter
        that does not fit.
        """
        import transformers
        from transformers.utils import has_file

        name = str(path_or_name)
        _require_directory(name)
        base = adapters.base_of(name)
        weights = base or name
        _require_directory(weights)
        model_config = transformers.AutoConfig.from_pretrained(weights)
        if model_config.model_type not in ARCHITECTURES:
            raise ValueError(
                f"path_or_name: {weights} is a {model_config.model_type!r} model, "
                f"expected one of {', '.join(ARCHITECTURES)}"
            )
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        attention = resolve_attention(attn_implementation, device, dtype or model_config.dtype)
        model = adapters.load_weights(
            getattr(transformers, ARCHITECTURES[model_config.model_type]),
            weights,
            attn_implementation=attention,
            dtype=dtype or "auto",
        )
        # An adapter's own tokenizer may know tokens that its base does not.
        own = next((place for place in (name, weights) if has_file(place, "tokenizer_config.json")), weights)
        tokenizer = transformers.AutoTokenizer.from_pretrained(own)
        if base is not None:
            if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            model = adapters.merge(model, name)
        image_processor = transformers.AutoImageProcessor.from_pretrained(weights)
        settings = read_config(Path(name), *([Path(base)] if base else []))
        return cls(model.to(device).eval(), tokenizer, image_processor, settings)

    def save_pretrained(self, path: str | Path) -> None:
        """Write model, tokenizer, image processor and ``elva.json``; whole or not at all.

        FileExistsError when ``path`` holds something; ValueError while a PEFT adapter is attached.
        """
        if self.base_model is not self.model:
            raise ValueError(
                "model: a PEFT adapter is attached; call merge_adapter() before save_pretrained()"
            )
        with atomic_directory(path) as directory:
            self.model.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)
            self.image_processor.save_pretrained(directory)
            (directory / CONFIG_FILE).write_text(
                json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8"
            )

    def merge_adapter(self) -> None:
        """Merge an attached PEFT adapter (and a trained ``[RET]`` row) into the weights, if there is one."""
        if self.base_model is not self.model:
            self.model = self.model.merge_and_unload()

    @property
    def base_model(self) -> Any:
        """The transformers model, with adapter layers in place if PEFT wraps it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return self.base_model.device

    @property
    def hidden_size(self) -> int:
        return self.base_model.config.text_config.hidden_size

    def cache_vision(self, directory: str | Path) -> None:
        """Keep the frozen vision tower's features in ``directory`` too, one file a picture, for other runs.

        Names hold the content and the tower's weights and precision, so nothing stale is read. Any number of processes
        may share a directory. ValueError where it is a file.
        """
        self._vision.store = VisionStore(directory)

    @property
    def vision_seconds(self) -> float:
        """Seconds that the frozen vision tower has run so far."""
        return self._vision.seconds

    @property
    def _merge_size(self) -> int:
        return self.base_model.config.vision_config.spatial_merge_size

    def encode(
        self,
        inputs: Sequence[Any],
        instruction: str | Sequence[str | None] | None = None,
        mode: str | None = None,
        read: str | None = None,
        batch_size: int = 32,
        show_progress: bool = False,
        return_summaries: bool = False,
    ) -> Any:
        """Embeddings [n, H] float32 on the CPU, L2-normalised, in the order of ``inputs``.

        An input is a str, a path of a picture, a PIL image or ``{"text": …, "image": …}``; ``instruction`` is
        joined in front of the text (one for all, or one each). ``mode`` and ``read`` default to ``config``.
        Summaries are greedy. With ``return_summaries``: (embeddings, list of n str; "" in direct mode).
        Errors name the input by its index.
        """
        mode, read = mode or self.config.mode, read or self.config.read
        check_choice("mode", mode, MODES)
        check_choice("read", read, READS)
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} given, expected at least 1")
        items = join_instructions(parse_inputs(inputs), instruction)
        embeddings = torch.zeros(len(items), self.hidden_size)
        summaries = [""] * len(items)
        # Alike lengths together, longest first: little padding, and a lack of memory shows at once.
        order = sorted(range(len(items)), key=lambda i: (items[i].image is None, -len(items[i].text or "")))
        chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        with evaluation_mode(self.base_model), torch.no_grad():
            for rows in track(chunks, "Encoding", total=len(chunks), show=show_progress):
                batch = self.prepare([items[row] for row in rows])
                if mode == "direct":
                    full, _ = self.append(batch, [[] for _ in rows], ret=True)
                    embeddings[rows] = self.read_embedding(self.hidden_states(full), full, read).cpu()
                    continue
                written = self.generate_summaries(batch)
                embeddings[rows] = written.embeddings(read).cpu()
                for row, ids in zip(rows, written.summaries, strict=True):
                    summaries[row] = self.decode_summary(ids)
        return (embeddings, summaries) if return_summaries else embeddings

    def encode_query(self, inputs: Sequence[Any], instruction: Any = None, **options: Any) -> Any:
        """``encode`` with the default mode of ``config``."""
        return self.encode(inputs, instruction, **options)

    def encode_document(self, inputs: Sequence[Any], instruction: Any = None, **options: Any) -> Any:
        """``encode`` in direct mode unless ``mode`` says otherwise: summaries can hurt candidates."""
        return self.encode(inputs, instruction, **{"mode": "direct", **options})

    def prepare(
        self,
        inputs: Sequence[Any],
        instructions: str | Sequence[str | None] | None = None,
        image_features: bool = True,
    ) -> Batch:
        """The prompts of ``inputs`` up to and with the assistant's header, left-padded, on ``device``.

        Where the vision tower takes no gradient, pictures come as its features, and those of a file are computed once;
        with ``image_features=False`` they come as pixels all the same.
        """
        vision = self._vision if image_features and self._vision.usable else None
        batch = self.processor(inputs, instructions, vision)
        return {key: value.to(self.device) for key, value in batch.items()}

    def append(
        self, batch: Batch, completions: Sequence[Sequence[int]] | Tensor, ret: bool
    ) -> tuple[Batch, Tensor]:
        """Prompt + completion (+ ``[RET]`` where it does not end in one), left-padded again.

        The second value, bool [n, L], is True on the given completion tokens, not on an added ``[RET]``.
        """
        return batches.append(batch, completions, self.tokenizer.pad_token_id, self.ret_id if ret else None)

    def repeat(self, batch: Batch, times: int) -> Batch:
        """Every row ``times`` times, copies side by side, with its pixel values."""
        return batches.repeat(batch, times)

    def select(self, batch: Batch, rows: Sequence[int] | Tensor) -> Batch:
        """The rows numbered in ``rows`` with their pictures, without the padding that all share."""
        return batches.select(batch, rows)

    def hidden_states(self, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """Last hidden state [n, L, H] after the final norm, with gradient.

        ``model``: a wrapper (DDP, FSDP, PEFT, compiled) to call in place of the bare model, so that its hooks
        run. Positions are always given explicitly: the model would otherwise keep them as state between
        batches.
        """
        inputs = {
            **batches.model_inputs(batch, self.hidden_size),
            "position_ids": batches.rope_positions(batch, self._merge_size),
            "use_cache": False,
        }
        if model is None:
            return self.base_model.model(**inputs).last_hidden_state
        return model(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]

    def pack(self, prompts: Batch, completions: Sequence[Sequence[int]], num_generations: int) -> PackedBatch:
        """Prompts of n items, ``num_generations`` completions of each (item-major, none empty), without padding."""
        return pack(prompts, completions, num_generations, self._merge_size)

    def packed_states(self, packed: PackedBatch, model: nn.Module | None = None) -> Tensor:
        """Last hidden state [T, H] of every token, with gradient: ``hidden_states`` for packed batches."""
        shared_prefix.enable(self.base_model)
        inputs = {
            **batches.model_inputs(packed.batch, self.hidden_size),
            "position_ids": packed.positions,
            "use_cache": False,
            shared_prefix.KEYWORD: packed.layout,
        }
        with shared_prefix.packed_forward():
            if model is None:
                return self.base_model.model(**inputs).last_hidden_state[0]
            return model(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states[-1][0]

    def read_packed(self, states: Tensor, packed: PackedBatch) -> Tensor:
        """L2-normalised fp32 state [n·G, H] at (or just before) the token that ends each completion."""
        place = packed.ends
        if self.config.read == "before":
            place = packed.before[packed.ends - packed.layout.prompt_tokens]
        return F.normalize(states[place].float(), dim=-1)

    def read_embedding(self, hidden: Tensor, batch: Batch, read: str | None = None) -> Tensor:
        """L2-normalised fp32 state [n, H] at (or just before) the ``[RET]`` that ends every row."""
        read = read or self.config.read
        check_choice("read", read, READS)
        if not bool((batch["input_ids"][:, -1] == self.ret_id).all()):
            raise ValueError("batch: a row does not end in [RET]; build it with append(…, ret=True)")
        return F.normalize(hidden[:, -1 if read == "at" else -2].float(), dim=-1)

    def head(self) -> Head:
        """The language model's head, with the rows that an adapter trains: what `linear_logprob` takes."""
        return head_of(self.base_model)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H]: the language model's head."""
        return self.base_model.get_output_embeddings()(hidden)

    def generate_summaries(
        self,
        batch: Batch,
        num_generations: int = 1,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Generated:
        """n · ``num_generations`` summaries (item-major), ids ending in ``[RET]``, and the states there.

        ``[RET]`` is forced (``sampled_ret`` False) after an end-of-turn token, which is dropped, or after
        ``max_new_tokens`` tokens (default: ``config.max_summary_tokens``). Picture, padding and turn tokens
        are never produced.
        """
        with evaluation_mode(self.base_model):
            return generate(
                self.base_model.model,
                self.base_model.get_output_embeddings(),
                batch,
                merge_size=self._merge_size,
                special=self._special_ids(),
                sampling=Sampling(do_sample, temperature, top_p, top_k),
                max_new_tokens=self.config.max_summary_tokens if max_new_tokens is None else max_new_tokens,
                num_generations=num_generations,
                generator=generator,
            )

    def _special_ids(self) -> SpecialIds:
        known = self.tokenizer.get_vocab()
        stop = known["<|im_end|>"]
        beyond = range(len(self.tokenizer), self.base_model.get_output_embeddings().weight.shape[0])
        banned = [known[token] for token in BANNED_TOKENS if token in known]
        return SpecialIds(self.ret_id, (stop,), (*banned, *beyond))

    def decode_summary(self, ids: Sequence[int]) -> str:
        """The summary's text, without ``[RET]`` or other special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def _require_directory(name: str) -> None:
    """A hub name is `name` or `owner/name`; for anything else the hub would answer with advice that misleads."""
    looks_like_path = name.count("/") > 1 or name.startswith((".", "/", "~"))
    if looks_like_path and not Path(name).is_dir():
        raise FileNotFoundError(
            f"path_or_name: no model directory at {name}, expected one that save_pretrained or an earlier stage wrote, "
            "or a name on the Hugging Face Hub"
        )


def _register_ret(model: Any, tokenizer: Any) -> int:
    """The id of ``[RET]``; a new one's rows start as the mean of the known tokens' rows."""
    known = len(tokenizer)
    found = tokenizer.get_vocab().get(RET_TOKEN)
    if found is not None:
        return found
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(RET_TOKEN, special=True, normalized=False)], special_tokens=True)
    ret_id = tokenizer.convert_tokens_to_ids(RET_TOKEN)
    if ret_id >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(ret_id + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[ret_id] = layer.weight[:known].float().mean(0).to(layer.weight.dtype)
    return ret_id
