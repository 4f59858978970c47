"""What is known of pictures, and what a near miss is asked: the words that data and probes share."""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """What is asked of a picture: ``key`` (a grain's) of ``subject``, "" for the picture as a whole."""

    subject: str
    key: str


class Fact(NamedTuple):
    """A question and an answer."""

    question: Question
    value: str


Facts = dict[Question, str]
"""The right answers known of a picture. A question that makes no sense of it (the colour of what is not there) is
left out."""


class NearMiss(NamedTuple):
    """A query's picture and one that violates ``grain`` of it, as rows: ``query`` of the queries, ``right`` and
    ``wrong`` of the pictures.

    ``asked``: facts of that grain, true of ``right`` and not of ``wrong``.
    """

    grain: str
    query: int
    right: int
    wrong: int
    asked: tuple[Fact, ...]
