"""What a training loop may ask of a model, and nothing else.

A role is a model somewhere: in this process (`alignment.roles_local`) or on Ray actors around
DeepSpeed and vLLM (`alignment.cluster`). Loops see these protocols only, so the same loop runs
in a unit test and on a cluster. Every call is synchronous and raises the role's own error. A role
may have `devices`, the set of names of where it computes; one without them shares with every other
(`alignment.training.side_by_side`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from alignment.experience import EncodedPrompt, Rollout, Sampling, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobOutputs:
    """What a language model says about a batch: new_logprobs, entropy, both [B, T] float32."""

    new_logprobs: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueOutputs:
    """What a value model says: new_values [B, T] before each token; scores [B] at the last, an
    ensemble's [B, heads], whose values are the heads' mean.
    """

    new_values: Tensor
    scores: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """A microbatch's loss as a sum, not yet divided, and its metrics: sums too, of names in `_max`
    maxima.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


Loss = Callable[[Any, Any], LossSums]
"""`loss(outputs, microbatch) -> LossSums`; a picklable pure function or functools.partial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What an optimiser step did: gradient norm before clipping and the learning rate used."""

    gradient_norm: float
    learning_rate: float


class LogprobModel(Protocol):
    """A frozen or trained language model that scores given tokens at its own temperature."""

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probability of each response token, float32 [B, T], 0 elsewhere."""
        ...


class ScoreModel(Protocol):
    """A reward model."""

    def scores(self, batch: TokenBatch) -> Tensor:
        """One normalised score a sequence, float32 [B]."""
        ...


class Trainable(Protocol):
    """A model with an optimiser behind it."""

    def forward_backward(
        self, batch: TokenBatch, loss: Loss, *, denominator: float
    ) -> dict[str, float]:
        """Add the gradient of `sum of loss over the whole batch / denominator`.

        The role cuts it into microbatches and ranks as it likes: the gradient does not depend on
        it. Returns `loss`, likewise, and the metrics, summed (maximum for names in `_max`).
        """
        ...

    def step(self) -> StepReport:
        """Clip, update the weights, advance the schedule, clear the gradients."""
        ...

    def rest(self) -> None:
        """Give back memory that only the next call would need: others come first now."""
        ...

    def save_checkpoint(self, folder: Path) -> None:
        """Write weights, optimiser, schedule and RNG of every rank."""
        ...

    def load_checkpoint(self, folder: Path) -> None:
        """Restore all of it; raises CheckpointError naming a missing part."""
        ...

    def export(self, folder: Path) -> None:
        """Write the weights as a folder that transformers (and, for a policy, vLLM) loads."""
        ...


class Policy(Trainable, Protocol):
    """The language model being trained."""

    def logprobs(self, batch: TokenBatch, *, trained_next: bool = False) -> Tensor:
        """See `LogprobModel`. With `trained_next`, what the next `forward_backward`, of the same
        batch, needs of the first microbatch's pass may be kept for it.
        """
        ...

    def weights(self) -> Any:
        """A handle on the current weights that this family's Generator can load."""
        ...


class Critic(Trainable, Protocol):
    """The value model being trained."""

    def values(self, batch: TokenBatch, *, trained_next: bool = False) -> Tensor:
        """Value before each response token, float32 [B, T], 0 elsewhere; see `Policy`."""
        ...

    def scores(self, batch: TokenBatch) -> Tensor:
        """Value after the last token of each sequence, float32 [B]."""
        ...


class RewardModelTrainable(Trainable, ScoreModel, Protocol):
    """The reward model while it is being trained; its scores are not yet normalised."""


class Generator(Protocol):
    """The rollout engine."""

    def generate(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, *, seeds: Sequence[int]
    ) -> Rollout:
        """One response for each prompt in the order given (repeat a prompt for K samples)."""
        ...

    def load_weights(self, weights: Any, *, version: int) -> None:
        """Use these weights from now on and stamp later rollouts with `version`."""
        ...


class MetricSink(Protocol):
    """Where numbers go while a stage works."""

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics, names as declared in `alignment.metrics`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PPORoles:
    """The models of PPO, wherever they are; methods that compare responses have no critic."""

    policy: Policy
    reference: LogprobModel
    reward_model: ScoreModel
    generator: Generator
    critic: Critic | None = None
