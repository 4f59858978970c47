"""An :class:`elva.MultimodalEncoder` as a model of MTEB, for tasks of texts, pictures and both (M-BEIR's among them).

    import mteb
    from elva.integrations.mteb import ELVAEncoder

    tasks = mteb.get_tasks(tasks=["CIRRIT2IRetrieval", "NIGHTSI2IRetrieval"])
    result = mteb.evaluate(ELVAEncoder("runs/paper-2b/rl/model"), tasks, encode_kwargs={"batch_size": 32})

MTEB's ``recall_at_k`` divides by the number of positives; what M-BEIR calls Recall@k is its ``hit_rate_at_k``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elva.models.config import MODES, check_choice
from elva.models.encoder import MultimodalEncoder
from elva.models.identity import model_digest
from elva.progress import track


class ELVAEncoder:
    """MTEB's ``EncoderProtocol`` around one model.

    Args:
        model_name: a directory or hub name for :meth:`MultimodalEncoder.from_pretrained`, or an encoder.
        revision: what tells this model's results from others' in MTEB's result cache. None: a digest of all that the
            embeddings depend on (``elva.models.identity``), taken now: make another ELVAEncoder once the model has
            been trained on.
        device: as in ``from_pretrained``.
        name: ``organisation/model``, the model's name in the results. None: the hub name, or "local/" and the last two
            parts of the directory.
        query_mode, document_mode: "generative" or "direct". None for queries: what the model's ``elva.json`` says.
            Documents are read without a summary, as in :meth:`MultimodalEncoder.encode_document`.

    A task's own instruction (``task.metadata.prompt``) is joined in front of queries; documents get one only where the
    task has one for them. Tasks that know neither queries nor documents (similarity, classification) are read as
    queries.

    Raises:
        ImportError: mteb is not installed. ValueError: a mode, or a ``precision`` that is not float32.
    """

    def __init__(
        self,
        model_name: str | Path | MultimodalEncoder,
        revision: str | None = None,
        *,
        device: str | None = None,
        name: str | None = None,
        query_mode: str | None = None,
        document_mode: str = "direct",
    ) -> None:
        self._meta_class = _model_meta_class()
        if isinstance(model_name, MultimodalEncoder):
            self.model = model_name
            path = "encoder"
        else:
            self.model = MultimodalEncoder.from_pretrained(model_name, device=device)
            path = str(model_name)
        self.query_mode = query_mode or self.model.config.mode
        self.document_mode = document_mode
        check_choice("query_mode", self.query_mode, MODES)
        check_choice("document_mode", self.document_mode, MODES)
        self.mteb_model_meta = self._meta(name or _name(path), revision or model_digest(self.model)[:16])

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool = True,
        precision: str | None = None,
        **_: Any,
    ) -> Tensor:
        """Embeddings ``[n, H]`` float32, L2-normalised, of a data loader whose batches hold "text", "image" or both."""
        if precision not in (None, "float32"):
            raise ValueError(
                f"precision: {precision!r} given, expected 'float32'; quantise the embeddings afterwards"
            )
        kind = str(getattr(prompt_type, "value", prompt_type or "query"))
        mode = self.document_mode if kind == "document" else self.query_mode
        instruction = _instruction(task_metadata.prompt, kind)
        parts = [
            self.model.encode(_items(batch), instruction, mode=mode, batch_size=batch_size)
            for batch in track(inputs, "Encoding", total=len(inputs), show=show_progress_bar)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, self.model.hidden_size)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines ``[n, m]`` of embeddings ``[n, H]`` and ``[m, H]`` (or one of ``[H]``), normalised ones."""
        first, second = (torch.atleast_2d(torch.as_tensor(x)) for x in (embeddings1, embeddings2))
        return first.float() @ second.float().T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines ``[n]`` of embeddings ``[n, H]`` with those of the same row."""
        first, second = (torch.atleast_2d(torch.as_tensor(x)) for x in (embeddings1, embeddings2))
        return (first.float() * second.float()).sum(-1)

    def _meta(self, name: str, revision: str) -> Any:
        parameters = sum(parameter.numel() for parameter in self.model.base_model.parameters())
        return self._meta_class(
            loader=type(self),
            name=name,
            revision=revision,
            release_date=None,
            languages=None,
            n_parameters=parameters,
            memory_usage_mb=None,
            max_tokens=None,
            embed_dim=self.model.hidden_size,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch", "Transformers"],
            similarity_fn_name="cosine",
            use_instructions=True,
            training_datasets=None,
            modalities=["text", "image"],
            # They change the scores, so results of different settings must not be taken for each other's.
            experiment_kwargs={
                "query_mode": self.query_mode,
                "document_mode": self.document_mode,
                **{key: value for key, value in asdict(self.model.config).items() if key != "mode"},
            },
        )


def _model_meta_class() -> Any:
    try:
        from mteb.models import ModelMeta
    except ImportError as error:
        raise ImportError(
            "elva.integrations.mteb needs the package mteb: pip install 'elva[mteb]'"
        ) from error
    return ModelMeta


def _instruction(prompt: Any, kind: str) -> str | None:
    """``task.metadata.prompt`` is a str (for queries), a dict by kind, or None."""
    if isinstance(prompt, dict):
        return prompt.get(kind)
    return prompt if kind == "query" else None


def _items(batch: dict[str, Any]) -> list[dict[str, Any]]:
    columns = {key: batch[key] for key in ("text", "image") if key in batch}
    if not columns:
        raise ValueError(f"inputs: a batch with {', '.join(batch)} given, expected 'text' or 'image'")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _name(path: str) -> str:
    if not Path(path).is_dir():
        return path if "/" in path else f"local/{path}"
    return f"local/{'-'.join(Path(path).resolve().parts[-2:])}"
