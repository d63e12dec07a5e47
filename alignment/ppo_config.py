"""Settings of the PPO family: which method, and every named option with its source.

A method is a table of defaults over one loop (`METHODS`); any of them may be set otherwise, and
the stored configuration holds what was used. A setting that would have no effect under the
method is refused by name. Formulas, with equation numbers, are in docs/numerics.md.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from alignment.settings import (
    Count,
    Fraction,
    NonNegative,
    OptimizerConfig,
    Positive,
    Settings,
    TrainingConfig,
)

Method = Literal["ppo", "rloo", "grpo", "dr_grpo", "reinforce++", "reinforce++_baseline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRules:
    """What a method is: has it a critic, does it compare the responses of a prompt, its defaults.

    A method that compares responses gives all tokens of a response the same advantage.
    """

    has_critic: bool = False
    compares_responses: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)


_NO_CRITIC: dict[str, Any] = {"critic_optimizer": None, "value_clip": None, "gae_lambda": 1.0}
_CRITIC_ONLY = {"critic_warmup_steps": 0, "score_position": "last_token"}
_KL_AS_LOSS = {"kl_placement": "loss", "kl_estimator": "k3"}

METHODS: dict[str, MethodRules] = {
    "ppo": MethodRules(has_critic=True),
    "rloo": MethodRules(
        compares_responses=True,
        defaults=_NO_CRITIC | {"aggregation": "seq-mean-token-sum", "whiten_advantages": False},
    ),
    "grpo": MethodRules(
        compares_responses=True,
        defaults=_NO_CRITIC
        | _KL_AS_LOSS
        | {"aggregation": "seq-mean-token-mean", "whiten_advantages": False},
    ),
    "dr_grpo": MethodRules(
        compares_responses=True,
        defaults=_NO_CRITIC
        | _KL_AS_LOSS
        | {"aggregation": "seq-mean-token-sum", "whiten_advantages": False, "kl_coefficient": 0.0},
    ),
    "reinforce++": MethodRules(defaults=_NO_CRITIC),
    "reinforce++_baseline": MethodRules(
        compares_responses=True,
        defaults=_NO_CRITIC | {"kl_placement": "loss", "kl_estimator": "k2"},
    ),
}


class AdaptiveKLConfig(Settings):
    """The KL coefficient follows the measured KL; Ziegler et al. 2019, arXiv 1909.08593, 2.2."""

    target_nats: Positive = 6.0
    horizon_sequences: Positive = 10000.0
    unit: Literal["sequence", "token"] = "sequence"
    """What `target_nats` is measured on: the KL of a whole response (Ziegler) or of a token."""


class SamplerCorrectionConfig(Settings):
    """Weight w = p_trainer / p_sampler of each token, for a sampler whose numbers differ."""

    kind: Literal["truncate", "mask"] = "truncate"
    """`truncate`: min(w, high). `mask`: w within [low, high], else 0 and the token is left out."""
    low: NonNegative | None = None
    """`mask` only."""
    high: Positive = 2.0

    @model_validator(mode="after")
    def _bounds_agree(self) -> "SamplerCorrectionConfig":
        if self.kind == "truncate" and self.low is not None:
            raise ValueError(
                '`ppo.sampler_correction.low` has no effect with kind "truncate": remove it'
            )
        if self.kind == "mask" and not (self.low is not None and self.low < 1 < self.high):
            raise ValueError(
                f'`ppo.sampler_correction` of kind "mask" needs low < 1 < high, e.g. 0.5 and 5; '
                f"seen: low {self.low}, high {self.high}"
            )
        return self


class PretrainingMixConfig(Settings):
    """Cross-entropy on the demonstrations, added to the loss; Ouyang et al. 2022, eq. 2."""

    coefficient: Positive = 1.0
    sequences_per_minibatch: Count = 8


class PPOConfig(TrainingConfig):
    """Policy optimisation against a reward, with or without a critic."""

    method: Method = "ppo"
    """Decides the advantages, whether there is a critic, and other settings' defaults."""
    steps: Count = 7
    prompts_per_step: Count = 32
    responses_per_prompt: Count = 1
    max_response_tokens: Count = 48
    temperature: Positive = 1.0
    epochs: Count = 1
    sequences_per_minibatch: Count = 16
    kl_coefficient: NonNegative = 0.2
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_placement: Literal["reward", "loss"] = "reward"
    """`reward`: subtracted from each token's reward; `loss`: a term of the loss."""
    kl_clamp_nats: Positive | None = None
    """Bound of each token's KL estimate, either way; absent: none."""
    adaptive_kl: AdaptiveKLConfig | None = None
    score_position: Literal["last_token", "after_end"] = "last_token"
    """Where the score is paid: on the last response token, or one step after it, which trains
    the critic alone (TRL)."""
    discount: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    gae_gaps: Literal["skip", "count"] = "skip"
    """Tokens between two parts of a response that the policy did not emit: no steps of the
    advantage, or steps of value and reward 0. Rollouts without such gaps do not change."""
    whiten_advantages: bool = True
    whitening_variance: Literal["unbiased", "biased"] = "unbiased"
    """Variance of whitening divides by n - 1 or by n."""
    whiten_rewards: bool = False
    """Token rewards are divided by their standard deviation over the rollout, mean kept."""
    clip_low: Positive = 0.2
    clip_high: Positive = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Loss of tokens with negative advantage A is at most -dual_clip * A; absent: no bound."""
    value_clip: Positive | None = 0.2
    """Absent: the value loss is not clipped."""
    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] = "token-mean"
    entropy_coefficient: NonNegative = 0.0
    """Weight of the entropy of the policy, a bonus in the loss."""
    normalise_scores: bool = False
    """Scores are centred and scaled by mean and deviation over all steps so far."""
    reward_clip: Positive | None = None
    missing_eos_penalty: NonNegative = 0.0
    """What a response that met the token limit pays."""
    missing_eos_rule: Literal["subtract", "replace"] = "subtract"
    """`subtract` the penalty from the score, or `replace` the score by minus the penalty."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Whose log-probabilities the ratio and the KL of rewards start from: the policy's, recomputed,
    or the rollout engine's, which leaves out that pass; the gap between them is then what the first
    minibatch of the update sees."""
    sampler_correction: SamplerCorrectionConfig | None = None
    sampler_gap_limit_nats: Positive | None = None
    """Alarm: the run stops before an update if mean |sampler - trainer| a token is beyond it; with
    `old_logprobs = "sampler"` that of the step's first minibatch, of the policy."""
    kl_budget_nats: Positive = 8.0
    """Per sequence; a batch beyond it stops the update before weights are published."""
    update_kl_limit_nats: Positive | None = None
    """Per token, KL of a step's old against its new policy; beyond it the step's updates end."""
    critic_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """First steps in which only the critic is updated."""
    pretraining_mix: PretrainingMixConfig | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Export a moving average of the policy's weights, which keeps this share of itself at each
    update; DeepSpeed-Chat uses 0.992. Absent: the weights themselves are exported."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=4e-5, final_learning_rate_fraction=0.31
    )
    critic_optimizer: OptimizerConfig | None = OptimizerConfig(
        learning_rate=2e-5, final_learning_rate_fraction=1.0
    )
    checkpoint_every_steps: Count = 2
    exact: bool = True
    """Resume only where ranks, threads, processor and versions are as before, so that the result
    is that of an unbroken run to the bit; if false, a change goes on record instead."""
    overlap: bool = False
    """Sample step t + 1 while step t is trained, from weights one update older (one-step
    off-policy)."""

    @property
    def sequences_per_step(self) -> int:
        """Rollout batch: prompts times responses a prompt."""
        return self.prompts_per_step * self.responses_per_prompt

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps of a full step: epochs times minibatches."""
        return self.epochs * (self.sequences_per_step // self.sequences_per_minibatch)

    @property
    def policy_updates(self) -> int:
        """Optimiser steps of the policy in the whole training, if none is ended early."""
        return (self.steps - self.critic_warmup_steps) * self.updates_per_step

    @property
    def has_critic(self) -> bool:
        """Whether the method trains a critic."""
        return METHODS[self.method].has_critic

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        rules = METHODS.get(str(settings.get("method", "ppo")))
        return {**rules.defaults, **settings} if rules else settings

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "PPOConfig":
        problems = [*_size_problems(self), *_method_problems(self), *_option_problems(self)]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _size_problems(config: PPOConfig) -> list[str]:
    problems = []
    if config.sequences_per_step % config.sequences_per_minibatch:
        problems.append(
            f"`ppo.prompts_per_step` {config.prompts_per_step} x `ppo.responses_per_prompt` "
            f"{config.responses_per_prompt} = {config.sequences_per_step} sequences is not "
            f"divisible by `ppo.sequences_per_minibatch` {config.sequences_per_minibatch}"
        )
    if config.critic_warmup_steps >= config.steps:
        problems.append(
            f"`ppo.critic_warmup_steps` {config.critic_warmup_steps} leaves none of `ppo.steps` "
            f"{config.steps} to the policy"
        )
    return problems


def _method_problems(config: PPOConfig) -> list[str]:
    """Settings that the method cannot use, or lacks."""
    rules, method = METHODS[config.method], f'`ppo.method = "{config.method}"`'
    problems = []
    if rules.has_critic and config.critic_optimizer is None:
        problems.append(f"{method} needs `ppo.critic_optimizer`")
    if not rules.has_critic:
        for name, unused in {**_NO_CRITIC, **_CRITIC_ONLY}.items():
            seen = getattr(config, name)
            if seen != unused:
                problems.append(
                    f"`ppo.{name}` (seen: {seen}) has no effect with {method}, which has no "
                    "critic: remove it"
                )
    if rules.compares_responses:
        if config.responses_per_prompt < 2:
            problems.append(
                f"{method} compares the responses of a prompt and needs "
                f"`ppo.responses_per_prompt` of 2 or more (seen: {config.responses_per_prompt})"
            )
        if config.discount != 1.0:
            problems.append(
                f"`ppo.discount` (seen: {config.discount}) has no effect with {method}, which "
                "judges whole responses: remove it"
            )
    return problems


def _option_problems(config: PPOConfig) -> list[str]:
    """Options that contradict each other or do nothing."""
    problems = []
    if config.kl_placement == "loss" and config.kl_estimator == "k1" and config.kl_coefficient:
        problems.append(
            '`ppo.kl_estimator = "k1"` has no gradient in expectation as a loss term: use "k2" or '
            '"k3", or `ppo.kl_placement = "reward"`'
        )
    if config.adaptive_kl is not None and config.kl_coefficient == 0:
        problems.append("`ppo.adaptive_kl` scales `ppo.kl_coefficient`, which is 0 and stays 0")
    if config.whitening_variance == "biased" and not (
        config.whiten_advantages or config.whiten_rewards
    ):
        problems.append(
            "`ppo.whitening_variance` has no effect: neither `ppo.whiten_advantages` nor "
            "`ppo.whiten_rewards` is on"
        )
    if config.whiten_rewards and config.score_position == "after_end":
        problems.append(
            "`ppo.whiten_rewards` scales the rewards of tokens, and with `ppo.score_position = "
            '"after_end"` the score is not among them: remove one'
        )
    if config.old_logprobs == "sampler" and config.sampler_correction is not None:
        problems.append(
            "`ppo.sampler_correction` corrects for `ppo.old_logprobs = "
            '"trainer"`; with "sampler" the ratio already starts from the sampler: remove one'
        )
    if (
        config.old_logprobs == "sampler"
        and config.sampler_gap_limit_nats is not None
        and config.lora is not None
        and config.lora.dropout > 0
    ):
        problems.append(
            "`ppo.sampler_gap_limit_nats` would be held against dropout too: with "
            '`ppo.old_logprobs = "sampler"` the gap is what the update sees. Remove it or '
            "`ppo.lora.dropout`"
        )
    if config.ema_decay is not None and config.lora is not None:
        problems.append(
            "`ppo.ema_decay` averages weights, and the average of LoRA's two factors is not that "
            "of their product: remove one of `ppo.ema_decay` and `ppo.lora`"
        )
    if config.ema_decay is not None and config.zero_stage == 3:
        problems.append(
            "`ppo.ema_decay` needs whole weights on every rank, which `ppo.zero_stage = 3` does "
            "not have: use 0, 1 or 2, or remove `ppo.ema_decay`"
        )
    if config.update_kl_limit_nats is not None and config.updates_per_step == 1:
        problems.append(
            "`ppo.update_kl_limit_nats` has no effect with one update a step: there is none to "
            "leave out"
        )
    return problems
