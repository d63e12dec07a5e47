"""Prompts, responses, rankings and comparisons: plain frozen records without torch.

Axes used throughout the project: B sequences, T prompt and response tokens, R response
tokens, V vocabulary, P prompts, K responses a prompt.
"""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]
"""How a response ended: `stop` emitted the end-of-turn token, `length` met the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation, e.g. `Message(role="user", content="Why is the sky blue?")`."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation that ends with a user turn and waits for a response."""

    id: str
    messages: tuple[Message, ...]
    language: str = "en"
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt with the response the model should learn to give."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One response to a prompt.

    `token_ids` are the tokens the policy emitted, end-of-turn token included when
    `finish_reason` is `stop`; empty for imported texts, which are tokenised on use.
    `origin` says what made it, e.g. `policy` or `probe:truncated`; labelers never see it.
    """

    id: str
    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "stop"
    origin: str = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSet:
    """K responses to one prompt, to be ranked."""

    prompt: Prompt
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """One labeler's ranking of a candidate set.

    `tiers[k]` is the tier of `response_ids[k]`: 0 is best, equal tiers are ties, tiers are
    contiguous from 0.
    """

    annotation_id: str
    prompt_id: str
    labeler: str
    response_ids: tuple[str, ...]
    tiers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How strongly the labelers prefer response `first` over response `second` of a group.

    `preference` in [0, 1] is the share of labelers for `first`, a tie counting one half;
    `weight` scales the pair's part of the loss.
    """

    first: int
    second: int
    preference: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceGroup:
    """The K responses of one prompt and the comparisons among them: one reward-model example."""

    prompt: Prompt
    responses: tuple[Response, ...]
    comparisons: tuple[Comparison, ...] = field(default=())
