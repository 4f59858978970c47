"""The chat prompts: they end in the assistant's header, where a summary and ``[RET]`` follow (paper, 3)."""

from __future__ import annotations

from dataclasses import dataclass

RET_TOKEN = "[RET]"
IMAGE_TOKEN = "<|image_pad|>"
USER_HEADER = "<|im_start|>user\n"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
TURN_END = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class PromptTemplate:
    """What is asked of the model after the input itself.

    Rendered as
    ``<|im_start|>user\\n[<|vision_start|><|image_pad|>…<|vision_end|>]{text}\\n{suffix}<|im_end|>\\n
    <|im_start|>assistant\\n``.
    """

    name: str
    suffix: str

    def render(self, text: str, image_tokens: int = 0) -> str:
        """The whole prompt as one string; ``image_tokens`` placeholders stand for the picture (0: none)."""
        image = f"{VISION_START}{IMAGE_TOKEN * image_tokens}{VISION_END}" if image_tokens else ""
        return f"{USER_HEADER}{image}{text}\n{self.suffix}{TURN_END}"


PROMPTS = {
    template.name: template
    for template in (
        PromptTemplate(
            "paper",
            "Analyze and summarize the key information of the above input. "
            f"Finally, append the special token {RET_TOKEN} to represent the entire input.",
        ),
        PromptTemplate("short", "Summarize."),
    )
}


def get_prompt(name: str) -> PromptTemplate:
    """The template called ``name``; ValueError names the known ones."""
    if not isinstance(name, str):
        raise ValueError(f"prompt: {name!r} given, expected a name: one of {', '.join(sorted(PROMPTS))}")
    if name not in PROMPTS:
        raise ValueError(f"prompt: no template named {name!r}; expected one of {', '.join(sorted(PROMPTS))}")
    return PROMPTS[name]
