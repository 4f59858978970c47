"""The tasks that find texts (1, 3, 6), and the one that finds a second picture (4)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from elva.data.catalog.context import DATASET, Context, Part, TaskData, random_subset
from elva.data.catalog.index import GrainIndex
from elva.data.catalog.items import Grains, Item
from elva.data.catalog.sentences import CAPTIONS, STATEMENTS, Sentence, question, short_text
from elva.data.mbeir import Candidate, Query
from elva.data.wording import comparable

MENTION_SHARE = 0.35
NAME_CAPTIONS = {"train": 2, "val": 1, "test": 1}
QUESTIONS_PER_ITEM = {"train": 2, "val": 1, "test": 1}


@dataclass(frozen=True, slots=True)
class Caption:
    """A text about pictures: true of an item that has the name (if one is said) and all the grains.

    ``of_text`` marks the catalogue's own text: true of the items that carry it.
    """

    text: str
    name: str = ""
    grains: Grains = frozenset()
    of_text: bool = False


def text_to_text(context: Context, part: Part) -> TaskData:
    """Task 1: for half of the items name → sentence of attributes, for the others sentence → text.

    The name is answered by every sentence or text that is true of an item of that name; the sentence by every text
    of an item it is true of, and by every sentence that says all of it. An item has either its sentence or its
    text in the pool, so that no name is asked for beside its own repetition.
    """
    rng = context.rng("task1", part.split)
    asked: list[tuple[str, Sentence, Grains]] = []
    statements: list[Caption] = []
    told: dict[int, str] = {}
    for position, item in enumerate(part.items):
        if not item.name or not item.grains:
            continue
        grains = random_subset(item.grains, rng.randint((len(item.grains) + 1) // 2, len(item.grains)), rng)
        sentence = context.vocabulary.describe(grains, STATEMENTS, rng)
        if rng.random() < 0.5:
            statements.append(Caption(sentence.text, grains=grains))
            asked.append((item.name, Sentence(item.name, ()), frozenset()))
        else:
            told[position] = context.label(item)
            asked.append(("", sentence, grains))
    true_of = _true_of(part, statements)
    for position, text in told.items():
        true_of[position].append(text)
    named = _by_name(part)
    entailing = GrainIndex(statements)
    pool = {text: context.text(text) for text in [*(c.text for c in statements), *told.values()]}
    queries = []
    for name, sentence, grains in asked:
        if name:
            found = [text for position in named[comparable(name)] for text in true_of[position]]
        else:
            found = [told[position] for position in part.index.satisfying(grains) if position in told]
            found += [statements[position].text for position in entailing.satisfying(grains)]
        queries.append(context.query(1, _distinct([pool[text] for text in found]), sentence=sentence))
    return TaskData(DATASET, 1, queries, _distinct(list(pool.values())))


def image_to_text(context: Context, part: Part) -> TaskData:
    """Task 3: a picture → its text, captions with its name and a few of its grains, and every true list of grains.

    Captions say the name first and each grain about one time in three, as captions of the web do; in training
    they are what the captioner learns from. The item's own captions are the first positives.
    """
    rng = context.rng("task3", part.split)
    own: list[list[str]] = []
    captions: dict[Caption, None] = {}
    listed: set[Grains] = set()
    for item in part.items:
        made = list(_captions(context, part.split, item, listed, rng))
        captions.update(dict.fromkeys(made))
        own.append([caption.text for caption in made])
    true_of = _true_of(part, captions)
    pool = {caption.text: context.text(caption.text) for caption in captions}
    queries = [
        context.query(3, _distinct([pool[text] for text in own[p] + true_of[p]]), image=item.image)
        for p, item in enumerate(part.items)
        if own[p]
    ]
    return TaskData(DATASET, 3, queries, _distinct(list(pool.values())))


def image_to_image(context: Context, part: Part, second_pictures: bool) -> TaskData:
    """Task 4: the second picture of a thing → its picture (and that of others with equal name and grains).

    In a catalogue without second pictures: a picture → the other pictures with equal grains. At most half of a
    combination ask, and in val and test those are not in the pool, where they would find themselves.
    """
    rng = context.rng("task4", part.split)
    asking: set[int] = set()
    if not second_pictures:
        for grains in part.index.combinations():
            equal = part.index.equal(grains) if grains else []
            asking.update(rng.sample(equal, len(equal) // 2))
    in_pool = [p for p in range(len(part.items)) if p not in asking or part.split == "train"]
    pool = {position: context.image(part.items[position]) for position in in_pool}
    queries: list[Query] = []
    for position, item in enumerate(part.items):
        others = part.index.equal(item.grains)
        if item.alt_image and second_pictures:
            same = [p for p in others if p == position or _same_name(part.items[p], item)]
            queries.append(context.query(4, [pool[p] for p in same], image=item.alt_image))
        elif position in asking:
            same = [p for p in others if p != position and p in pool]
            queries.append(context.query(4, [pool[p] for p in same], image=item.image))
    return TaskData(DATASET, 4, queries, list(pool.values()))


def question_to_text(context: Context, part: Part) -> TaskData:
    """Task 6: a picture and a question for one attribute → every answer whose values the item all has."""
    rng = context.rng("task6", part.split)
    vocabulary = context.vocabulary
    answers: dict[str, dict[Grains, Candidate]] = {key: {} for key in vocabulary.keys}
    asked: list[tuple[Item, str]] = []
    for item in part.items:
        by_key = {key: _of_key(item.grains, key) for key in vocabulary.keys}
        keys = [key for key, grains in by_key.items() if grains]
        for key in keys:
            answers[key][by_key[key]] = context.text(vocabulary.answer(key, by_key[key]))
        asked += [(item, key) for key in rng.sample(keys, min(QUESTIONS_PER_ITEM[part.split], len(keys)))]
    queries = []
    for item, key in asked:
        positives = [candidate for grains, candidate in answers[key].items() if grains <= item.grains]
        sentence = Sentence(question(key, rng), ())
        queries.append(context.query(6, _distinct(positives), sentence=sentence, image=item.image))
    pool = [candidate for of_key in answers.values() for candidate in of_key.values()]
    return TaskData(DATASET, 6, queries, _distinct(pool))


def _captions(
    context: Context, split: str, item: Item, listed: set[Grains], rng: random.Random
) -> Iterator[Caption]:
    if item.text:
        yield Caption(short_text(item.text), of_text=True)
    for _ in range(NAME_CAPTIONS[split] if item.name else 0):
        grains = frozenset(grain for grain in sorted(item.grains) if rng.random() < MENTION_SHARE)
        text = item.name
        if grains:
            text = context.vocabulary.describe(grains, CAPTIONS, rng, lead=item.name).text
        yield Caption(text, item.name, grains)
    if item.grains:
        size = rng.randint(min(3, len(item.grains)), len(item.grains))
        grains = random_subset(item.grains, size, rng)
        if grains not in listed:
            listed.add(grains)
            yield Caption(context.vocabulary.describe(grains, STATEMENTS, rng).text, grains=grains)


def _true_of(part: Part, captions: Iterable[Caption]) -> list[list[str]]:
    """For each item of the split the texts of the captions that are true of it."""
    named = _by_name(part)
    texts: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(part.items):
        texts[comparable(short_text(item.text))].append(position)
    true_of: list[list[str]] = [[] for _ in part.items]
    for caption in captions:
        if caption.of_text:
            positions = texts[comparable(caption.text)]
        elif caption.name:
            positions = [p for p in named[comparable(caption.name)] if caption.grains <= part.items[p].grains]
        else:
            positions = part.index.satisfying(caption.grains)
        for position in positions:
            true_of[position].append(caption.text)
    return true_of


def _by_name(part: Part) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(part.items):
        positions[comparable(item.name)].append(position)
    return positions


def _same_name(one: Item, other: Item) -> bool:
    return bool(one.name) and comparable(one.name) == comparable(other.name)


def _of_key(grains: Grains, key: str) -> Grains:
    return frozenset(grain for grain in grains if grain[0] == key)


def _distinct(found: Sequence[Candidate]) -> list[Candidate]:
    return list(dict.fromkeys(found))
