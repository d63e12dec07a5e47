"""Every metric a run records: its name, unit and meaning, in one table.

A name reads `stage/quantity_unit`; the part before the slash is the file it lands in,
`metrics/<stage>.jsonl`. A name that is not here is refused when it is recorded, so the report,
the documentation and the loops cannot drift apart. Loads neither torch nor ray.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from alignment.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One declared metric, e.g. `Metric(name="ppo/kl_nats", unit="nats a sequence", ...)`."""

    name: str
    unit: str
    description: str


_TABLE: tuple[tuple[str, str, str], ...] = (
    ("sft/loss", "nats a token", "cross-entropy of the response tokens of the minibatch"),
    ("sft/tokens_per_s", "tokens a second", "prompt and response tokens trained on"),
    ("sft/gradient_norm", "", "global norm before clipping"),
    ("sft/learning_rate", "", "rate used by the step"),
    ("reward_model/loss", "nats a pair", "pairwise Bradley-Terry loss of the minibatch"),
    ("reward_model/accuracy", "share", "pairs of the minibatch ordered as the labelers did"),
    ("reward_model/margin_mean", "score", "score of the preferred response minus the other's"),
    ("reward_model/tokens_per_s", "tokens a second", "prompt and response tokens trained on"),
    ("reward_model/gradient_norm", "", "global norm before clipping"),
    ("reward_model/learning_rate", "", "rate used by the step"),
    ("dpo/loss", "nats a pair", "Bradley-Terry loss of the implicit rewards of the minibatch"),
    ("dpo/accuracy", "share", "pairs of the minibatch ordered as the labelers did"),
    ("dpo/gradient_norm", "", "global norm before clipping"),
    ("dpo/learning_rate", "", "rate used by the step"),
    ("dpo/tokens_per_s", "tokens a second", "prompt and response tokens trained on"),
    ("ppo/score_mean", "score", "reward-model score of the rollouts, 0 for the SFT policy"),
    ("ppo/score_sd", "score", "standard deviation of the score over the rollouts"),
    ("ppo/disagreement_mean", "score", "deviation over an ensemble's heads, before any penalty"),
    ("ppo/repetition_mean", "share", "token triples that occurred before in their response"),
    ("ppo/heldout_score_mean", "score", "reward-model score of responses to held-out prompts"),
    ("ppo/heldout_judge_mean", "judgement", "second judge's score of the same responses"),
    ("ppo/length_reading", "", "length over that of the first steps"),
    ("ppo/repetition_reading", "share", "repetition minus that of the first steps"),
    ("ppo/disagreement_reading", "", "disagreement over that of the first steps"),
    ("ppo/judge_reading", "judgement", "how far the held-out judge's trend falls"),
    ("ppo/alarm_length", "", "1 where the length left its bounds, else 0"),
    ("ppo/alarm_repetition", "", "1 where repetition rose beyond its bound, else 0"),
    ("ppo/alarm_disagreement", "", "1 where disagreement rose beyond its bound, else 0"),
    ("ppo/alarm_judge", "", "1 where the reward rises and the held-out judge falls, else 0"),
    ("ppo/reward_mean", "score", "score minus the KL penalty, summed over a sequence"),
    ("ppo/kl_nats", "nats a sequence", "k1 against the reference, summed over a sequence"),
    ("ppo/kl_coefficient", "score a nat", "weight of the KL penalty in the reward"),
    ("ppo/entropy_nats", "nats a token", "entropy of the policy at the response tokens"),
    ("ppo/clip_fraction", "share", "tokens whose ratio was clipped"),
    ("ppo/approx_kl_nats", "nats a token", "k3 of the new against the old policy"),
    ("ppo/first_ratio_max_deviation", "", "largest |ratio - 1| before the step's first update"),
    ("ppo/explained_variance", "", "1 - Var(returns - values) / Var(returns); 1 is perfect"),
    ("ppo/policy_loss", "", "clipped surrogate, negated"),
    ("ppo/value_loss", "score squared", "half the (clipped) squared error of the values"),
    ("ppo/value_clip_fraction", "share", "tokens whose value was clipped"),
    ("ppo/gradient_norm", "", "global norm of the policy's gradient before clipping"),
    ("ppo/critic_gradient_norm", "", "global norm of the critic's gradient before clipping"),
    ("ppo/learning_rate", "", "rate used by the policy's last optimiser step"),
    ("ppo/critic_learning_rate", "", "rate used by the critic's last optimiser step"),
    ("ppo/returns_mean", "score", "mean return over response tokens"),
    ("ppo/response_tokens_mean", "tokens", "length of the rollouts, end-of-turn included"),
    ("ppo/eos_rate", "share", "rollouts that ended by themselves within the limit"),
    ("ppo/sampler_gap_max", "nats a token", "largest |sampler's - trainer's log-probability|"),
    ("ppo/sampler_gap_mean", "nats a token", "mean |sampler's - trainer's log-probability|"),
    ("ppo/sampler_gap_kl_nats", "nats a token", "k3 estimate of KL(sampler || trainer)"),
    ("ppo/updates", "", "optimiser steps made of the step's rollout"),
    ("ppo/pretraining_loss", "nats a token", "cross-entropy of the pretraining mix"),
    ("ppo/policy_version", "version", "version of the weights that sampled the rollouts"),
    (
        "ppo/generate_tokens_per_s",
        "tokens a second",
        "response tokens sampled, over the time the loop waited for them",
    ),
    ("ppo/score_tokens_per_s", "tokens a second", "prompt and response tokens, by the reward"),
    (
        "ppo/old_logprobs_tokens_per_s",
        "tokens a second",
        "prompt and response tokens, by the policy before its update",
    ),
    (
        "ppo/reference_logprobs_tokens_per_s",
        "tokens a second",
        "prompt and response tokens, by the reference",
    ),
    (
        "ppo/values_tokens_per_s",
        "tokens a second",
        "prompt and response tokens, by the critic before its update",
    ),
    (
        "ppo/update_policy_tokens_per_s",
        "tokens a second",
        "prompt and response tokens, all epochs, by the policy's updates",
    ),
    (
        "ppo/update_critic_tokens_per_s",
        "tokens a second",
        "prompt and response tokens, all epochs, by the critic's updates",
    ),
    ("time/start_roles_s", "s", "starting processes and loading models"),
    ("time/generate_s", "s", "sampling responses"),
    ("time/score_s", "s", "reward-model scores"),
    ("time/old_logprobs_s", "s", "log-probabilities by the policy before its update"),
    ("time/reference_logprobs_s", "s", "log-probabilities by the frozen reference"),
    ("time/values_s", "s", "values by the critic before its update"),
    ("time/update_policy_s", "s", "forward, backward and optimiser steps of the policy"),
    ("time/update_critic_s", "s", "forward, backward and optimiser steps of the critic"),
    ("time/update_s", "s", "forward, backward and optimiser steps of one step"),
    ("time/sync_weights_s", "s", "copying the policy's weights to the rollout engines"),
    ("time/checkpoint_s", "s", "writing a checkpoint"),
    ("time/step_s", "s", "the whole step; roles on their own devices work at the same time"),
    ("memory/rise_gib", "GiB", "highest use of the machine's memory so far above the start's"),
)

METRICS: dict[str, Metric] = {
    name: Metric(name=name, unit=unit, description=description)
    for name, unit, description in _TABLE
}

SCORE_OF = "ppo/score_of_"
"""A reward source's mean score before its weight; the name of the source follows."""

MEMORY_OF = "memory/gib_of_"
"""A process's highest memory so far; the name of its role and its rank follow."""

_FAMILIES: dict[str, tuple[str, str]] = {
    SCORE_OF: ("score", "mean score by `{}`, before its weight"),
    MEMORY_OF: ("GiB", "highest proportional set size of `{}` so far"),
}


def metric(name: str) -> Metric:
    """The declaration of a metric; that of a reward source or a process is made from its name.

    Raises:
        DataError: it is not declared.
    """
    check_names([name])
    if name in METRICS:
        return METRICS[name]
    prefix = next(prefix for prefix in _FAMILIES if name.startswith(prefix))
    unit, description = _FAMILIES[prefix]
    return Metric(name=name, unit=unit, description=description.format(name.removeprefix(prefix)))


def check_names(metrics: Iterable[str]) -> None:
    """Refuse metric names that the table does not declare.

    Raises:
        DataError: names every undeclared metric.
    """
    unknown = sorted(
        name
        for name in set(metrics) - METRICS.keys()
        if not any(name.startswith(prefix) and name != prefix for prefix in _FAMILIES)
    )
    if unknown:
        raise DataError(
            f"undeclared metric {', '.join(repr(name) for name in unknown)}: a metric needs a "
            "name, unit and description in alignment/metrics.py before it is recorded"
        )
