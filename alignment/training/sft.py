"""Supervised fine-tuning: make the demonstrated responses more likely.

For each epoch, shuffle the demonstrations and cut them into minibatches; for each minibatch,
1. add the gradient of the cross-entropy of its response tokens, a mean over *its* tokens;
2. stop if the loss is not finite, before the weights move;
3. step, and record.

The loss speaks about response tokens only (end-of-turn included), so the model learns to answer
and to stop, not to write prompts. The mean runs over the tokens of the whole minibatch, however
it is cut into microbatches and ranks. Not here: packing (rows are cut to the longest of their
microbatch instead), label smoothing, dropout.
"""

import time

from alignment.config import SFTConfig
from alignment.data.batching import minibatch_order
from alignment.experience import TokenBatch, select_rows
from alignment.objectives.sft_losses import sft_loss
from alignment.training.guards import require_finite
from alignment.training.roles import LogprobOutputs, LossSums, MetricSink, Trainable


def train_sft(
    config: SFTConfig,
    model: Trainable,
    demonstrations: TokenBatch,
    *,
    seed: int,
    metrics: MetricSink,
) -> None:
    """Train `model` in place on all demonstrations, `config.epochs` times.

    Args:
        config: epochs and minibatch size.
        model: a language model with an optimiser.
        demonstrations: one row a demonstration, [N, T].
        seed: decides the order of the demonstrations.
        metrics: gets one record an optimiser step.

    Raises:
        NumericsError: a loss or gradient norm is not finite; the weights are as before that step.
    """
    step = 0
    for epoch in range(config.epochs):
        order = minibatch_order(
            len(demonstrations.token_ids),
            size=config.sequences_per_minibatch,
            seed=seed,
            epoch=epoch,
        )
        for rows in order:
            started = time.perf_counter()
            minibatch = select_rows(demonstrations, rows)
            response_tokens = float(minibatch.response_mask.sum())
            sums = model.forward_backward(
                minibatch, demonstration_loss, denominator=response_tokens
            )
            require_finite("SFT loss", sums["loss"], step=step)
            report = model.step()
            require_finite("SFT gradient norm", report.gradient_norm, step=step)
            tokens = float(minibatch.attention_mask.sum())
            step += 1
            metrics.record(
                step,
                {
                    "sft/loss": sums["loss"],
                    "sft/gradient_norm": report.gradient_norm,
                    "sft/learning_rate": report.learning_rate,
                    "sft/tokens_per_s": tokens / (time.perf_counter() - started),
                },
            )


def demonstration_loss(outputs: LogprobOutputs, batch: TokenBatch) -> LossSums:
    """Cross-entropy in nats, summed over the response tokens of a microbatch."""
    return LossSums(loss=sft_loss(outputs.new_logprobs, batch.response_mask).sum(), metrics={})


def num_sft_steps(config: SFTConfig, num_demonstrations: int) -> int:
    """Optimiser steps of the whole training, which the learning-rate schedule needs."""
    minibatches = -(-num_demonstrations // config.sequences_per_minibatch)
    return config.epochs * minibatches
