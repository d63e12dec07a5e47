"""Texts and batches for tests of the rewards."""

from collections.abc import Sequence

from alignment.records import Message, Prompt
from alignment.rewards.texts import TextPair


def prompt(text: str, *, name: str = "p") -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=text),))


def pair(response: str, *, about: str = "Why?", finished: bool = True) -> TextPair:
    return TextPair(prompt=prompt(about), response=response, finished=finished)


def pairs(responses: Sequence[str]) -> list[TextPair]:
    return [pair(response) for response in responses]
