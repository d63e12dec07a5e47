"""Reward model: score responses so that preferred ones score higher.

For each epoch, shuffle the preference groups (the K responses of one prompt) and cut them into
minibatches of whole groups; for each minibatch,
1. score each response once, and add the gradient of the Bradley-Terry loss over every compared
   pair of each group (Ouyang et al. 2022 put all pairs of a prompt into one batch element);
2. stop if the loss is not finite, before the weights move;
3. step, and record.

With `heads` of 2 or more the model is an ensemble on one trunk: each head learns from its own
draw of the prompts with replacement, and the loss is the mean over heads.

The target of a pair is the share of labelers that preferred its first response, ties counting
one half, so disagreement is learned as uncertainty. The mean runs over the pairs of the whole
minibatch. Not here: a margin from preference strength, centring (the stage normalises scores
after training).
"""

import time
from functools import partial

from torch import Tensor

from alignment.config import RewardModelConfig
from alignment.data.batching import minibatch_order
from alignment.experience import PreferenceBatch, select_rows
from alignment.objectives.ensembles import bootstrap_counts
from alignment.objectives.preference_losses import preference_group_loss
from alignment.seeds import derive_seed
from alignment.training.guards import require_finite
from alignment.training.roles import (
    Loss,
    LossSums,
    MetricSink,
    RewardModelTrainable,
    ValueOutputs,
)


def train_reward_model(
    config: RewardModelConfig,
    model: RewardModelTrainable,
    comparisons: PreferenceBatch,
    *,
    seed: int,
    metrics: MetricSink,
) -> None:
    """Train `model` in place on all groups, `config.epochs` times.

    Args:
        config: epochs and minibatch size.
        model: a value model with an optimiser.
        comparisons: one row a response, [N, T]; groups numbered from 0.
        seed: decides the order of the groups, and each head's draw of them.
        metrics: gets one record an optimiser step.

    Raises:
        NumericsError: a loss or gradient norm is not finite; the weights are as before that step.
    """
    rows_of_group = _rows_by_group(comparisons)
    loss = reward_model_objective(config, num_groups=len(rows_of_group), seed=seed)
    step = 0
    for epoch in range(config.epochs):
        order = minibatch_order(
            len(rows_of_group), size=config.groups_per_minibatch, seed=seed, epoch=epoch
        )
        for groups in order:
            started = time.perf_counter()
            rows = [row for group in groups for row in rows_of_group[group]]
            minibatch = select_rows(comparisons, rows)
            pair_weight = float(minibatch.pair_weight.sum())
            sums = model.forward_backward(minibatch, loss, denominator=pair_weight)
            require_finite("reward-model loss", sums["loss"], step=step)
            report = model.step()
            require_finite("reward-model gradient norm", report.gradient_norm, step=step)
            tokens = float(minibatch.attention_mask.sum())
            step += 1
            metrics.record(
                step,
                {
                    "reward_model/loss": sums["loss"],
                    "reward_model/accuracy": sums["correct"] / max(sums["decided"], 1e-9),
                    "reward_model/gradient_norm": report.gradient_norm,
                    "reward_model/learning_rate": report.learning_rate,
                    "reward_model/tokens_per_s": tokens / (time.perf_counter() - started),
                },
            )


def reward_model_objective(config: RewardModelConfig, *, num_groups: int, seed: int) -> Loss:
    """The loss of one head, or of an ensemble with its draws of the groups 0..num_groups - 1."""
    if config.heads == 1:
        return reward_model_loss
    draws = bootstrap_counts(num_groups, config.heads, seed=derive_seed(seed, "heads"))
    return partial(ensemble_loss, draws=draws)


def ensemble_loss(outputs: ValueOutputs, batch: PreferenceBatch, *, draws: Tensor) -> LossSums:
    """Mean over heads of the loss, a group counting as often as the head drew it.

    draws: int64 [P, heads], from `bootstrap_counts`. Accuracy is that of the heads' mean over all
    groups.
    """
    times = draws.to(batch.group.device)[batch.group].float()
    scores = outputs.scores
    loss = scores.new_zeros(())
    for head in range(scores.shape[1]):
        loss = (
            loss
            + preference_group_loss(
                scores[:, head],
                group=batch.group,
                member=batch.member,
                preference=batch.preference,
                pair_weight=batch.pair_weight * times[:, head : head + 1],
            ).loss
        )
    mean = ValueOutputs(new_values=outputs.new_values, scores=scores.detach().mean(1))
    return LossSums(loss=loss / scores.shape[1], metrics=reward_model_loss(mean, batch).metrics)


def reward_model_loss(outputs: ValueOutputs, batch: PreferenceBatch) -> LossSums:
    """Weighted Bradley-Terry loss summed over the compared pairs of a microbatch."""
    sums = preference_group_loss(
        outputs.scores,
        group=batch.group,
        member=batch.member,
        preference=batch.preference,
        pair_weight=batch.pair_weight,
    )
    return LossSums(loss=sums.loss, metrics={"correct": sums.correct, "decided": sums.decided})


def num_reward_model_steps(config: RewardModelConfig, num_groups: int) -> int:
    """Optimiser steps of the whole training, which the learning-rate schedule needs."""
    return config.epochs * -(-num_groups // config.groups_per_minibatch)


def _rows_by_group(comparisons: PreferenceBatch) -> list[list[int]]:
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(comparisons.group.tolist()):
        rows.setdefault(group, []).append(row)
    return [rows[group] for group in sorted(rows)]
