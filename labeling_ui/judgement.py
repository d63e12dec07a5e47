"""What a labeler says about one card, and what of it is accepted.

Responses are meant by their place on the card, 0 first. The ranking is required; everything
else is asked for as the round's settings say.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from alignment.errors import LabelError

Asked = Literal["off", "optional", "required"]

UNSAFE_CATEGORIES = ("violence", "sexual", "hate", "self_harm", "illegal", "privacy", "other")
"""Why a response is unsafe to show to a user."""

STRONGEST = 3
"""Gaps between neighbouring tiers: 1 slightly, 2 clearly, 3 much better."""

MAX_RATIONALE_CHARACTERS = 4000
MAX_CRITERIA = 6
MAX_CRITERION_CHARACTERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """How a round is run.

    Shares are of each labeler's cards: `gold_share` have a known answer, `attention_share` say
    themselves how to rank them, `repeat_share` were ranked by the same labeler before. None of
    these counts towards the round. `criteria` are scored from 1 to 5 for each response.
    """

    gold_share: float = 0.0
    attention_share: float = 0.0
    repeat_share: float = 0.0
    strength: Asked = "optional"
    rationale: Asked = "optional"
    criteria: tuple[str, ...] = ()
    lease_s: float = 1200.0

    def __post_init__(self) -> None:
        for name in ("gold_share", "attention_share", "repeat_share"):
            share = getattr(self, name)
            if not 0 <= share <= 0.5:
                raise LabelError(f"{name} is {share}; it must be between 0 and 0.5")
        if self.gold_share + self.attention_share + self.repeat_share > 0.5:
            raise LabelError(
                "gold, attention and repeat shares sum to more than 0.5: most of the work would "
                "not count; lower them"
            )
        for name in ("strength", "rationale"):
            if getattr(self, name) not in ("off", "optional", "required"):
                raise LabelError(
                    f"{name} is {getattr(self, name)!r}; accepted: off, optional, required"
                )
        if len(set(self.criteria)) != len(self.criteria) or len(self.criteria) > MAX_CRITERIA:
            raise LabelError(f"criteria {self.criteria!r}: at most {MAX_CRITERIA}, each once")
        if not all(0 < len(name) <= MAX_CRITERION_CHARACTERS for name in self.criteria):
            raise LabelError(
                f"criteria {self.criteria!r}: 1 to {MAX_CRITERION_CHARACTERS} characters each"
            )
        if not 10 <= self.lease_s <= 86_400:
            raise LabelError(f"lease_s is {self.lease_s}; it must be between 10 and 86400 seconds")

    def to_json(self) -> dict[str, Any]:
        """As stored with the round."""
        return asdict(self) | {"criteria": list(self.criteria)}

    @classmethod
    def from_json(cls, stored: dict[str, Any] | None) -> "RoundSettings":
        """From `to_json`; None gives the defaults."""
        kept = dict(stored or {})
        return cls(**kept | {"criteria": tuple(kept.get("criteria", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One labeler's opinion of one card.

    `tiers[i]` is the tier of response i, 0 is best, equal tiers are ties, without gaps.
    `gaps[t]` grades tier t over tier t + 1 from 1 to 3, None where not said; empty if none is.
    `bar`: tiers from this one on are unacceptable; 0 rejects all; None where not said.
    `flags` name unsafe responses with a category; `scores` are (response, criterion, 1 to 5).
    """

    tiers: tuple[int, ...]
    gaps: tuple[int | None, ...] = ()
    bar: int | None = None
    flags: tuple[tuple[int, str], ...] = ()
    scores: tuple[tuple[int, str, int], ...] = ()
    rationale: str = ""

    def content(self) -> dict[str, Any]:
        """The columns of an annotation, in the form that the database gives back."""
        return {
            "tiers": list(self.tiers),
            "gaps": list(self.gaps),
            "bar": self.bar,
            "flags": [list(flag) for flag in self.flags],
            "criteria": [list(score) for score in self.scores],
            "rationale": self.rationale,
        }

    @classmethod
    def from_row(cls, row: Any) -> "Judgement":
        """From an annotation's row."""
        return cls(
            tiers=tuple(row.tiers),
            gaps=tuple(row.gaps or ()),
            bar=row.bar,
            flags=tuple((place, category) for place, category in row.flags or ()),
            scores=tuple((place, name, value) for place, name, value in row.criteria or ()),
            rationale=row.rationale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What the judgement took: seconds with the page in front, seconds in all, reorderings."""

    active_seconds: float = 0.0
    wall_seconds: float | None = None
    moves: int | None = None

    def __post_init__(self) -> None:
        for name in ("active_seconds", "wall_seconds", "moves"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise LabelError(f"{name} is {value}; it must be 0 or more")


def check_tiers(tiers: Sequence[int]) -> tuple[int, ...]:
    """The tiers as a tuple; refuses anything but whole numbers from 0 without gaps."""
    given = list(tiers)
    whole = all(isinstance(tier, int) and not isinstance(tier, bool) for tier in given)
    if not whole or set(given) != set(range(len(set(given)))) or not given:
        raise LabelError(
            f"tiers {given!r} are not accepted: whole numbers from 0 (best) without gaps, equal "
            "numbers for ties, e.g. [1, 0, 1]"
        )
    return tuple(given)


def check_judgement(judgement: Judgement, responses: int, settings: RoundSettings) -> None:
    """Refuses what does not fit the card or lacks what the round requires.

    Raises:
        LabelError: names the field, the value and what is accepted.
    """
    check_tiers(judgement.tiers)
    if len(judgement.tiers) != responses:
        raise LabelError(
            f"the ranking has {len(judgement.tiers)} tiers, but the card shows {responses} "
            "responses; give one tier for each"
        )
    _check_grades(judgement, settings)
    _check_marks(judgement, responses, settings)
    written = len(judgement.rationale)
    if written > MAX_RATIONALE_CHARACTERS:
        raise LabelError(
            f"the reason has {written} characters; at most {MAX_RATIONALE_CHARACTERS} are kept"
        )
    if settings.rationale == "required" and not judgement.rationale.strip():
        raise LabelError("this round asks for a reason in words; write one and submit again")


def _check_grades(judgement: Judgement, settings: RoundSettings) -> None:
    tiers = len(set(judgement.tiers))
    gaps = judgement.gaps
    if gaps and len(gaps) != tiers - 1:
        raise LabelError(f"{len(gaps)} gaps were graded between {tiers} tiers; grade {tiers - 1}")
    if not all(gap is None or gap in range(1, STRONGEST + 1) for gap in gaps):
        raise LabelError(f"gaps {list(gaps)!r} are not accepted: 1, 2, 3 or none")
    graded = len(gaps) == tiers - 1 and None not in gaps
    if settings.strength == "required" and not graded:
        raise LabelError("this round asks how much better each tier is; grade every gap")
    if judgement.bar is not None and judgement.bar not in range(tiers + 1):
        raise LabelError(f"the bar is at {judgement.bar}; with {tiers} tiers it is 0 to {tiers}")


def _check_marks(judgement: Judgement, responses: int, settings: RoundSettings) -> None:
    places = [place for place, _ in judgement.flags]
    if len(set(places)) != len(places) or not set(places) <= set(range(responses)):
        raise LabelError(f"unsafe flags {judgement.flags!r} name a response twice or none there is")
    unknown = {category for _, category in judgement.flags} - set(UNSAFE_CATEGORIES)
    if unknown:
        raise LabelError(
            f"unsafe categories {sorted(unknown)} are unknown; accepted: "
            f"{', '.join(UNSAFE_CATEGORIES)}"
        )
    keys = [(place, name) for place, name, _ in judgement.scores]
    fitting = all(
        place in range(responses) and name in settings.criteria and value in range(1, 6)
        for place, name, value in judgement.scores
    )
    if not fitting or len(set(keys)) != len(keys):
        raise LabelError(
            f"scores {judgement.scores!r} are not accepted: 1 to 5, once for a response and one "
            f"of the criteria {settings.criteria!r}"
        )
