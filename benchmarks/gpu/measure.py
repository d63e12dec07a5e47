"""Seconds, operations and memory of each phase of training one model."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from alignment.config import PPOConfig, Precision
from alignment.experience import TokenBatch, select_rows
from alignment.models.passes import logprobs_of, scores_of, values_of
from alignment.training.ppo_objective import critic_objective, policy_objective
from alignment.training.reward_model import reward_model_loss
from alignment.training.sft import demonstration_loss
from benchmarks.gpu.batches import experience, lengths_of, preference_batch, token_batch
from benchmarks.gpu.models import Size, language_model, pack, value_model
from benchmarks.gpu.trainable import Trained
from benchmarks.limits.products import Products, rate_of_products
from benchmarks.operations import WITH_BACKWARD, language_pass, value_pass

MINIBATCHES = 4
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Phase:
    """What to run, how many operations it needs, and the products that do most of them."""

    run: Callable[[], Any]
    operations: float
    products: Products


Phases = dict[str, Phase]
"""By name."""


def measure_model(
    size: Size,
    kind: Literal["language", "value"],
    device: torch.device,
    *,
    engine: str,
    precision: Precision,
) -> Iterator[dict[str, Any]]:
    """A record for each phase of a language or value model, packed and padded."""
    batch, tokens = token_batch(size), size.tokens_per_microbatch
    make = language_model if kind == "language" else value_model
    phases = _language_phases if kind == "language" else _value_phases
    _empty(device)
    module = make(size.shape, device)
    trained = Trained(module, engine=engine, tokens=tokens, precision=precision)
    try:
        for packed in (True, False):
            pack(module, packed=packed)
            for name, phase in phases(trained, size, batch).items():
                yield {
                    "model": size.shape.name,
                    "phase": name,
                    "packed": packed,
                    "precision": precision,
                    "tokens": lengths_of(batch).tokens,
                    "operations": phase.operations,
                    **_timed(phase, module, device),
                }
    finally:
        trained.release()


def profile_model(size: Size, device: torch.device, *, engine: str, precision: Precision) -> str:
    """Torch's own tables of one forward pass and one epoch of policy updates, rows packed."""
    from torch.profiler import ProfilerActivity, profile

    batch, tokens = token_batch(size), size.tokens_per_microbatch
    _empty(device)
    module = language_model(size.shape, device)
    trained = Trained(module, engine=engine, tokens=tokens, precision=precision)
    pack(module, packed=True)
    phases = _language_phases(trained, size, batch)
    kinds = [ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    told = []
    for name in ("logprobs", "update_policy"):
        run = phases[name].run
        run()
        with profile(activities=kinds) as seen:
            seconds = _seconds(run, device)
        told.append(f"{name}: {seconds:.3f} s under the profiler")
        for order in ("self_cpu_time_total", "self_device_time_total"):
            told.append(seen.key_averages().table(sort_by=order, row_limit=14))
    trained.release()
    return "\n".join(told)


def compare_ways(size: Size, device: torch.device) -> Iterator[dict[str, Any]]:
    """Log-probabilities packed against padded, on a few rows, in both precisions."""
    batch = select_rows(token_batch(size), list(range(min(16, size.sequences))))
    _empty(device)
    module = language_model(size.shape, device)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        said = []
        for packed in (True, False):
            pack(module, packed=packed)
            tokens = size.tokens_per_microbatch
            said.append(logprobs_of(module, batch, tokens=tokens, precision=precision))
        apart = (said[0] - said[1])[batch.response_mask].abs()
        yield {
            "model": size.shape.name,
            "precision": precision,
            "max": float(apart.max()),
            "mean": float(apart.mean()),
        }


def product_rate(device: torch.device, precision: Precision, *, width: int) -> float:
    """Operations a second of a product of two square matrices, best of ten."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    left @ right
    seconds = [_seconds(lambda: left @ right, device) for _ in range(10)]
    return 2.0 * width**3 / min(seconds)


def _language_phases(trained: Trained, size: Size, batch: TokenBatch) -> Phases:
    operations = language_pass(size.shape, lengths_of(batch))
    ask = _asker(trained, logprobs_of, batch)
    seen = experience(batch, ask(), torch.zeros(batch.token_ids.shape))
    loss = policy_objective(PPOConfig(), kl_coefficient=0.05)
    tokens = float(batch.response_mask.sum())
    update = WITH_BACKWARD * operations
    return {
        "sft": Phase(
            lambda: trained.step(batch, demonstration_loss, denominator=tokens),
            update,
            _products(trained, batch, backward=True),
        ),
        "logprobs": Phase(ask, operations, _products(trained, batch)),
        "update_policy": Phase(
            lambda: _minibatches(trained, seen, loss),
            update,
            _products(trained, batch, minibatches=MINIBATCHES, backward=True),
        ),
    }


def _value_phases(trained: Trained, size: Size, batch: TokenBatch) -> Phases:
    operations = value_pass(size.shape, lengths_of(batch))
    ask, compared = _asker(trained, values_of, batch), preference_batch(batch)
    seen = experience(batch, torch.zeros(batch.token_ids.shape), ask())
    pairs = float(compared.pair_weight.sum())
    update = WITH_BACKWARD * operations
    once = _products(trained, batch, head=False)
    return {
        "reward_model": Phase(
            lambda: trained.step(compared, reward_model_loss, denominator=pairs),
            update,
            _products(trained, batch, head=False, backward=True),
        ),
        "score": Phase(_asker(trained, scores_of, batch), operations, once),
        "values": Phase(ask, operations, once),
        "update_critic": Phase(
            lambda: _minibatches(trained, seen, critic_objective(PPOConfig())),
            update,
            _products(trained, batch, minibatches=MINIBATCHES, head=False, backward=True),
        ),
    }


def _products(
    trained: Trained,
    batch: TokenBatch,
    *,
    minibatches: int = 1,
    head: bool = True,
    backward: bool = False,
) -> Products:
    """Of as many tokens at a time as a packed microbatch has."""
    training, lengths = trained.spec.training, lengths_of(batch)
    share = -(-lengths.tokens // minibatches)
    pieces = minibatches * -(-share // training.tokens_per_microbatch)
    return Products(
        tokens=lengths.tokens // pieces,
        head_tokens=lengths.response_tokens // pieces if head else 0,
        backward=backward,
        precision=training.precision,
    )


def _asker(
    trained: Trained, question: Callable[..., torch.Tensor], batch: TokenBatch
) -> Callable[[], torch.Tensor]:
    training = trained.spec.training
    how = {"tokens": training.tokens_per_microbatch, "precision": training.precision}
    return lambda: question(trained.module, batch, **how)


def _minibatches(trained: Trained, batch: TokenBatch, loss: Any) -> None:
    """One epoch of updates."""
    size = len(batch.token_ids) // MINIBATCHES
    for first in range(0, size * MINIBATCHES, size):
        some = select_rows(batch, list(range(first, first + size)))
        trained.step(some, loss, denominator=float(some.response_mask.sum()))


def _timed(phase: Phase, module: Any, device: torch.device) -> dict[str, Any]:
    """Seconds by round after one that does not count, the most memory held, and the products alone.

    Products take turns with the phase, so both see the same clock of the processor.
    """
    seconds, rates, peak = [], [], 0
    for number in range(ROUNDS + 1):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        took = _seconds(phase.run, device)
        if device.type == "cuda":
            peak = max(peak, torch.cuda.max_memory_allocated(device))
        rate = rate_of_products(module, phase.products)
        if number:
            seconds.append(took)
            rates.append(rate)
    median = statistics.median(rates)
    return {"seconds": seconds, "own_product_flops": median, "peak_gib": peak / 2**30}


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _empty(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
