"""What one PPO step is recorded as: metrics, and where its time went."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from alignment.checkpoints import LoopState
from alignment.experience import Experience, ScoredRollout
from alignment.objectives.value_losses import explained_variance
from alignment.training.roles import StepReport


class PhaseClock:
    """Wall seconds of each phase of a step; phases may repeat."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to the phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def metrics(self) -> dict[str, float]:
        """`time/<phase>_s` for each phase and `time/step_s` for the whole."""
        phases = {f"time/{name}_s": seconds for name, seconds in self.seconds.items()}
        return {**phases, "time/step_s": time.perf_counter() - self.started}


class UpdateLog:
    """Means over the minibatches of one step, and what the very first one saw."""

    def __init__(self) -> None:
        self.minibatches: list[dict[str, float]] = []

    def add(
        self,
        policy: Mapping[str, float],
        policy_report: StepReport,
        critic: Mapping[str, float],
        critic_report: StepReport,
    ) -> None:
        """Keep one minibatch's numbers."""
        self.minibatches.append(
            {
                "ppo/policy_loss": policy["loss"],
                "ppo/entropy_nats": policy["entropy"] / policy["tokens"],
                "ppo/clip_fraction": policy["clipped"] / policy["tokens"],
                "ppo/approx_kl_nats": policy["approximate_kl"] / policy["tokens"],
                "ppo/gradient_norm": policy_report.gradient_norm,
                "ppo/learning_rate": policy_report.learning_rate,
                "ppo/value_loss": critic["loss"],
                "ppo/value_clip_fraction": critic["clipped"] / critic["tokens"],
                "ppo/critic_gradient_norm": critic_report.gradient_norm,
                "ppo/critic_learning_rate": critic_report.learning_rate,
                "first_ratio": policy["ratio_deviation_max"],
            }
        )

    def metrics(self) -> dict[str, float]:
        """The step's means; the ratio's deviation from 1 is the first minibatch's."""
        count = len(self.minibatches)
        names = [n for n in self.minibatches[0] if n != "first_ratio"]
        means = {name: sum(m[name] for m in self.minibatches) / count for name in names}
        return {**means, "ppo/first_ratio_max_deviation": self.minibatches[0]["first_ratio"]}


def step_metrics(
    scored: ScoredRollout,
    experience: Experience,
    update: UpdateLog,
    state: LoopState,
    kl_nats: float,
    clock: PhaseClock,
) -> dict[str, float]:
    """Everything recorded about one step; names and units in `alignment.metrics`."""
    mask = scored.response_mask
    gap = (scored.sampling_logprobs - scored.old_logprobs)[mask].abs()
    reward = scored.scores.mean() - state.kl_coefficient * kl_nats
    return {
        "ppo/score_mean": float(scored.scores.mean()),
        "ppo/score_sd": float(scored.scores.std()) if len(scored.scores) > 1 else 0.0,
        "ppo/reward_mean": float(reward),
        "ppo/kl_nats": kl_nats,
        "ppo/kl_coefficient": state.kl_coefficient,
        "ppo/returns_mean": float(experience.returns[mask].mean()),
        **_explained_variance(experience),
        "ppo/response_tokens_mean": float(mask.sum(1).float().mean()),
        "ppo/eos_rate": float(scored.finished.float().mean()),
        "ppo/sampler_gap_max": float(gap.max()),
        "ppo/sampler_gap_mean": float(gap.mean()),
        "ppo/policy_version": float(scored.policy_version.max()),
        **update.metrics(),
        **clock.metrics(),
    }


def _explained_variance(experience: Experience) -> dict[str, float]:
    """Left out where all returns are equal: it is not a number then."""
    value = float(
        explained_variance(experience.old_values, experience.returns, experience.response_mask)
    )
    return {"ppo/explained_variance": value} if math.isfinite(value) else {}
