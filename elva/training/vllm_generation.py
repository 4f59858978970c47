"""Summaries written by vLLM in this process, with the policy's weights of the moment.

Not measured: there has been no GPU to run it on. Tests run it against a stand-in for vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from elva.models.processing import Item as Input
from elva.models.processing import parse_inputs
from elva.models.prompts import IMAGE_TOKEN
from elva.pictures import PictureError, read_rgb, to_rgb
from elva.training.examples import Item

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

# vLLM clamps biases to this; no logit of a trained model makes up for it
NEVER = -100.0


class VLLMGenerator:
    """Samples G completions of each prompt; ImportError with the next step where vLLM is absent.

    ``memory``: the share of the GPU's memory that vLLM takes for weights and cache.
    """

    def __init__(self, encoder: MultimodalEncoder, seed: int, memory: float = 0.3) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                "rl.use_vllm: the package vllm cannot be imported; install it (pip install vllm, on a GPU machine) "
                "or set rl.use_vllm to false"
            ) from error
        self.encoder = encoder
        size = encoder.image_processor.size
        self.llm = LLM(
            model=encoder.base_model.name_or_path,
            dtype=str(encoder.base_model.dtype).removeprefix("torch."),
            gpu_memory_utilization=memory,
            limit_mm_per_prompt={"image": 1},
            mm_processor_kwargs={
                "min_pixels": size["shortest_edge"],
                "max_pixels": size["longest_edge"],
            },
            seed=seed,
        )

    def __call__(
        self,
        items: Sequence[Item],
        prompts: dict[str, Any],
        num_generations: int,
        *,
        temperature: float,
        top_p: float,
        top_k: int,
        max_new_tokens: int,
        seed: int,
    ) -> tuple[list[list[int]], list[bool]]:
        """Completions (item-major, ids ending in [RET]) and whether their [RET] was sampled.

        ``prompts``: the encoder's batch of ``items``. ValueError where vLLM reads a prompt as other tokens, as with
        another size of pictures.
        """
        from vllm import SamplingParams

        self._load_weights()
        special = self.encoder._special_ids()
        parameters = SamplingParams(
            n=num_generations,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k or -1,
            max_tokens=max_new_tokens,
            stop_token_ids=[special.ret, *special.stop],
            logit_bias={token: NEVER for token in special.banned},
            detokenize=False,
            seed=seed,
        )
        rows = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(prompts["input_ids"], prompts["attention_mask"], strict=True)
        ]
        requests = [self._request(ids, item) for ids, item in zip(rows, parse_inputs(items), strict=True)]
        completions: list[list[int]] = []
        sampled_ret: list[bool] = []
        for ids, output in zip(rows, self.llm.generate(requests, parameters, use_tqdm=False), strict=True):
            if list(output.prompt_token_ids) != ids:
                raise ValueError(
                    f"rl.use_vllm: vLLM reads a prompt of {len(ids)} tokens as {len(output.prompt_token_ids)} others; "
                    "its image processor differs from the model's; set rl.use_vllm to false"
                )
            for choice in output.outputs:
                tokens = list(choice.token_ids)
                sampled_ret.append(tokens[-1:] == [special.ret])
                if tokens[-1:] and tokens[-1] in (special.ret, *special.stop):
                    tokens.pop()
                completions.append([*tokens, special.ret])
        return completions, sampled_ret

    def _request(self, ids: list[int], item: Input) -> dict[str, Any]:
        """vLLM puts the placeholders of a picture in place of one."""
        if item.image is None:
            return {"prompt_token_ids": ids}
        pad = self.encoder.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        short = [
            token for place, token in enumerate(ids) if token != pad or place == 0 or ids[place - 1] != pad
        ]
        try:
            picture = to_rgb(item.image) if isinstance(item.image, Image.Image) else read_rgb(item.image)
        except PictureError as error:
            raise PictureError(f"{item.name} ({item.image}): {error}") from error
        return {"prompt_token_ids": short, "multi_modal_data": {"image": picture}}

    def _load_weights(self) -> None:
        runner = self.llm.llm_engine.model_executor.driver_worker.model_runner
        model = self.encoder.model
        adapted = hasattr(model, "merge_adapter")
        if adapted:
            model.merge_adapter()
        try:
            runner.model.load_weights(merged_weights(model))
        finally:
            if adapted:
                model.unmerge_adapter()
        self.llm.reset_prefix_cache()


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names as in the checkpoint, and weights, of a model whose PEFT adapter is merged."""
    for name, parameter in model.named_parameters():
        if "lora_" in name or "trainable_tokens_" in name:
            continue
        for part in ("token_adapter.", "base_layer.", "original_module."):
            name = name.replace(part, "")
        yield name.removeprefix("base_model.model."), parameter.data
