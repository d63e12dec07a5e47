"""Sampling one step ahead: while step t is scored and trained, the generator samples step t + 1.

With weights of version t in the generator, rollout t + 1 is begun at once, so every rollout
after the first comes from weights that are one update older than those it trains (one-step
off-policy; Noukhovitch et al. 2024, arXiv 2410.18252). Rollouts say which version sampled them.
Old log-probabilities are recomputed by the trainer, so ratios start at 1, and what the sampler's
age does to the expectation is what `ppo.sampler_correction` corrects; or the sampler's are taken
(`ppo.old_logprobs`), and the ratio holds its age.

Exactness: weights of version t are gone once a run is killed, so rollout t is in the journal
before weights of version t are loaded, and with it before checkpoint t is written. A resumed run
therefore replays it, and samples the next one from the version that the unbroken run would use.

The loop does not know: this is a generator like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from alignment.checkpoints import RolloutJournal
from alignment.config import PPOConfig
from alignment.errors import DataError
from alignment.experience import EncodedPrompt, Rollout, Sampling
from alignment.seeds import derive_seed
from alignment.training.ppo_experience import prompts_of_step
from alignment.training.roles import Generator


class PendingRollout(Protocol):
    """A rollout that is being sampled."""

    def wait(self) -> Rollout:
        """The rollout; raises what went wrong with it."""
        ...


class BeginningGenerator(Generator, Protocol):
    """A generator that need not be waited for."""

    def begin(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, *, seeds: Sequence[int]
    ) -> PendingRollout:
        """Like `generate`, with the weights of now, whatever is loaded later."""
        ...


@dataclass(frozen=True, slots=True)
class OneStepAhead:
    """A generator that has the next step's rollout ready, or nearly so, when it is asked for."""

    generator: BeginningGenerator
    journal: RolloutJournal
    config: PPOConfig
    prompts: Sequence[EncodedPrompt]
    seed: int
    _pending: dict[int, PendingRollout] = field(default_factory=dict)

    def load_weights(self, weights: Any, *, version: int) -> None:
        """Journal the rollout of step `version`, load, and begin what can be begun."""
        if version in self._pending:
            self.journal.keep(version, self._pending.pop(version).wait())
        self.generator.load_weights(weights, version=version)
        for step in range(version, min(version + 2, self.config.steps)):
            if step not in self._pending and self.journal.replay(step) is None:
                prompts, sampling, seeds = self._request(step)
                self._pending[step] = self.generator.begin(prompts, sampling, seeds=seeds)

    def generate(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, *, seeds: Sequence[int]
    ) -> Rollout:
        """The rollout of the first step, which nobody could sample ahead.

        Raises:
            DataError: another rollout than the one begun is asked for.
        """
        step = min(self._pending, default=0)
        if not self._pending or self._request(step) != (list(prompts), sampling, list(seeds)):
            raise DataError(
                f"with `ppo.overlap` the rollout of step {step} was begun, but another one is "
                "asked for; train with the same prompts, settings and seed as given to the overlap"
            )
        return self._pending.pop(step).wait()

    def describe(self) -> list[dict[str, Any]]:
        """What runs behind the generator."""
        described: list[dict[str, Any]] = getattr(self.generator, "describe", list)()
        return described

    def _request(self, step: int) -> tuple[list[EncodedPrompt], Sampling, list[int]]:
        """What `train_ppo` asks for at this step."""
        config = self.config
        prompts = prompts_of_step(self.prompts, config, seed=self.seed, step=step)
        seeds = [derive_seed(self.seed, "sample", step, i) for i in range(len(prompts))]
        sampling = Sampling(
            max_response_tokens=config.max_response_tokens, temperature=config.temperature
        )
        return prompts, sampling, seeds
