"""What the label service hands out and takes back: plain frozen records.

A `Card` is all a labeler gets to see of a task. It carries no response id, no origin and no
order from before the shuffle, so nothing in it says which model wrote what.
"""

from dataclasses import dataclass

from alignment.records import Message
from labeling_ui.judgement import Judgement

RESPONSE_LABELS = "ABCDEFGHI"
"""Names of the responses on a card, in display order; also the limit of 9 a card."""

SKIP_REASONS = {
    "language": "I do not read this language well enough",
    "expertise": "I lack the knowledge to judge this",
    "broken": "The prompt or the responses are broken",
    "distress": "I would rather not read this",
    "other": "Another reason",
}
"""Why a labeler may pass on a prompt: code stored with the skip, and its wording on the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardResponse:
    """One blind response: its letter, its exact text, and whether it met the length limit."""

    label: str
    text: str
    cut_off: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One prompt with its responses in the order drawn for this labeler.

    Responses with identical text are shown once; whatever tier it gets, all of them get.
    `task_id` is the same for every labeler of the prompt; pages keep it to themselves.
    """

    assignment_id: str
    task_id: str
    messages: tuple[Message, ...]
    language: str
    responses: tuple[CardResponse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that a ranking is on disk.

    `counted` is False for surplus work: it came after the lease ran out and others had already
    filled the prompt. It is kept, but is not part of the round's rankings. `round_complete` says
    whether the round has all its rankings now.
    """

    submission_id: str
    assignment_id: str
    counted: bool
    round_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStatus:
    """How far a round is.

    `rankings_wanted` shrinks when a prompt leaves the round because people skipped it.
    `panel` names the simulated panel that ranks this round; empty where people rank. `state` is
    open, paused (no new cards for now), closed (no new cards), or frozen (for good).
    """

    round_id: str
    name: str
    panel: str
    tasks: int
    tasks_left_out: int
    rankings_wanted: int
    rankings_done: int
    labelers: int
    state: str
    frozen_digest: str | None

    @property
    def complete(self) -> bool:
        """True when no further ranking is wanted."""
        return self.rankings_done >= self.rankings_wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerProgress:
    """What one labeler has ranked in a round, and what is still open to them.

    `left` is counted up to 200.
    """

    done: int
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedCard:
    """A card that a labeler ranked or skipped, for their own list of work.

    `excerpt` begins the last turn of the prompt; `revisions` is 0 for a skipped card.
    """

    assignment_id: str
    finished_ms: int
    state: str
    excerpt: str
    revisions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReopenedCard:
    """A finished card with what its labeler said, oldest revision first; empty if skipped."""

    round_id: str
    card: Card
    judgements: tuple[Judgement, ...]
