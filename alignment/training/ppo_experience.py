"""A step's prompts, and from scored tokens to what the update needs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignment.config import PPOConfig
from alignment.data.batching import minibatch_order
from alignment.errors import DataError
from alignment.experience import (
    EncodedPrompt,
    Experience,
    ScoredRollout,
)
from alignment.objectives.kl import adaptive_kl_coefficient, kl_shaped_rewards
from alignment.objectives.masking import masked_whiten
from alignment.objectives.running_moments import RunningMoments
from alignment.seeds import derive_seed
from alignment.training.ppo_advantages import advantages_and_returns


def prompts_of_step(
    prompts: Sequence[EncodedPrompt], config: PPOConfig, *, seed: int, step: int
) -> list[EncodedPrompt]:
    """The step's prompts, each repeated for its responses; a pure function of seed and step.

    Prompts are visited in a shuffled order, reshuffled when all have been seen.

    Raises:
        DataError: there are fewer prompts than a step takes.
    """
    if len(prompts) < config.prompts_per_step:
        raise DataError(
            f"there are {len(prompts)} prompts to train on, and a step takes "
            f"`ppo.prompts_per_step` {config.prompts_per_step} different ones: give as many or "
            "more, or lower it (`ppo.responses_per_prompt` repeats a prompt)"
        )
    wanted = range(step * config.prompts_per_step, (step + 1) * config.prompts_per_step)
    chosen = []
    for position in wanted:
        epoch, place = divmod(position, len(prompts))
        (order,) = minibatch_order(
            len(prompts), size=len(prompts), seed=derive_seed(seed, "prompts"), epoch=epoch
        )
        chosen.append(prompts[order[place]])
    return [prompt for prompt in chosen for _ in range(config.responses_per_prompt)]


def build_experience(
    scored: ScoredRollout, config: PPOConfig, *, kl_coefficient: float, moments: RunningMoments
) -> Experience:
    """Scores to token rewards, and those to advantages and returns as the method has it.

    `moments` are those of all scores so far, these included; they matter for
    `ppo.normalise_scores` only.
    """
    mask = scored.response_mask
    paid = shaped_scores(scored, config, moments)
    rewards = kl_shaped_rewards(
        paid if config.score_position == "last_token" else torch.zeros_like(paid),
        scored.old_logprobs,
        scored.reference_logprobs,
        mask,
        coefficient=kl_coefficient if config.kl_placement == "reward" else 0.0,
        estimator=config.kl_estimator,
        clamp_nats=config.kl_clamp_nats,
    )
    if config.whiten_rewards:
        unbiased = config.whitening_variance == "unbiased"
        rewards = masked_whiten(rewards, mask, shift_mean=False, unbiased=unbiased)
    advantages, returns = advantages_and_returns(config, rewards, paid, scored)
    return Experience(
        token_ids=scored.token_ids,
        attention_mask=scored.attention_mask,
        response_mask=mask,
        old_logprobs=scored.old_logprobs,
        reference_logprobs=scored.reference_logprobs,
        old_values=scored.old_values,
        advantages=advantages,
        returns=returns,
        end_values=scored.end_values,
        end_returns=paid,
    )


def shaped_scores(scored: ScoredRollout, config: PPOConfig, moments: RunningMoments) -> Tensor:
    """Scores as they are paid, float32 [B]: normalised, clipped, then the missing-EOS rule."""
    scores = scored.scores
    if config.normalise_scores:
        scores = (scores - moments.mean) / (moments.deviation or 1.0)
    if config.reward_clip is not None:
        scores = scores.clamp(-config.reward_clip, config.reward_clip)
    paid = -config.missing_eos_penalty
    if config.missing_eos_rule == "subtract":
        return scores + paid * (~scored.finished)
    return torch.where(scored.finished, scores, paid)


def next_coefficient(
    config: PPOConfig, coefficient: float, scored: ScoredRollout, kl_nats: float
) -> float:
    """The next step's KL coefficient, given this step's and its KL in nats a sequence."""
    if config.adaptive_kl is None:
        return coefficient
    if config.adaptive_kl.unit == "token":
        kl_nats *= len(scored.scores) / float(scored.response_mask.sum())
    return adaptive_kl_coefficient(
        coefficient,
        kl_nats=kl_nats,
        target_nats=config.adaptive_kl.target_nats,
        horizon_sequences=config.adaptive_kl.horizon_sequences,
        num_sequences=config.sequences_per_step,
    )
