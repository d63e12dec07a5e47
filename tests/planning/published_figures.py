"""Published times of RLHF systems on GPUs, and what the plan's arithmetic says about the same work.

    python tests/planning/published_figures.py      prints the table of docs/performance.md

Where the source runs phases side by side, the longest of them counts; where it shares all GPUs,
phases follow one another as here. Unpublished details are assumed as written beside each row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from alignment.config import OptimizerConfig, RoleResources, TrainingConfig
from alignment.planning.calibration import GPU_SPEED
from alignment.planning.known_shapes import KNOWN_SHAPES
from alignment.planning.machines import Machines, Node, gpu_kind
from alignment.planning.model_shapes import ModelShape
from alignment.planning.step_time import SCORING, UPDATES, StepWork, phase_seconds
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec, TrainableSpec

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


@dataclass(frozen=True, kw_only=True)
class Row:
    source: str
    work: str
    published_s: float
    predicted_s: float

    @property
    def ratio(self) -> float:
        return self.predicted_s / self.published_s

    def line(self) -> str:
        return (
            f"| {self.source} | {self.work} | {self.published_s:.4g} | {self.predicted_s:.3g} | "
            f"{self.ratio:.2f} |"
        )


def rows() -> list[Row]:
    return [*openrlhf_phases(), *openrlhf_totals(), *deepspeed_chat(), *weight_sync()]


LONG = StepWork(
    sequences=1024,
    prompt_tokens=1024,
    response_tokens=1024,
    longest_response_tokens=1024,
    sequences_per_minibatch=128,
)


def openrlhf_phases() -> Iterator[Row]:
    """OpenRLHF benchmark/README.md: A800, Llama 2, 1024 + 1024 tokens, 1024 sequences, minibatch
    128, GPUs of reference, reward, policy, critic, vLLM as given. Assumed: every sequence has full
    length, bf16, ZeRO 3 with recomputation, scoring models side by side, updates side by side.
    """
    settings = (
        ("llama-2-7b", (1, 1, 2, 2, 2, 1), 8, 481.86, 403.29),
        ("llama-2-13b", (1, 1, 2, 2, 2, 1), 4, 1425.75, 967.15),
        ("llama-2-70b", (2, 2, 4, 4, 1, 4), 4, 7122.65, 2699.97),
    )
    for name, split, rows_at_once, generation, training in settings:
        seconds = separate_roles(KNOWN_SHAPES[name], split, rows_at_once * 2048)
        gpus = sum(split[:4]) + split[4] * split[5]
        about = f"{name}, {gpus} A800"
        made = seconds["generate"] + max(seconds[phase] for phase in SCORING)
        yield row("OpenRLHF benchmark", f"{about}: generation and scoring", generation, made)
        updated = max(seconds[phase] for phase in UPDATES)
        yield row("OpenRLHF benchmark", f"{about}: training", training, updated)


def openrlhf_totals() -> Iterator[Row]:
    """OpenRLHF, older README: 1024 prompts, one PPO epoch, A800. Assumed beside the above: GPUs
    split 1:1:2:2:2, 8 rows a microbatch.
    """
    settings = (
        ("llama-2-7b", 16, 1, 471.11),
        ("llama-2-13b", 32, 1, 608.93),
        ("codellama-34b", 32, 2, 1526.4),
        ("llama-2-70b", 32, 4, 4488.53),
    )
    for name, gpus, parallel, published in settings:
        part = gpus // 8
        split = (part, part, 2 * part, 2 * part, 2 * part // parallel, parallel)
        seconds = separate_roles(KNOWN_SHAPES[name], split, 8 * 2048)
        total = seconds["generate"] + max(seconds[phase] for phase in SCORING)
        total += max(seconds[phase] for phase in UPDATES)
        yield row("OpenRLHF README", f"{name}, {gpus} A800: 1024 prompts", published, total)


def deepspeed_chat() -> Iterator[Row]:
    """DeepSpeed-Chat README and BenckmarkSetting.md: A100-80G, OPT policy, 350M critic and reward
    model, 264,292 rows of 256 + 256 tokens, 1024 a step; all roles on all GPUs in turn.
    """
    settings = (
        ("OPT-1.3B", opt(24, 2048, 32), 8, 1, 1.4),
        ("OPT-6.7B", opt(32, 4096, 32), 8, 1, 4.1),
        ("OPT-13B", opt(40, 5120, 40), 8, 1, 9.0),
        ("OPT-30B", opt(48, 7168, 56), 8, 2, 18.0),
        ("OPT-66B", opt(64, 9216, 72), 8, 4, 50.4),
        ("OPT-13B", opt(40, 5120, 40), 64, 1, 1.25),
        ("OPT-66B", opt(64, 9216, 72), 64, 4, 7.5),
    )
    work = StepWork(
        sequences=1024,
        prompt_tokens=256,
        response_tokens=256,
        longest_response_tokens=256,
        sequences_per_minibatch=1024,
    )
    critic = opt(24, 1024, 16)
    for name, shape, gpus, parallel, hours in settings:
        specs = roles((gpus, gpus, gpus, gpus, gpus // parallel, parallel), 16384)
        shapes = {s.name: shape for s in specs} | {"critic": critic, "reward_model": critic}
        seconds = phase_seconds(specs, shapes, work, gpus_of("A100-80G"), threads=8)
        step = sum(s for phase, s in seconds.items() if phase != "sync_weights")  # one process
        total = step * 264_292 / 1024
        yield row("DeepSpeed-Chat", f"{name}, {gpus} A100: one epoch", hours * 3600, total)


def weight_sync() -> Iterator[Row]:
    """verl docs/advance/delta_weight_sync.md, plain NCCL: bf16 weights, the middle of the range."""
    for name, published in (("qwen2.5-7b", 5.75), ("qwen2.5-32b", 14.2), ("qwen2.5-72b", 28.8)):
        size = 2.0 * KNOWN_SHAPES[name].parameters
        seconds = size / GPU_SPEED.sync_bytes_per_s + GPU_SPEED.sync_s
        yield row("verl", f"{name}: weight sync", published, seconds)


def row(source: str, work: str, published_s: float, predicted_s: float) -> Row:
    return Row(source=source, work=work, published_s=published_s, predicted_s=predicted_s)


def separate_roles(
    shape: ModelShape, split: tuple[int, ...], tokens_per_microbatch: int
) -> dict[str, float]:
    specs = roles(split, tokens_per_microbatch)
    shapes = {spec.name: shape for spec in specs}
    return phase_seconds(specs, shapes, LONG, gpus_of("A800"), threads=8)


def roles(split: tuple[int, ...], tokens_per_microbatch: int) -> list[RoleSpec]:
    """`split`: ranks of reference, reward model, policy, critic; engines, and GPUs of an engine."""
    reference, reward, policy, critic, engines, parallel = split
    folder = Path("model")
    training = TrainingConfig(
        precision="bfloat16",
        zero_stage=3,
        gradient_checkpointing=True,
        tokens_per_microbatch=tokens_per_microbatch,
    )

    def resources(ranks: int, gpus: int = 1) -> RoleResources:
        return RoleResources(ranks=ranks, gpus_per_rank=gpus)

    trained = [
        TrainableSpec(
            name=name,
            kind="language" if name == "policy" else "value",
            model_folder=folder,
            optimizer=OptimizerConfig(learning_rate=1e-6),
            training=training,
            total_steps=1,
            seed=0,
            resources=resources(ranks),
        )
        for name, ranks in (("policy", policy), ("critic", critic))
    ]
    frozen = [
        FrozenSpec(
            name=name,
            kind="language" if name == "reference" else "value",
            model_folder=folder,
            precision="bfloat16",
            resources=resources(ranks),
        )
        for name, ranks in (("reference", reference), ("reward_model", reward))
    ]
    engine = GeneratorSpec(
        name="generator",
        model_folder=folder,
        max_sequence_tokens=2048,
        max_parallel_sequences=256,
        precision="bfloat16",
        resources=resources(engines, parallel),
    )
    return [*trained, *frozen, engine]


def opt(layers: int, hidden: int, heads: int) -> ModelShape:
    """OPT has two MLP matrices of 4 x hidden; three of 8/3 hold as many weights."""
    return ModelShape(
        name="opt",
        layers=layers,
        hidden=hidden,
        intermediate=8 * hidden // 3,
        attention_heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary=50272,
        tied=True,
    )


def gpus_of(kind: str) -> Machines:
    node = Node(name="node", cpus=96.0, gpus=64, gpu=gpu_kind(kind))
    return Machines(nodes=(node,), source="published")


def table() -> str:
    head = "| source | what | published s | predicted s | ratio |\n|---|---|---|---|---|"
    return "\n".join([head, *(r.line() for r in rows())])


def summary() -> tuple[float, float, float]:
    """Median, least and largest ratio of predicted over published seconds."""
    ratios = [r.ratio for r in rows()]
    return median(ratios), min(ratios), max(ratios)


if __name__ == "__main__":
    print(table())
    print("median {:.2f}, from {:.2f} to {:.2f}".format(*summary()))
