"""Direct preference optimisation: a policy from comparisons, without a reward model or sampling.

Ask the frozen reference once about every response. Then, for each epoch, shuffle the preference
groups (the K responses of one prompt) and cut them into minibatches of whole groups; for each,
1. the implicit reward of a response is beta * (log pi(y|x) - log pi_ref(y|x)), summed over tokens;
2. add the gradient of the Bradley-Terry loss of these rewards over every compared pair (Rafailov
   et al. 2023, arXiv 2305.18290, eq. 7; soft targets and ties as in the reward model);
3. stop if the loss is not finite, before the weights move; step, and record.

Where the comparisons follow Bradley-Terry with rewards r and are many, the minimum is the policy
pi_ref * exp(r / beta) / Z that PPO with KL coefficient beta aims at (eq. 4 and 5).
"""

import time
from dataclasses import dataclass, fields
from functools import partial

from torch import Tensor

from alignment.data.batching import minibatch_order
from alignment.dpo_config import DPOConfig
from alignment.experience import PreferenceBatch, select_rows
from alignment.objectives.masking import masked_sum
from alignment.objectives.preference_losses import preference_group_loss
from alignment.training.guards import require_finite, require_finite_rows
from alignment.training.roles import LogprobModel, LogprobOutputs, LossSums, MetricSink, Trainable


@dataclass(frozen=True, kw_only=True)
class ReferredBatch(PreferenceBatch):
    """Comparisons with reference_logprobs, float32 [B, T], 0 outside response_mask."""

    reference_logprobs: Tensor


def train_dpo(
    config: DPOConfig,
    policy: Trainable,
    reference: LogprobModel,
    comparisons: PreferenceBatch,
    *,
    seed: int,
    metrics: MetricSink,
) -> None:
    """Train `policy` in place on all groups, `config.epochs` times.

    Raises:
        NumericsError: a log-probability, loss or gradient norm is not finite; the weights are as
            before that step.
    """
    reference_logprobs = reference.logprobs(comparisons)
    require_finite_rows("reference log-probability", reference_logprobs, step=0)
    plain = {f.name: getattr(comparisons, f.name) for f in fields(comparisons)}
    batch = ReferredBatch(**plain, reference_logprobs=reference_logprobs)
    objective = partial(dpo_loss, beta=config.beta)
    rows_of_group: dict[int, list[int]] = {}
    for row, group in enumerate(batch.group.tolist()):
        rows_of_group.setdefault(group, []).append(row)
    all_rows = list(rows_of_group.values())
    step = 0
    for epoch in range(config.epochs):
        order = minibatch_order(
            len(all_rows), size=config.groups_per_minibatch, seed=seed, epoch=epoch
        )
        for groups in order:
            started = time.perf_counter()
            minibatch = select_rows(batch, [row for group in groups for row in all_rows[group]])
            pair_weight = float(minibatch.pair_weight.sum())
            sums = policy.forward_backward(minibatch, objective, denominator=pair_weight)
            require_finite("DPO loss", sums["loss"], step=step)
            report = policy.step()
            require_finite("DPO gradient norm", report.gradient_norm, step=step)
            tokens = float(minibatch.attention_mask.sum())
            step += 1
            metrics.record(
                step,
                {
                    "dpo/loss": sums["loss"],
                    "dpo/accuracy": sums["correct"] / max(sums["decided"], 1e-9),
                    "dpo/gradient_norm": report.gradient_norm,
                    "dpo/learning_rate": report.learning_rate,
                    "dpo/tokens_per_s": tokens / (time.perf_counter() - started),
                },
            )


def dpo_loss(outputs: LogprobOutputs, batch: ReferredBatch, *, beta: float) -> LossSums:
    """Weighted Bradley-Terry loss of the implicit rewards over a microbatch's compared pairs."""
    ratios = masked_sum(outputs.new_logprobs - batch.reference_logprobs, batch.response_mask, dim=1)
    sums = preference_group_loss(
        beta * ratios,
        group=batch.group,
        member=batch.member,
        preference=batch.preference,
        pair_weight=batch.pair_weight,
    )
    return LossSums(loss=sums.loss, metrics={"correct": sums.correct, "decided": sums.decided})


def num_dpo_steps(config: DPOConfig, num_groups: int) -> int:
    """Optimiser steps of the whole training, which the learning-rate schedule needs."""
    return config.epochs * -(-num_groups // config.groups_per_minibatch)
