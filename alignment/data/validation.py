"""What must hold of a record before anyone may use it, checked at every door.

Reading, writing and importing all call `check_record`: a record that got in is a record that
every later stage can rely on.
"""

import math
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from alignment.errors import DataError
from alignment.records import (
    CandidateSet,
    Comparison,
    Demonstration,
    PreferenceGroup,
    Prompt,
    Ranking,
    Response,
)


def check_record(record: Any, where: str) -> None:
    """Raise DataError, naming `where` and the field, if the record cannot be used."""
    try:
        _check(record)
    except _FieldError as problem:
        raise DataError(f"{where}, field {problem}") from None


def record_id(record: Any) -> str | None:
    """What must be unique within one file; None where repetition is meant.

    Preference groups of one prompt may come from several rounds.
    """
    match record:
        case Prompt(id=id):
            return id
        case Demonstration(prompt=prompt) | CandidateSet(prompt=prompt):
            return prompt.id
        case Ranking(annotation_id=id):
            return id
    return None


def check_ids_differ(records: Sequence[Any], where: str) -> None:
    """Raise DataError if two records of one file share the id that should tell them apart."""
    first_row: dict[str, int] = {}
    for row, record in enumerate(records):
        id = record_id(record)
        if id is not None and first_row.setdefault(id, row) != row:
            raise DataError(
                f"{where}, row {row}: the id {id!r} is already used in row {first_row[id]}; "
                "each record needs an id of its own"
            )


class _FieldError(Exception):
    """A field's path and what is wrong with it."""


@singledispatch
def _check(record: Any, path: str = "") -> None:
    raise TypeError(f"no checks for {type(record).__name__}")


@_check.register
def _(prompt: Prompt, path: str = "") -> None:
    if not prompt.id.strip():
        raise _FieldError(f"{path}id: is empty; each prompt needs an id of its own")
    if not prompt.messages:
        raise _FieldError(f"{path}messages: no messages; at least one user turn is needed")
    for number, message in enumerate(prompt.messages):
        if not message.content.strip():
            raise _FieldError(f"{path}messages[{number}].content: is empty")
    if prompt.messages[-1].role != "user":
        raise _FieldError(
            f"{path}messages: ends with the role {prompt.messages[-1].role!r}; the last must be "
            "'user', who waits for a response"
        )
    if not prompt.language:
        raise _FieldError(f"{path}language: is empty; use a code such as 'en'")


@_check.register
def _(demonstration: Demonstration, path: str = "") -> None:
    _check(demonstration.prompt, f"{path}prompt.")
    if not demonstration.response.strip():
        raise _FieldError(f"{path}response: is empty; a demonstration needs a response to learn")


@_check.register
def _(response: Response, path: str = "") -> None:
    if not response.id.strip():
        raise _FieldError(f"{path}id: is empty; each response needs an id of its own")
    if not response.text.strip() and not response.token_ids:
        raise _FieldError(f"{path}text: is empty and there are no token_ids: no response at all")


@_check.register
def _(candidates: CandidateSet, path: str = "") -> None:
    _check(candidates.prompt, f"{path}prompt.")
    _check_responses(candidates.responses, path)


@_check.register
def _(group: PreferenceGroup, path: str = "") -> None:
    _check(group.prompt, f"{path}prompt.")
    _check_responses(group.responses, path)
    seen: set[frozenset[int]] = set()
    for number, comparison in enumerate(group.comparisons):
        here = f"{path}comparisons[{number}]"
        _check_comparison(comparison, len(group.responses), here)
        pair = frozenset((comparison.first, comparison.second))
        if pair in seen:
            raise _FieldError(f"{here}: responses {sorted(pair)} are compared twice; merge them")
        seen.add(pair)


@_check.register
def _(ranking: Ranking, path: str = "") -> None:
    for name in ("annotation_id", "prompt_id", "labeler"):
        if not getattr(ranking, name).strip():
            raise _FieldError(f"{path}{name}: is empty")
    if len(ranking.tiers) != len(ranking.response_ids):
        raise _FieldError(
            f"{path}tiers: {len(ranking.tiers)} tiers for {len(ranking.response_ids)} responses; "
            "give one each"
        )
    if len(set(ranking.response_ids)) != len(ranking.response_ids):
        raise _FieldError(f"{path}response_ids: a response is ranked twice")
    if not ranking.tiers or set(ranking.tiers) != set(range(max(ranking.tiers) + 1)):
        raise _FieldError(
            f"{path}tiers: {list(ranking.tiers)} is not contiguous from 0, the best tier"
        )


def _check_responses(responses: Sequence[Response], path: str) -> None:
    if not responses:
        raise _FieldError(f"{path}responses: no responses; at least one is needed")
    for number, response in enumerate(responses):
        _check(response, f"{path}responses[{number}].")
    if len({response.id for response in responses}) != len(responses):
        raise _FieldError(f"{path}responses: two responses have the same id")


def _check_comparison(comparison: Comparison, size: int, path: str) -> None:
    first, second = comparison.first, comparison.second
    if first == second or min(first, second) < 0 or max(first, second) >= size:
        raise _FieldError(
            f"{path}: compares response {first} with {second}; accepted: two different places "
            f"from 0 to {size - 1}"
        )
    if not 0 <= comparison.preference <= 1:
        raise _FieldError(f"{path}.preference: is {comparison.preference}; accepted: 0 to 1")
    if not (math.isfinite(comparison.weight) and comparison.weight >= 0):
        raise _FieldError(f"{path}.weight: is {comparison.weight}; accepted: finite, 0 or more")
