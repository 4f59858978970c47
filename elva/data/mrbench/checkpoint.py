"""A judge in this process: a Qwen-VL checkpoint through transformers, greedily decoded (the paper's: Qwen2.5-VL-7B)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from elva.data.mrbench.answers import Question
from elva.data.mrbench.judges import JudgeFault
from elva.data.mrbench.prompt import correction, render

LONGEST_ANSWER = 1024


class CheckpointJudge:
    """``name`` is a directory or a name on the Hugging Face Hub; it runs on a GPU if there is one.

    Raises what transformers raises for a checkpoint that is not there or is of another kind (OSError, ValueError), and
    ValueError where it lacks weights. No code of the checkpoint is run.
    """

    parallel = 1

    def __init__(self, name: str, max_new_tokens: int = LONGEST_ANSWER) -> None:
        if name.startswith((".", "/")) and not Path(name).is_dir():
            raise FileNotFoundError(
                f"the judge {name} is no directory, expected one with a Qwen-VL checkpoint"
            )
        import torch

        from elva.models.checkpoint import model_class_of
        from elva.models.identity import parts_digest
        from elva.models.image_processor import load_image_processor
        from elva.models.processing import InputProcessor
        from elva.models.prompts import PromptTemplate
        from elva.models.tokenizer import load_tokenizer
        from elva.models.weights import load_model

        self._longest = max_new_tokens
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # A class and an attention of our choice: the checkpoint's own may lie anywhere.
        model = load_model(model_class_of(name), name, dtype="auto", attn_implementation="sdpa")
        self._tokenizer: Any = load_tokenizer(name, model)
        image_processor = load_image_processor(name, model.config.vision_config)
        self._model = model.to(device).eval()
        # Another model may come to lie at the same place.
        weights = parts_digest(self._model, self._tokenizer, image_processor)[:12]
        self.name = f"{name} ({weights}, at most {max_new_tokens} tokens) through transformers"
        self._process = InputProcessor(self._tokenizer, image_processor, PromptTemplate("judge", ""))

    def reads(self, question: Question) -> bool:
        return True

    def reply(self, question: Question, faults: list[tuple[str, str]]) -> str:
        import torch

        parts = [render(question)]
        for answer, problem in faults:
            parts.append(f"You answered:\n{answer}\n{correction(problem)}")
        image = None if question.image is None else str(question.image)
        try:
            batch = self._process([{"text": "\n".join(parts), "image": image}])
        except (OSError, ValueError) as error:
            raise JudgeFault(f"the picture cannot be read: {error}") from error
        batch = {key: value.to(self._model.device) for key, value in batch.items()}
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(self._model.dtype)
        with torch.inference_mode():
            ids = self._model.generate(**batch, do_sample=False, max_new_tokens=self._longest)
        text: str = self._tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return text
