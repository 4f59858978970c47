"""One Qwen-VL model that embeds texts, pictures and both, with a generated summary or without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elva.files import atomic_directory
from elva.models import batches, shared_prefix
from elva.models.adapters import merged
from elva.models.batches import Batch
from elva.models.checkpoint import load, register_ret
from elva.models.config import CONFIG_FILE, MODES, READS, EncoderConfig, check_choice
from elva.models.features import forward_inputs
from elva.models.generation import Generated, Sampling, SpecialIds, evaluation_mode, generate, special_ids
from elva.models.head import Head, head_of
from elva.models.image_processor import image_backend
from elva.models.lengths import longest_prompt, split_by_length
from elva.models.packing import PackedBatch, pack
from elva.models.processing import InputProcessor, join_instructions, parse_inputs
from elva.models.prompts import get_prompt
from elva.models.states import final_states, require_finite
from elva.models.vision import FrozenVision
from elva.models.vision_store import VisionStore
from elva.progress import track
from elva.stopwatch import Stopwatch


class MultimodalEncoder:
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL model as an embedder.

    ``model`` may be wrapped by PEFT after construction; ``base_model`` is what it wraps.

    ``autocast_dtype``: the dtype of products in the forwards that the encoder runs itself; None (so it begins): that of
    the weights. A forward of a wrapper has the wrapper's precision. ``stopwatch`` measures the frozen tower
    ("vision") while it runs.
    """

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, config: EncoderConfig | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = replace(config or EncoderConfig(), image_backend=image_backend(image_processor))
        self.autocast_dtype: torch.dtype | None = None
        self.stopwatch = Stopwatch()
        _limit_pixels(image_processor, self.config.max_pixels)
        self.ret_id = register_ret(model, tokenizer)
        self.processor = InputProcessor(tokenizer, image_processor, get_prompt(self.config.prompt))
        self.processor.max_tokens = longest_prompt(
            self.base_model.config, self.config.max_summary_tokens, self.processor.frame_tokens
        )
        self._vision = FrozenVision(self.base_model.model, self.stopwatch)

    @property
    def image_processor(self) -> Any:
        """transformers' image processor; another one may take its place."""
        return self.processor.image_processor

    @image_processor.setter
    def image_processor(self, value: Any) -> None:
        self.processor.image_processor = value

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        attn_implementation: str = "auto",
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        trust_remote_code: bool = False,
    ) -> MultimodalEncoder:
        """Load a directory written by ``save_pretrained``, or any Qwen-VL checkpoint (directory or hub name).

        A PEFT adapter (``adapter_config.json``) beside or instead of the weights is merged into them. A tokenizer
        without ``[RET]`` gets one. ``read_config`` says what is read of how a retriever of others embeds.
        ``dtype`` None: the checkpoint's own. ``device`` None: a GPU if there is one. ``trust_remote_code``: run the
        code that a checkpoint brings for its configuration, tokenizer or image processor; the model is always
        transformers' own.
        FileNotFoundError for a path without a directory; ValueError for another architecture, pooling or module
        behind it, weights that are missing, left over, of another shape or no finite floating-point numbers, or an
        adapter, tokenizer, image processor or elva.json that does not fit.
        """
        loaded = load(str(path_or_name), attn_implementation, dtype, device, trust_remote_code)
        try:
            return cls(loaded.model, loaded.tokenizer, loaded.image_processor, loaded.config)
        except ValueError as error:
            raise ValueError(f"{path_or_name}: {error}") from error

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
            self.model = merged(self.model)

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
        A text beyond what the model has positions for is cut at its end, with a warning. Long inputs among short ones
        run apart from them; ``batch_size`` is the most that run together. Summaries are greedy.
        With ``return_summaries``: (embeddings, list of n str; "" in direct mode).
        Errors name the input by its index; FloatingPointError where an embedding is not finite.
        """
        mode, read = mode or self.config.mode, read or self.config.read
        check_choice("mode", mode, MODES)
        check_choice("read", read, READS)
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size: {batch_size!r} given, expected a whole number of at least 1")
        items = join_instructions(parse_inputs(inputs), instruction)
        embeddings = torch.zeros(len(items), self.hidden_size)
        summaries = [""] * len(items)
        # Alike lengths together, longest first: little padding, and a lack of memory shows at once.
        order = sorted(range(len(items)), key=lambda i: (items[i].image is None, -len(items[i].text or "")))
        chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        forwards = 1 if mode == "direct" else self.config.max_summary_tokens
        with evaluation_mode(self.base_model), torch.no_grad():
            for rows in track(chunks, "Encoding", total=len(chunks), show=show_progress):
                prepared = self.prepare([items[row] for row in rows])
                parts = split_by_length(prepared["attention_mask"].sum(-1).tolist(), forwards)
                for part in parts:
                    batch = prepared if len(parts) == 1 else self.select(prepared, part)
                    own = [rows[place] for place in part]
                    if mode == "direct":
                        full, _ = self.append(batch, [[] for _ in own], ret=True)
                        embeddings[own] = self.read_embedding(self.hidden_states(full), full, read).cpu()
                        continue
                    written = self.generate_summaries(batch)
                    embeddings[own] = written.embeddings(read).cpu()
                    for row, ids in zip(own, written.summaries, strict=True):
                        summaries[row] = self.decode_summary(ids)
        require_finite(embeddings)
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
        positions = batches.rope_positions(batch, self._merge_size)
        return self._forward(batch, model, position_ids=positions)

    def pack(self, prompts: Batch, completions: Sequence[Sequence[int]], num_generations: int) -> PackedBatch:
        """Prompts of n items, ``num_generations`` completions of each (item-major, none empty), without padding."""
        return pack(prompts, completions, num_generations, self._merge_size)

    def packed_states(self, packed: PackedBatch, model: nn.Module | None = None) -> Tensor:
        """Last hidden state [T, H] of every token, with gradient: ``hidden_states`` for packed batches."""
        shared_prefix.enable(self.base_model)
        layout = {shared_prefix.KEYWORD: packed.layout}
        with shared_prefix.packed_forward():
            return self._forward(packed.batch, model, position_ids=packed.positions, **layout)[0]

    def _forward(self, batch: Batch, model: nn.Module | None, **options: Any) -> Tensor:
        with forward_inputs(self.base_model.model, batch) as inputs:
            options = {**inputs, **options, "use_cache": False}
            if model is not None:
                return final_states(self.base_model, model, **options)
            with self._autocast():
                return self.base_model.model(**options).last_hidden_state

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def read_packed(self, states: Tensor, packed: PackedBatch) -> Tensor:
        """L2-normalised fp32 state [n·G, H] at (or just before) the token that ends each completion."""
        place = packed.ends
        if self.config.read == "before":
            place = packed.before[packed.ends - packed.layout.prompt_tokens]
        return F.normalize(states[place].float(), dim=-1)

    def read_state(self, hidden: Tensor, batch: Batch, read: str | None = None) -> Tensor:
        """State [n, H] at (or just before) the ``[RET]`` that ends every row, as it is."""
        read = read or self.config.read
        check_choice("read", read, READS)
        if not bool((batch["input_ids"][:, -1] == self.ret_id).all()):
            raise ValueError("batch: a row does not end in [RET]; build it with append(…, ret=True)")
        return hidden[:, -1 if read == "at" else -2]

    def read_embedding(self, hidden: Tensor, batch: Batch, read: str | None = None) -> Tensor:
        """L2-normalised fp32 state [n, H] at (or just before) the ``[RET]`` that ends every row."""
        return F.normalize(self.read_state(hidden, batch, read).float(), dim=-1)

    def head(self) -> Head:
        """The language model's head, with the rows that an adapter trains: what `linear_logprob` takes.

        In the weights' dtype, or in ``autocast_dtype``, as the products of a forward are.
        """
        head = head_of(self.base_model)
        return head if self.autocast_dtype is None else head.to(self.autocast_dtype)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H]: the language model's head, in its dtype or autocast's."""
        with self._autocast():
            return self.base_model.get_output_embeddings()(hidden.to(head_of(self.base_model).weight.dtype))

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
        with evaluation_mode(self.base_model), self._autocast():
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
        return special_ids(self.tokenizer, self.ret_id, head_of(self.base_model).weight.shape[0])

    def decode_summary(self, ids: Sequence[int]) -> str:
        """The summary's text, without ``[RET]`` or other special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def _limit_pixels(image_processor: Any, limit: int | None) -> None:
    if limit is not None:
        size = image_processor.size
        shortest, longest = min(size["shortest_edge"], limit), min(size["longest_edge"], limit)
        image_processor.size = {"shortest_edge": shortest, "longest_edge": longest}
