"""What a language model is asked."""

from __future__ import annotations

from elva.data.mrbench.answers import Question

TASK = """You mark the grains of search queries. A grain is a minimal unit of meaning that an answer has to match:
- entity: a thing, person, animal or place ("dog", "tennis racket")
- attribute: a property of one ("red", "wooden", "striped")
- action: what one does ("running", "holding")
- relation: how two stand to each other ("on top of", "left of", "inside")
- count: how many ("two", "several")
"""
FORM = """Copy the words of every grain exactly as they stand in {what}; grains must not overlap. Leave out words
that ask for something (such as "find" or "show me"). If the same words stand there twice, add "start" and "end", in
characters.
Answer with one JSON object and nothing else:
{form}
"""
TEXT_FORM = '{"grains": [{"kind": "count", "text": "two"}, {"kind": "entity", "text": "dogs"}]}'
PICTURE_FORM = (
    '{"description": "Two dogs run.", "grains": [{"kind": "count", "text": "Two"}, '
    '{"kind": "entity", "text": "dogs"}, {"kind": "action", "text": "run"}]}'
)


def render(question: Question) -> str:
    """The request about one query; its picture, where it has one, is shown beside it."""
    if question.text is None:
        asked = "The query is the picture. Describe it in one sentence, and mark the grains of that sentence."
        return TASK + asked + "\n" + FORM.format(what="your description", form=PICTURE_FORM)
    beside = "" if question.image is None else " It belongs to the picture; mark the text only."
    form = FORM.format(what="the query", form=TEXT_FORM)
    return f"{TASK}{form}The query:{beside}\n{question.text}"


def correction(problem: str) -> str:
    """What is said about an answer that cannot be used."""
    return f"This answer cannot be used: {problem}. Answer again, with the corrected JSON object alone."
