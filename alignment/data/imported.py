"""What an import yields: records that can be used, and a reason for each that cannot."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from alignment.records import Demonstration, PreferenceGroup, Prompt

ItemT = TypeVar("ItemT", Prompt, Demonstration, PreferenceGroup)
RefusedKind = Literal["row", "prompt", "heldout_prompt", "demonstration", "preference_group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One record that was left out, and why.

    `kind` is what was refused: a `row` of an imported file, or one of our own records, and
    `record` its id. `line` counts from 1 and is None where the record was refused after reading.
    """

    kind: RefusedKind
    record: str
    reason: str
    excerpt: str
    file: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """Records in file order. `heldout_prompts` is None if the source does not hold any out."""

    demonstrations: tuple[Demonstration, ...]
    prompts: tuple[Prompt, ...]
    heldout_prompts: tuple[Prompt, ...] | None = None
    preference_groups: tuple[PreferenceGroup, ...] = ()
    refused: tuple[Refusal, ...] = ()


def sift(
    items: Iterable[ItemT], problem_of: Callable[[ItemT], str], kind: RefusedKind
) -> tuple[tuple[ItemT, ...], tuple[Refusal, ...]]:
    """The items without a problem, in order, and a refusal for each of the others."""
    kept: list[ItemT] = []
    refused: list[Refusal] = []
    for item in items:
        reason = problem_of(item)
        if not reason:
            kept.append(item)
            continue
        prompt = prompt_of(item)
        excerpt = excerpt_of(prompt.messages[-1].content)
        refused.append(Refusal(kind=kind, record=prompt.id, reason=reason, excerpt=excerpt))
    return tuple(kept), tuple(refused)


def prompt_of(item: Prompt | Demonstration | PreferenceGroup) -> Prompt:
    """The prompt that a record is, or is about."""
    return item if isinstance(item, Prompt) else item.prompt


def prompt_text(prompt: Prompt) -> str:
    """The conversation as one text: equal for equal prompts, whatever their ids and spacing."""
    return "\x1e".join(f"{m.role}\x1f{' '.join(m.content.split())}" for m in prompt.messages)


def excerpt_of(text: str, limit: int = 80) -> str:
    """The beginning of a text on one line, for a message."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
