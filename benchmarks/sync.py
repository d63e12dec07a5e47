"""How long a weight sync takes, as ratios: `python -m benchmarks.sync --model tiny --rounds 7`.

In each round, one after the other, so that all see the same machine:

- ours: `generator.load_weights(policy.weights())`, from DeepSpeed's process to vLLM's, with the
  repacked head and the cache reset (that engines have the weights is proved by the next rollout);
- vLLM alone: `reload_weights` inside the engine's process, from tensors that are there already;
- transport: the policy's weights into Ray's object store, and opened in the engine's process;
- a plain copy of the same weights inside the policy's process.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from alignment.cluster import Cluster
from alignment.cluster.weights import read_bucket
from alignment.config import ClusterConfig, ModelConfig, OptimizerConfig, TrainingConfig
from alignment.models.base_model import prepare_base_model
from alignment.role_specs import GeneratorSpec, TrainableSpec

GOALS = {"ours / vLLM alone": 1.5, "transport / plain copy": 3.0}


def measure(model: str, rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, the first (cold) round left out."""
    with tempfile.TemporaryDirectory(prefix="bench-sync-") as scratch:
        folder = Path(scratch) / "model"
        prepare_base_model(ModelConfig(source=model), folder, seed=0)
        weight_gib = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2**30
        config = ClusterConfig(threads=threads, object_store_gib=max(0.25, 3 * weight_gib))
        with Cluster.open(config, log_folder=Path(scratch) / "logs") as cluster:
            roles = cluster.start_roles(_specs(folder))
            ways = _ways(roles["policy"], roles["generator"], folder)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(rounds + 1):
                for name, way in ways.items():
                    taken = way()
                    roles["policy"].group.call("count_buckets")  # its probe is no other way's time
                    if number:
                        seconds[name].append(taken)
    return seconds


def _specs(folder: Path) -> list[TrainableSpec | GeneratorSpec]:
    return [
        TrainableSpec(
            name="policy",
            kind="language",
            model_folder=folder,
            optimizer=OptimizerConfig(learning_rate=0.0),
            training=TrainingConfig(),
            total_steps=1,
            seed=0,
        ),
        GeneratorSpec(name="generator", model_folder=folder, max_sequence_tokens=128),
    ]


def _ways(policy: Any, generator: Any, folder: Path) -> dict[str, Callable[[], float]]:
    [trainer], [engine] = policy.group.actors, generator.group.actors

    def ours() -> float:
        begun = time.perf_counter()
        generator.load_weights(policy.weights(), version=0)
        return time.perf_counter() - begun

    def transport() -> float:
        begun = time.perf_counter()
        [count] = policy.group.call("count_buckets")
        buckets = [policy.group.call("copy_bucket", number)[0] for number in range(count)]
        ray.get(engine.__ray_call__.remote(_open_buckets, buckets))
        return time.perf_counter() - begun

    return {
        "ours": ours,
        "vLLM alone": lambda: ray.get(engine.__ray_call__.remote(_reload_inside, str(folder))),
        "transport": transport,
        "plain copy": lambda: ray.get(trainer.__ray_call__.remote(_copy_inside)),
    }


def _open_buckets(actor: Any, buckets: list[Any]) -> int:
    return sum(tensor.numel() for bucket in buckets for _, tensor in read_bucket(bucket))


def _reload_inside(actor: Any, folder: str) -> float:
    import time
    from pathlib import Path

    from safetensors.torch import load_file

    weights: dict[str, Any] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        weights |= {name: tensor.clone() for name, tensor in load_file(file).items()}
    begun = time.perf_counter()
    arguments = {"weights_iterator": iter(weights.items())}
    actor._llm.collective_rpc("reload_weights", kwargs=arguments)
    return time.perf_counter() - begun


def _copy_inside(actor: Any) -> float:
    import time

    weights = [weight.value() for weight in actor._language_model().published_weights()]
    begun = time.perf_counter()
    copies = [weight.clone() for weight in weights]
    taken = time.perf_counter() - begun
    assert len(copies) == len(weights)
    return taken


def report(seconds: dict[str, list[float]]) -> list[str]:
    """Median, smallest and largest of each way, then of each ratio taken round by round."""
    lines = [f"{name:24} {_spread(values, 's')}" for name, values in seconds.items()]
    for title, goal in GOALS.items():
        above, below = title.split(" / ")
        ratios = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
        met = "met" if statistics.median(ratios) <= goal else "MISSED"
        lines.append(f"{title:24} {_spread(ratios, 'x')}   goal <= {goal:g}: {met}")
    return lines


def _spread(values: list[float], unit: str) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:8.3f} {unit}  ({low:.3f} to {high:.3f}, {len(values)} rounds)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="tiny", help="as `model.source`: tiny, a folder, ...")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="compute threads of each process")
    arguments = parser.parse_args()
    print("\n".join(report(measure(arguments.model, arguments.rounds, arguments.threads))))


if __name__ == "__main__":
    main()
