"""Time a sample of a PPO step on 128 prompts against one on 32."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment.experience import EncodedPrompt
from benchmarks.ppo.our_side import EnoughError, our_roles
from benchmarks.ppo.workload import BATCH, VARIANTS, bench_prompts

LARGE = 128


def measure_batches(
    models: tuple[Path, Path], scratch: Path, *, rounds: int, threads: int
) -> Iterator[dict[str, Any]]:
    """One record a round: a step of 128 sequences, then one of 32, minibatches of 8 in both."""
    prompts = bench_prompts(models[0])
    many: list[EncodedPrompt] = list(prompts) * (LARGE // BATCH)
    with our_roles(
        VARIANTS["forced-1"], models, scratch, threads=threads, steps=2 * rounds + 2
    ) as ours:
        seconds: dict[str, float] = {}

        def once(name: str) -> Any:
            def after_step(_: int, metrics: Mapping[str, float]) -> None:
                seconds[name] = metrics["time/step_s"]
                raise EnoughError

            return after_step

        ours.train(prompts, steps=1, after_step=once("warm-up"))
        for _ in range(rounds):
            ours.train(many, steps=1, after_step=once("large"), sequences=LARGE)
            ours.train(prompts, steps=1, after_step=once("small"))
            yield {
                "part": "batches",
                "large_s": seconds["large"],
                "small_s": seconds["small"],
                "ratio": seconds["large"] / LARGE / (seconds["small"] / BATCH),
            }
