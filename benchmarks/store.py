"""How long lineage and reuse look-ups take: `python -m benchmarks.store --artifacts 1000`.

The store is made in a temporary folder: a chain of artifacts, each of which reads the three
before it, so that there are far more paths than artifacts. Measured are the lineage of the last
one (walk, text, JSON, picture) and reuse look-ups that check each output's presence and size.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.lineage import lineage
from flows.lineage_picture import render_picture
from flows.lineage_text import render_text
from flows.manifest import (
    Artifact,
    InputReference,
    OutputFile,
    StageRequest,
    artifact_as_json,
    digest_file,
)
from flows.reuse import reason_to_work
from flows.store import ArtifactStore

STAGES = ("data", "sft", "candidates", "preferences", "reward_model", "ppo", "evaluation")
INPUTS, OUTPUTS = 3, 4
LINEAGE_GOAL_S, LOOKUPS_GOAL_S = 1.0, 10.0


def many_artifacts(store: ArtifactStore, count: int) -> list[Artifact]:
    """`count` finished stages, each with four small files, reading the three before it.

    Written without syncing to disk, which would be most of the time and is not what is measured.
    """
    made: list[Artifact] = []
    for number in range(count):
        request = _request(number, made[-INPUTS:])
        folder = store.folder(request.stage, request.key)
        (folder / "outputs").mkdir(parents=True)
        outputs = {}
        for name in (f"part-{part}" for part in range(OUTPUTS)):
            path = folder / "outputs" / name
            path.write_text(f"{number} {name}")
            outputs[name] = OutputFile(
                path=name, sha256=digest_file(path), bytes=path.stat().st_size
            )
        artifact = Artifact(
            **request.as_json() | {"inputs": request.inputs},
            key=request.key,
            folder=folder,
            outputs=outputs,
            metrics={"steps": number, "loss": 1.0 / (1 + number)},
            versions={"python": sys.version.split()[0]},
            run="bench",
            created="2026-01-01T00:00:00+00:00",
            seconds=1.0,
        )
        (folder / "manifest.json").write_text(json.dumps(artifact_as_json(artifact)))
        made.append(artifact)
    return made


def requests(count: int, made: Sequence[Artifact]) -> list[StageRequest]:
    """Requests that stages evenly spread over `made` answer."""
    numbers = [index * len(made) // count for index in range(count)]
    return [_request(number, made[max(0, number - INPUTS) : number]) for number in numbers]


def _request(number: int, inputs: Sequence[Artifact]) -> StageRequest:
    named: dict[str, InputReference] = {f"input-{a.key[:6]}": a.reference() for a in inputs}
    return StageRequest(
        stage=STAGES[number % len(STAGES)],
        stage_version=1,
        settings={"number": number, "optimizer": {"learning_rate": 1e-5}},
        inputs=named or {"file": InputReference(digest="0" * 64, source="pairs.jsonl")},
    )


def main() -> int:
    """Measure, print a table, and fail if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--artifacts", type=int, default=1000)
    parser.add_argument("--lookups", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-store-") as scratch:
        store = ArtifactStore(Path(scratch) / "store")
        made = many_artifacts(store, arguments.artifacts)
        graph = lineage(store, made[-1])
        wanted = requests(arguments.lookups, made)
        changed = [_request(10**6 + number, made[:INPUTS]) for number in range(len(wanted))]
        rows = [
            ("lineage: walk", lambda: lineage(store, made[-1]), LINEAGE_GOAL_S),
            ("lineage: walk and text", lambda: render_text(lineage(store, made[-1])), 1.0),
            ("lineage: walk and JSON", lambda: json.dumps(lineage(store, made[-1]).as_json()), 1.0),
            ("lineage: picture", lambda: render_picture(graph), None),
            ("reuse look-ups", lambda: [store.lookup(r) for r in wanted], LOOKUPS_GOAL_S),
            (
                "reasons to redo",
                lambda: [reason_to_work(store, r, _same_stage(r, made)) for r in changed],
                LOOKUPS_GOAL_S,
            ),
        ]
        results = [(name, _seconds(work), goal) for name, work, goal in rows]
    print(f"{len(made)} artifacts, {len(wanted)} look-ups, seconds (median of 3)")
    for name, seconds, goal in results:
        print(f"  {name:24} {seconds:8.3f}   {'' if goal is None else f'goal {goal:g}'}")
    return int(any(goal is not None and seconds > goal for _, seconds, goal in results))


def _same_stage(request: StageRequest, made: Sequence[Artifact]) -> str:
    return next(a.key for a in reversed(made) if a.stage == request.stage)


def _seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[1]


if __name__ == "__main__":
    sys.exit(main())
