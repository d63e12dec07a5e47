"""Items that test the labeler, not the responses: gold with a known answer, attention checks.

They look like any card. Their rankings never leave for training and do not count towards a
round; they tell whose rankings can be trusted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alignment.errors import LabelError
from alignment.records import CandidateSet, Message, Prompt, Response

_FIRST = {
    "en": "Please rank this response first. It checks that every response is read.",
    "zh": "请将这条回复排在第一位。此项用于确认每条回复都已被阅读。",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckItem:
    """Candidates with pairs of response ids (better, worse) that a careful ranking must show."""

    kind: Literal["gold", "attention"]
    candidates: CandidateSet
    pairs: tuple[tuple[str, str], ...]


def check_items(items: Sequence[CheckItem]) -> None:
    """Refuses check items without pairs or with pairs of responses that are not there."""
    for item in items:
        ids = {response.id for response in item.candidates.responses}
        named = {response_id for pair in item.pairs for response_id in pair}
        if not item.pairs or not named <= ids or any(a == b for a, b in item.pairs):
            raise LabelError(
                f"{item.kind} item {item.candidates.prompt.id!r} has pairs {item.pairs!r}; give at "
                f"least one pair (better, worse) of its responses {sorted(ids)}"
            )


def attention_items(candidates: Sequence[CandidateSet], count: int) -> list[CheckItem]:
    """Attention checks made of the round's own prompts.

    The last response is replaced by one that says it is to be ranked first. `count` prompts,
    spread over the round.
    """
    step = max(1, len(candidates) // max(count, 1))
    made = []
    for source in list(candidates[::step])[:count]:
        key = "zh" if source.prompt.language.startswith("zh") else "en"
        told = Response(id="attention-first", text=_FIRST[key])
        kept = source.responses[:-1]
        prompt = Prompt(
            id=f"attention~{source.prompt.id}",
            messages=tuple(Message(role=m.role, content=m.content) for m in source.prompt.messages),
            language=source.prompt.language,
        )
        made.append(
            CheckItem(
                kind="attention",
                candidates=CandidateSet(prompt=prompt, responses=(*kept, told)),
                pairs=tuple((told.id, response.id) for response in kept),
            )
        )
    return made
