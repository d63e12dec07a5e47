"""How far the sampler's log-probabilities are from the trainer's, and the alarm on it.

Where the ratio starts from the trainer's, both have read the whole rollout before the update.
Where it starts from the sampler's (`ppo.old_logprobs`), the first minibatch shows the gap: its
log-ratio is taken at the weights that sampled (with `ppo.overlap`, one update later). While the
critic warms up there is no such minibatch, and no gap is told.
"""

from collections.abc import Callable, Mapping
from functools import partial

from alignment.config import PPOConfig
from alignment.errors import NumericsError
from alignment.experience import ScoredRollout
from alignment.objectives.kl import kl_estimate

Check = Callable[[Mapping[str, float]], None]
"""Raises for the sums of a minibatch that must not be stepped on."""


def rollout_gap(scored: ScoredRollout) -> dict[str, float]:
    """Largest and mean gap in nats a token, and k3 of KL(sampler || trainer), of all tokens."""
    sampled = scored.sampling_logprobs[scored.response_mask]
    trained = scored.old_logprobs[scored.response_mask]
    gap, kl = (sampled - trained).abs(), kl_estimate(sampled, trained, estimator="k3")
    return _named(float(gap.max()), float(gap.mean()), float(kl.mean()))


def minibatch_gap(sums: Mapping[str, float]) -> dict[str, float]:
    """The same of one minibatch, from the sums of the policy's loss."""
    tokens = sums["tokens"]
    mean, kl = sums["log_ratio"] / tokens, sums["approximate_kl"] / tokens
    return _named(sums["log_ratio_max"], mean, kl)


def require_small_gap(config: PPOConfig, gap: Mapping[str, float], *, step: int) -> None:
    """Raise NumericsError if the mean gap is beyond `ppo.sampler_gap_limit_nats`."""
    mean, limit = gap["ppo/sampler_gap_mean"], config.sampler_gap_limit_nats
    if limit is not None and not mean <= limit:
        other = 'set `ppo.sampler_correction`, or take `ppo.old_logprobs = "sampler"`'
        if config.old_logprobs == "sampler":
            other = 'take `ppo.old_logprobs = "trainer"`'
        raise NumericsError(
            f"sampler and trainer differ by {mean:.2e} nats a token (largest "
            f"{gap['ppo/sampler_gap_max']:.2e}) at step {step}, over `ppo.sampler_gap_limit_nats` "
            f"{limit:.2e}; the policy's weights are as before. Compare "
            f"`cluster.generator_precision` with `ppo.precision`, {other}, or raise the limit"
        )


def first_minibatch_check(config: PPOConfig, *, step: int) -> Check | None:
    """The alarm of a first minibatch; None where the whole rollout has been looked at before."""
    if config.old_logprobs == "trainer":
        return None
    return partial(_check, config, step)


def _check(config: PPOConfig, step: int, sums: Mapping[str, float]) -> None:
    require_small_gap(config, minibatch_gap(sums), step=step)


def _named(largest: float, mean: float, kl_nats: float) -> dict[str, float]:
    return {
        "ppo/sampler_gap_max": largest,
        "ppo/sampler_gap_mean": mean,
        "ppo/sampler_gap_kl_nats": kl_nats,
    }
