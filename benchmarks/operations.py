"""Floating-point operations of a transformer's passes, and figures made of repeated rounds.

A multiplication and an addition count as two. Matrix products and causal attention count,
everything else (norms, activations, softmax, optimiser) is overhead by this measure.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from alignment.planning.model_shapes import ModelShape

FORWARD, WITH_BACKWARD = 1, 3
"""A backward pass takes twice the products of its forward pass."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Prompt and response lengths in tokens, one pair a sequence."""

    prompts: tuple[int, ...]
    responses: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Prompt and response tokens together."""
        return sum(self.prompts) + sum(self.responses)

    @property
    def response_tokens(self) -> int:
        """Response tokens."""
        return sum(self.responses)

    def padded(self, *, response_tokens: int | None = None) -> "Sequences":
        """Every sequence as long as the longest prompt and (unless given) longest response."""
        count = len(self.prompts)
        longest = max(self.responses) if response_tokens is None else response_tokens
        return Sequences((max(self.prompts),) * count, (longest,) * count)


def body_operations(shape: ModelShape, sequences: Sequences) -> float:
    """The layers' products over all tokens, and attention of each token to those before it."""
    weights = 2.0 * shape.layers * shape.layer_matrices * sequences.tokens
    pairs = sum(
        (p + r) * (p + r + 1) / 2
        for p, r in zip(sequences.prompts, sequences.responses, strict=True)
    )
    return weights + 4.0 * shape.layers * shape.query_width * pairs


def vocabulary_operations(shape: ModelShape, tokens: float) -> float:
    """Hidden states to logits for this many tokens."""
    return 2.0 * shape.vocabulary_matrix * tokens


def language_pass(shape: ModelShape, sequences: Sequences) -> float:
    """A forward pass that scores each response token."""
    head = vocabulary_operations(shape, sequences.response_tokens)
    return body_operations(shape, sequences) + head


def value_pass(shape: ModelShape, sequences: Sequences) -> float:
    """A forward pass of a value model; its head is one number a token."""
    return body_operations(shape, sequences)


def ppo_phase_operations(
    shape: ModelShape,
    sequences: Sequences,
    *,
    epochs: int,
    asks_policy: bool = True,
    kept_share: float = 0.0,
) -> dict[str, float]:
    """What each phase of our PPO step needs, all four models being of one shape.

    The policy is not asked for old log-probabilities where they are the sampler's. `kept_share` of
    the sequences are updated from the pass that scored them.
    """
    language, value = language_pass(shape, sequences), value_pass(shape, sequences)
    phases = {
        "generate": language,
        "score": value,
        "old_logprobs": language,
        "reference_logprobs": language,
        "values": value,
        "update_policy": WITH_BACKWARD * epochs * language,
        "update_critic": (WITH_BACKWARD * epochs - FORWARD * kept_share) * value,
    }
    if asks_policy:
        phases["update_policy"] -= FORWARD * kept_share * language
    else:
        del phases["old_logprobs"]
    return phases


def trl_step_operations(shape: ModelShape, padded: Sequences, *, epochs: int) -> float:
    """TRL's step on a padded batch, which also projects prompts to the vocabulary.

    Generation, reference, reward and value in the rollout; policy and critic in each epoch. Its
    old log-probabilities are those of generation.
    """
    body, value = body_operations(shape, padded), value_pass(shape, padded)
    everywhere = vocabulary_operations(shape, padded.tokens)
    generated = body + vocabulary_operations(shape, padded.response_tokens)
    rollout = generated + (body + everywhere) + 2 * value
    return rollout + WITH_BACKWARD * epochs * (body + everywhere + value)


def predicted_ratio(
    shape: ModelShape,
    sequences: Sequences,
    *,
    epochs: int,
    asks_policy: bool = True,
    kept_share: float = 0.0,
    trl_response_tokens: int | None = None,
) -> float:
    """TRL's operations over ours: its time over ours if both compute equally fast."""
    padded = sequences.padded(response_tokens=trl_response_tokens)
    phases = ppo_phase_operations(
        shape, sequences, epochs=epochs, asks_policy=asks_policy, kept_share=kept_share
    )
    ours = sum(phases.values())
    return trl_step_operations(shape, padded, epochs=epochs) / ours


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of repeated rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g}, {self.rounds} rounds)"


def spread(values: Sequence[float]) -> Spread:
    """Median and range of the rounds; ValueError if there is none."""
    if not values:
        raise ValueError("there is no round to summarise; run at least one")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def weighted_rate(operations: Sequence[float], rates: Sequence[float]) -> float:
    """Operations over the time they take at their own rates: a mean weighted by operations."""
    seconds = sum(done / rate for done, rate in zip(operations, rates, strict=True))
    return sum(operations) / seconds
