"""PPO steps on the real roles: operations of phases over what products alone do.

Roles work side by side, one thread each, so the rate of products is that of two such roles at once,
and phases of the same time count together.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from alignment.planning.model_shapes import read_model_shape
from benchmarks.limits.products import Products, product_rate
from benchmarks.operations import Sequences, ppo_phase_operations
from benchmarks.ppo.our_side import EnoughError, OurPPO, our_roles
from benchmarks.ppo.workload import BATCH, KEPT_SHARE, MINIBATCH, VARIANTS, bench_prompts

MICROBATCH = 2048
GROUPS = {
    "generate": ("generate",),
    "scoring": ("score", "old_logprobs", "reference_logprobs", "values"),
    "updates": ("update_policy", "update_critic"),
}
"""Phases that begin at the same time; the longest is how long they take."""


def measure_ppo(
    models: tuple[Path, Path], scratch: Path, *, rounds: int, threads: int
) -> Iterator[dict[str, Any]]:
    """One record a step of the `forced-1` variant, after one step that does not count."""
    variant, shape = VARIANTS["forced-1"], read_model_shape(models[0])
    prompts = bench_prompts(models[0])
    records: list[dict[str, Any]] = []
    with our_roles(variant, models, scratch, threads=threads, steps=rounds + 1) as ours:
        lengths = ours.sample(prompts)
        operations = ppo_phase_operations(
            shape, lengths, epochs=variant.epochs, kept_share=KEPT_SHARE
        )

        def after_step(step: int, metrics: Mapping[str, float]) -> None:
            rates = phase_rates(ours, lengths, variant.precision)
            if step > 1:
                records.append(_record(metrics, operations, rates))
            if step > rounds:
                raise EnoughError

        ours.train(prompts, steps=rounds + 2, after_step=after_step)
    yield from records


def phase_rates(ours: OurPPO, lengths: Sequences, precision: str) -> dict[str, float]:
    """Operations a second of the products of each phase, in two processes together."""
    minibatches = BATCH // MINIBATCH
    pieces = -(-lengths.tokens // MICROBATCH)
    whole = Products(lengths.tokens // pieces, lengths.response_tokens // pieces)
    small = Products(
        lengths.tokens // minibatches, lengths.response_tokens // minibatches, precision=precision
    )
    update = Products(small.tokens, small.head_tokens, backward=True, precision=precision)
    headless = Products(small.tokens, backward=True, precision=precision)
    decoding = Products(BATCH, BATCH)
    kinds = {
        "generate": decoding,
        "score": Products(whole.tokens),
        "old_logprobs": small,
        "reference_logprobs": whole,
        "values": Products(whole.tokens, precision=precision),
        "update_policy": update,
        "update_critic": headless,
    }
    actors = [ours.roles[name].group.actors[0] for name in ("policy", "reference")]
    known = {p: _rate(actors, p) for p in dict.fromkeys(kinds.values())}
    return {phase: known[products] for phase, products in kinds.items()}


def _rate(actors: Sequence[Any], products: Products) -> float:
    asked = [actor.__ray_call__.remote(product_rate, products) for actor in actors]
    return sum(ray.get(asked))


def _record(
    metrics: Mapping[str, float], operations: Mapping[str, float], rates: Mapping[str, float]
) -> dict[str, Any]:
    seconds = {phase: metrics[f"time/{phase}_s"] for phase in operations}
    least = {phase: operations[phase] / rates[phase] for phase in operations}
    return {
        "part": "ppo",
        "seconds": metrics["time/step_s"],
        "phases": seconds,
        "product_gflops": {phase: rate / 1e9 for phase, rate in rates.items()},
        "used": {
            **{
                group: sum(least[p] for p in phases) / max(seconds[p] for p in phases)
                for group, phases in GROUPS.items()
            },
            "step": sum(least.values()) / metrics["time/step_s"],
        },
    }
