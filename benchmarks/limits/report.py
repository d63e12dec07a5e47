"""The table of `make bench`, from its rounds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import sync
from benchmarks.operations import Spread, spread

Rounds = Sequence[Mapping[str, Any]]

TRAINING_GOALS = {"float32": 0.75, "bfloat16": 0.40}
UPDATES_GOAL, STEP_GOAL = 0.70, 0.60
ROLLOUT_GOAL, BATCHES_GOAL = 2.0, 1.1


def report(rounds: Rounds) -> list[str]:
    """One line a figure: median with its range, goal, and whether it is met."""
    header = ["| figure | median (range) | goal | |", "|---|---|---|---|"]
    return [*header, *_training(rounds), *_ppo(rounds), *_rollout(rounds), *_others(rounds)]


def _training(rounds: Rounds) -> Iterator[str]:
    kinds = [r for r in rounds if r["part"] in ("sft", "reward_model")]
    for part, precision, sequences in sorted(
        {(r["part"], r["precision"], r["sequences"]) for r in kinds}
    ):
        some = [
            r
            for r in kinds
            if (r["part"], r["precision"], r["sequences"]) == (part, precision, sequences)
        ]
        name = f"{part}, {precision}, {sequences} sequences of {some[0]['tokens']} tokens"
        used = spread([r["used"] for r in some])
        yield _line(f"{name}: share of the products' rate", used, TRAINING_GOALS[precision])
        yield _line(f"{name}: s a step", spread([r["seconds"] for r in some]))
        yield _line(f"{name}: products, GFLOP/s", spread([r["product_gflops"] for r in some]))


def _ppo(rounds: Rounds) -> Iterator[str]:
    some = [r for r in rounds if r["part"] == "ppo"]
    if not some:
        return
    goals = {"updates": UPDATES_GOAL, "step": STEP_GOAL}
    for phase in some[0]["used"]:
        used = spread([r["used"][phase] for r in some])
        yield _line(f"PPO, {phase}: share of the products' rate", used, goals.get(phase))
    yield _line("PPO, step: s", spread([r["seconds"] for r in some]))


def _rollout(rounds: Rounds) -> Iterator[str]:
    some = [r for r in rounds if r["part"] == "rollout"]
    for size in sorted({r["sequences"] for r in some}):
        of_size = [r for r in some if r["sequences"] == size]
        name = f"rollout, {size} sequences"
        yield _line(f"{name}: tokens/s", spread([r["ours_tokens_per_s"] for r in of_size]))
        ratio = spread([r["ratio"] for r in of_size])
        yield _line(f"{name}: over transformers' generate", ratio, ROLLOUT_GOAL)


def _others(rounds: Rounds) -> Iterator[str]:
    batches = [r["ratio"] for r in rounds if r["part"] == "batches"]
    if batches:
        title = "time a sample, 128 sequences over 32"
        yield _line(title, spread(batches), BATCHES_GOAL, at_most=True)
    syncs = [r["seconds"] for r in rounds if r["part"] == "sync"]
    for title, goal in sync.GOALS.items() if syncs else ():
        above, below = title.split(" / ")
        ratios = [a / b for s in syncs for a, b in zip(s[above], s[below], strict=True)]
        yield _line(f"weight sync: {title}", spread(ratios), goal, at_most=True)
    for way in syncs[0] if syncs else ():
        yield _line(f"weight sync: {way}, s", spread([t for s in syncs for t in s[way]]))


def _line(name: str, value: Spread, goal: float | None = None, *, at_most: bool = False) -> str:
    if goal is None:
        return f"| {name} | {value} | | |"
    met = value.median <= goal if at_most else value.median >= goal
    sign, verdict = "<=" if at_most else ">=", "met" if met else "MISSED"
    return f"| {name} | {value} | {sign} {goal:g} | {verdict} |"
