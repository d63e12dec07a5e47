"""What one PPO step is recorded as: metrics, and where its time went."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from alignment.checkpoints import LoopState
from alignment.config import PPOConfig
from alignment.experience import Experience, ScoredRollout
from alignment.objectives.value_losses import explained_variance
from alignment.training.roles import StepReport
from alignment.training.sampler_gap import minibatch_gap, rollout_gap


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
        phases = {f"time/{name}_s": seconds for name, seconds in sorted(self.seconds.items())}
        return {**phases, "time/step_s": time.perf_counter() - self.started}

    def throughput(self, tokens: Mapping[str, float]) -> dict[str, float]:
        """`ppo/<phase>_tokens_per_s` of each phase that took place, given its tokens."""
        return {
            f"ppo/{phase}_tokens_per_s": tokens[phase] / max(self.seconds[phase], 1e-9)
            for phase in self.seconds.keys() & tokens.keys()
        }


class UpdateLog:
    """Means over the minibatches of one step, and what the very first one saw."""

    def __init__(self) -> None:
        self.policy: list[dict[str, float]] = []
        self.critic: list[dict[str, float]] = []
        self.pretraining: list[dict[str, float]] = []
        self.first_policy_sums: Mapping[str, float] | None = None
        self.tokens = {"update_policy": 0.0, "update_critic": 0.0}
        """Prompt and response tokens that went through each role's updates."""

    def __len__(self) -> int:
        """Updates so far, of the policy or, where it rests, of the critic."""
        return max(len(self.policy), len(self.critic))

    def add_policy(self, sums: Mapping[str, float], report: StepReport) -> None:
        """Keep one minibatch's numbers of the policy."""
        self.first_policy_sums = self.first_policy_sums or sums
        self.tokens["update_policy"] += sums["all_tokens"]
        self.policy.append(
            {
                "ppo/policy_loss": sums["loss"],
                "ppo/entropy_nats": sums["entropy"] / sums["tokens"],
                "ppo/clip_fraction": sums["clipped"] / sums["tokens"],
                "ppo/approx_kl_nats": sums["approximate_kl"] / sums["tokens"],
                "ppo/gradient_norm": report.gradient_norm,
                "ppo/learning_rate": report.learning_rate,
            }
        )

    def add_critic(self, sums: Mapping[str, float], report: StepReport) -> None:
        """Keep one minibatch's numbers of the critic."""
        self.tokens["update_critic"] += sums["all_tokens"]
        self.critic.append(
            {
                "ppo/value_loss": sums["loss"],
                "ppo/value_clip_fraction": sums["clipped"] / sums["tokens"],
                "ppo/critic_gradient_norm": report.gradient_norm,
                "ppo/critic_learning_rate": report.learning_rate,
            }
        )

    def add_pretraining(self, loss: float) -> None:
        """Keep one minibatch's cross-entropy of the pretraining mix."""
        self.pretraining.append({"ppo/pretraining_loss": loss})

    def is_beyond(self, limit_nats: float | None) -> bool:
        """Whether the last minibatch found the policy too far from the one that sampled."""
        if limit_nats is None or not self.policy:
            return False
        return self.policy[-1]["ppo/approx_kl_nats"] > limit_nats

    def metrics(self) -> dict[str, float]:
        """The step's means; the ratio's deviation from 1 is the first minibatch's."""
        means = {
            name: sum(m[name] for m in minibatches) / len(minibatches)
            for minibatches in (self.policy, self.critic, self.pretraining)
            if minibatches
            for name in minibatches[0]
        }
        if self.first_policy_sums:
            first = self.first_policy_sums["ratio_deviation_max"]
            means["ppo/first_ratio_max_deviation"] = first
        return {**means, "ppo/updates": float(len(self))}


def step_metrics(
    config: PPOConfig,
    scored: ScoredRollout,
    experience: Experience,
    update: UpdateLog,
    state: LoopState,
    kl_nats: float,
    clock: PhaseClock,
) -> dict[str, float]:
    """Everything recorded about one step; names and units in `alignment.metrics`."""
    mask, first = scored.response_mask, update.first_policy_sums
    reward = scored.scores.mean() - state.kl_coefficient * kl_nats
    return {
        "ppo/score_mean": float(scored.scores.mean()),
        "ppo/score_sd": float(scored.scores.std()) if len(scored.scores) > 1 else 0.0,
        "ppo/reward_mean": float(reward),
        "ppo/kl_nats": kl_nats,
        "ppo/kl_coefficient": state.kl_coefficient,
        "ppo/returns_mean": float(experience.returns[mask].mean()),
        **(_explained_variance(experience) if update.critic else {}),
        "ppo/response_tokens_mean": float(mask.sum(1).float().mean()),
        "ppo/eos_rate": float(scored.finished.float().mean()),
        **(rollout_gap(scored) if config.old_logprobs == "trainer" else {}),
        **(minibatch_gap(first) if config.old_logprobs == "sampler" and first else {}),
        "ppo/policy_version": float(scored.policy_version.max()),
        **update.metrics(),
        **clock.metrics(),
        **clock.throughput(_tokens_of_phases(scored) | update.tokens),
    }


def _tokens_of_phases(scored: ScoredRollout) -> dict[str, float]:
    """Response tokens that were sampled; of the models that read, prompt and response tokens."""
    read = float(scored.attention_mask.sum())
    readers = ("score", "old_logprobs", "reference_logprobs", "values")
    return {"generate": float(scored.response_mask.sum()), **dict.fromkeys(readers, read)}


def _explained_variance(experience: Experience) -> dict[str, float]:
    """Left out where all returns are equal: it is not a number then."""
    value = float(
        explained_variance(experience.old_values, experience.returns, experience.response_mask)
    )
    return {"ppo/explained_variance": value} if math.isfinite(value) else {}
