"""transformers' tokenizer of a checkpoint, and an error where it is not the model's."""

from __future__ import annotations

import string
from typing import Any

from elva.models import foreign_code
from elva.models.files import file_of, read_object
from elva.models.prompts import IMAGE_TOKEN, RET_TOKEN, VISION_END, VISION_START

SETTINGS, VOCABULARY = "tokenizer_config.json", "tokenizer.json"
PLAIN = string.ascii_letters + string.digits + string.punctuation
MARKS = ("<|im_start|>", "<|im_end|>", VISION_START, IMAGE_TOKEN, VISION_END)


def load_tokenizer(name: str, model: Any, trust_remote_code: bool = False) -> Any:
    """The tokenizer of the directory or hub name ``name``, for transformers' ``model``.

    ``trust_remote_code``: run code that the checkpoint brings for it.

    Raises:
        ValueError: files that cannot be read, a tokenizer that loses plain letters (transformers makes an empty one
            where its vocabulary is missing), lacks the prompt's special tokens, or is another model's.
    """
    from transformers import AutoTokenizer

    for file in (SETTINGS, VOCABULARY):
        if found := file_of(name, file):
            read_object(found)
    with foreign_code.refused(name, VOCABULARY):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    _require_numbers(tokenizer, name)
    _require_words(tokenizer, name)
    _require_special(tokenizer, model, name)
    return tokenizer


def _require_words(tokenizer: Any, name: str) -> None:
    ids = tokenizer(PLAIN, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode([int(token) for token in ids], clean_up_tokenization_spaces=False)
    if "".join(back.split()) != PLAIN:
        there = "is of another tokenizer" if file_of(name, VOCABULARY) else "is not there"
        raise ValueError(
            f"{name}: the tokenizer gives {back[:100]!r} back for letters, digits and punctuation, expected them "
            f"unchanged; its {VOCABULARY} {there}"
        )


def _require_special(tokenizer: Any, model: Any, name: str) -> None:
    vocabulary = tokenizer.get_vocab()
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    absent = [mark for mark in MARKS if mark not in special]
    if absent or tokenizer.pad_token_id is None:
        raise ValueError(
            f"{name}: the tokenizer has no {', '.join(absent) or 'padding token'}, expected the special tokens "
            "of a Qwen-VL model"
        )
    image, expected = special[IMAGE_TOKEN], model.config.image_token_id
    if image != expected:
        raise ValueError(
            f"{name}: {IMAGE_TOKEN} is token {image} and the model's config.json says {expected}; is the "
            "tokenizer another model's?"
        )
    if RET_TOKEN in vocabulary and RET_TOKEN not in special:
        raise ValueError(
            f"{name}: {RET_TOKEN} is the ordinary token {vocabulary[RET_TOKEN]}, expected a special one"
        )


def _require_numbers(tokenizer: Any, name: str) -> None:
    tokens: dict[int, str] = {}
    for token, number in tokenizer.get_vocab().items():
        other = tokens.setdefault(number, token)
        if other != token:
            raise ValueError(f"{name}: the tokens {other!r} and {token!r} are both number {number}")
