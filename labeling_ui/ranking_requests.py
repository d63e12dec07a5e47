"""What the ranking page may send to the server: one form a request, everything bounded."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Place = Annotated[int, Field(ge=0, le=8)]
Assignment = Annotated[str, Field(max_length=80)]
Words = Annotated[str, Field(max_length=60)]
Scored = Annotated[str, Field(max_length=64)]
Seconds = Annotated[float, Field(ge=0, le=864_000, allow_inf_nan=False)]


class PageRequest(BaseModel):
    """What every request has in common: no unknown fields, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NextRequest(PageRequest):
    """Asks for a card: the one held, or the one after `beside`."""

    beside: Assignment | None = None


class SubmitRequest(PageRequest):
    """What the page sends when a labeler submits; `revise` replaces an earlier submission."""

    assignment_id: Assignment
    submission_id: Annotated[str, Field(max_length=80)]
    tiers: Annotated[list[int], Field(max_length=9)]
    active_seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
    gaps: Annotated[list[int | None], Field(max_length=8)] = []
    bar: int | None = None
    flags: Annotated[list[tuple[Place, Words]], Field(max_length=9)] = []
    scores: Annotated[list[tuple[Place, Words, int]], Field(max_length=54)] = []
    rationale: Annotated[str, Field(max_length=8000)] = ""
    wall_seconds: Seconds | None = None
    moves: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    revise: bool = False


class SkipRequest(PageRequest):
    """What the page sends when a labeler skips."""

    assignment_id: Assignment
    reason: Annotated[str, Field(max_length=40)]


class CardRequest(PageRequest):
    """Asks for a finished card again."""

    assignment_id: Assignment


class AliveRequest(PageRequest):
    """Says that the labeler is at work on these cards."""

    assignment_ids: Annotated[list[Assignment], Field(max_length=2)]


class AcceptRequest(PageRequest):
    """Says that the labeler accepts a version of the guidelines."""

    version: int


class Draft(PageRequest):
    """What was said about a card so far, in the page's own form: places are of the card.

    `ranks` as given, 1 best; `grades` by the tiers they stand between; `edited` in milliseconds
    since 1970 by the browser's clock; `revising` is the version that would be replaced, or 0.
    """

    ranks: Annotated[list[Annotated[int, Field(ge=1, le=9)] | None], Field(max_length=9)]
    grades: Annotated[dict[Words, Annotated[int, Field(ge=1, le=3)] | None], Field(max_length=40)]
    rejected: Annotated[list[Place], Field(max_length=9)]
    unsafe: Annotated[dict[Words, Words], Field(max_length=9)]
    scores: Annotated[dict[Scored, int | None], Field(max_length=54)]
    rationale: Annotated[str, Field(max_length=8000)]
    moves: Annotated[int, Field(ge=0, le=1_000_000)]
    seconds: Seconds
    began: Annotated[int, Field(ge=0)]
    edited: Annotated[int, Field(ge=0)]
    revising: Annotated[int, Field(ge=0)]


class DraftRequest(PageRequest):
    """Keeps a draft, or drops it where `draft` is null."""

    assignment_id: Assignment
    draft: Draft | None


Request = TypeVar("Request", bound=PageRequest)


def read_request(form: type[Request], data: Any) -> Request:
    """The request in what the browser sent. Raises pydantic's ValidationError."""
    # JSON has lists where the forms have tuples; a call without argument arrives as [].
    if not isinstance(data, dict):
        data = {}
    for name in ("flags", "scores"):
        if isinstance(data.get(name), list):
            entries = data[name]
            data = data | {name: [tuple(e) if isinstance(e, list) else e for e in entries]}
    return form.model_validate(data)
