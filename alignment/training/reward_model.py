"""Reward model: score responses so that preferred ones score higher.

For each epoch, shuffle the preference groups (the K responses of one prompt) and cut them into
minibatches of whole groups; for each minibatch,
1. score each response once, and add the gradient of the Bradley-Terry loss over every compared
   pair of each group (Ouyang et al. 2022 put all pairs of a prompt into one batch element);
2. stop if the loss is not finite, before the weights move;
3. step, and record.

The target of a pair is the share of labelers that preferred its first response, ties counting
one half, so disagreement is learned as uncertainty. The mean runs over the pairs of the whole
minibatch. Not here: a margin from preference strength, centring (the stage normalises scores
after training).
"""

import time

from alignment.config import RewardModelConfig
from alignment.data.batching import minibatch_order
from alignment.experience import PreferenceBatch, select_rows
from alignment.objectives.preference_losses import preference_group_loss
from alignment.training.guards import require_finite
from alignment.training.roles import LossSums, MetricSink, RewardModelTrainable, ValueOutputs


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
        seed: decides the order of the groups.
        metrics: gets one record an optimiser step.

    Raises:
        NumericsError: a loss or gradient norm is not finite; the weights are as before that step.
    """
    rows_of_group = _rows_by_group(comparisons)
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
            sums = model.forward_backward(minibatch, reward_model_loss, denominator=pair_weight)
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
