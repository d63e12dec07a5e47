"""Predicted seconds of one PPO step, by phase, from operations and bytes.

Operations: 2 a weight and token forward, twice that backward (Kaplan et al. 2020, arXiv
2001.08361, section 2.1), causal attention, and the vocabulary only at response tokens, as
alignment.objectives.logprobs does. A phase takes operations over the rate its processors reach
(alignment.planning.calibration), plus ZeRO's traffic, plus a fixed cost a call. Phases run one
after the other, but for those that alignment.training.side_by_side runs at the same time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from alignment.planning import calibration as known
from alignment.planning.calibration import Speed
from alignment.planning.machines import Machines
from alignment.planning.memory import adapter_parameters, parameters_of
from alignment.planning.model_shapes import ModelShape
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec, TrainableSpec, shares_with


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """One PPO step: sequences, mean and longest lengths in tokens, and how often they are used."""

    sequences: int
    prompt_tokens: float
    response_tokens: float
    longest_response_tokens: float
    sequences_per_minibatch: int
    epochs: int = 1
    updates_in_turn: bool = False
    """The critic waits for the policy, as `ppo.update_kl_limit_nats` has it."""
    asks_policy: bool = True
    """Old log-probabilities are the policy's own, as `ppo.old_logprobs` has it."""
    side_by_side: bool = False
    """Roles on CPUs work at the same time, as `cluster.side_by_side` has it."""

    @property
    def row_tokens(self) -> float:
        """Mean tokens of a sequence."""
        return self.prompt_tokens + self.response_tokens

    @property
    def minibatches(self) -> int:
        """Optimiser steps of one PPO step."""
        return self.epochs * -(-self.sequences // self.sequences_per_minibatch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Processors:
    """What a role computes on: operations a second of all ranks, memory bandwidth of one rank."""

    flops: float
    bandwidth: float
    ranks: int
    speed: Speed


def phase_seconds(
    specs: Sequence[RoleSpec],
    shapes: Mapping[str, ModelShape],
    work: StepWork,
    machines: Machines,
    *,
    threads: int,
) -> dict[str, float]:
    """Seconds of each phase that the given roles have, in the order of a step."""
    seconds: dict[str, float] = {}
    by_name = {spec.name: spec for spec in specs}
    crowd = _crowd(specs, work)
    for spec in specs:
        host = by_name.get(shares_with(spec) or "", spec)
        on = processors_of(host, machines, threads=threads)
        is_beside_others = not isinstance(spec, GeneratorSpec) and not host.resources.gpus_per_rank
        if work.side_by_side and is_beside_others:
            on = replace(on, flops=on.flops * known.CPU_HALF_OF_THREADS)
        shape, phases = shapes[spec.name], phases_of(spec)
        if isinstance(spec, GeneratorSpec):
            seconds[phases[0]] = generate_seconds(spec, shape, work, on)
            if any(isinstance(s, TrainableSpec) and s.kind == "language" for s in specs):
                seconds["sync_weights"] = sync_seconds(shape, on.speed)
            continue
        if work.asks_policy or phases[0] != "old_logprobs":
            beside = crowd if is_beside_others else 1.0
            seconds[phases[0]] = beside * forward_seconds(spec, shape, work, on)
        if isinstance(spec, TrainableSpec):
            seconds[phases[1]] = update_seconds(spec, shape, work, on)
    return {name: seconds[name] for name in PHASES if name in seconds}


def _crowd(specs: Sequence[RoleSpec], work: StepWork) -> float:
    """How many times as long a role on CPUs scores because more than two do at the same time."""
    asked = [
        spec
        for spec in specs
        if phases_of(spec)[0] in SCORING
        and (work.asks_policy or phases_of(spec)[0] != "old_logprobs")
        and not spec.resources.gpus_per_rank
    ]
    return max(1.0, len(asked) / 2) if work.side_by_side else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Seconds of a step, by what takes place at the same time.

    Scoring takes as long as the slowest role on GPUs or threads of its own, and so do the updates;
    other roles on CPUs are taken to share one machine, where one follows the other.
    """

    in_turn: float = 0.0
    scoring_apart: float = 0.0
    scoring_in_turn: float = 0.0
    updates_apart: float = 0.0
    updates_in_turn: float = 0.0

    def __add__(self, other: "Load") -> "Load":
        """Of roles that share no GPU, and no threads."""
        return Load(
            in_turn=self.in_turn + other.in_turn,
            scoring_apart=max(self.scoring_apart, other.scoring_apart),
            scoring_in_turn=self.scoring_in_turn + other.scoring_in_turn,
            updates_apart=max(self.updates_apart, other.updates_apart),
            updates_in_turn=self.updates_in_turn + other.updates_in_turn,
        )

    def __le__(self, other: "Load") -> bool:
        """No part is longer, so that it stays so whatever is added to both."""
        # Spelt out: a search compares hundreds of thousands of them.
        return (
            self.in_turn <= other.in_turn
            and self.scoring_apart <= other.scoring_apart
            and self.scoring_in_turn <= other.scoring_in_turn
            and self.updates_apart <= other.updates_apart
            and self.updates_in_turn <= other.updates_in_turn
        )

    @property
    def seconds(self) -> float:
        """The whole step."""
        scoring = max(self.scoring_apart, self.scoring_in_turn)
        return self.in_turn + scoring + max(self.updates_apart, self.updates_in_turn)


def load_of(seconds: Mapping[str, float], specs: Sequence[RoleSpec], work: StepWork) -> Load:
    """What roles on the same GPUs, or on CPUs, add to a step of the given phases."""
    how = "apart" if specs[0].resources.gpus_per_rank or work.side_by_side else "in_turn"
    part = dict.fromkeys(SCORING, f"scoring_{how}")
    if not work.updates_in_turn:
        part |= dict.fromkeys(UPDATES, f"updates_{how}")
    load: dict[str, float] = {}
    for phase in (phase for spec in specs for phase in phases_of(spec) if phase in seconds):
        name = part.get(phase, "in_turn")
        load[name] = load.get(name, 0.0) + seconds[phase]
    return Load(**load)


def step_seconds(seconds: Mapping[str, float], specs: Sequence[RoleSpec], work: StepWork) -> float:
    """The whole step's seconds, of its phases'."""
    load = Load(in_turn=seconds.get("sync_weights", 0.0))
    for host in specs:
        if shares_with(host) is None:
            guests = [spec for spec in specs if shares_with(spec) == host.name]
            load += load_of(seconds, (host, *guests), work)
    return load.seconds


def phases_of(spec: RoleSpec) -> tuple[str, ...]:
    """The phases in which a role computes."""
    if isinstance(spec, GeneratorSpec):
        return ("generate",)
    if isinstance(spec, FrozenSpec):
        return ("reference_logprobs" if spec.kind == "language" else "score",)
    if spec.kind == "language":
        return ("old_logprobs", "update_policy")
    return ("values", "update_critic")


SCORING = ("score", "old_logprobs", "reference_logprobs", "values")
UPDATES = ("update_policy", "update_critic")
PHASES = ("generate", *SCORING, *UPDATES, "sync_weights")


def processors_of(spec: RoleSpec, machines: Machines, *, threads: int) -> Processors:
    """Rates of a role's ranks. A trained or frozen rank computes on one GPU, however many it
    holds; ranks on CPU share the cores.
    """
    ranks, gpus = spec.resources.ranks, spec.resources.gpus_per_rank
    precision = spec.training.precision if isinstance(spec, TrainableSpec) else spec.precision
    if gpus and (gpu := machines.gpu):
        each = gpu.bfloat16_flops if precision == "bfloat16" else gpu.float32_flops
        devices = gpus if isinstance(spec, GeneratorSpec) else 1
        return Processors(
            flops=each * devices * ranks,
            bandwidth=gpu.memory_bandwidth * devices,
            ranks=ranks,
            speed=known.GPU_SPEED,
        )
    cores = min(threads * ranks, sum(node.cpus for node in machines.nodes))
    factor = known.CPU_BFLOAT16_FACTOR if precision == "bfloat16" else 1.0
    return Processors(
        flops=known.CPU_CORE_FLOPS * cores * factor,
        bandwidth=known.CPU_MEMORY_BANDWIDTH,
        ranks=ranks,
        speed=known.CPU_SPEED,
    )


def forward_flops(
    shape: ModelShape, *, tokens: float, row_tokens: float, projected_tokens: float
) -> float:
    """Floating-point operations of one forward pass over `tokens` in rows of `row_tokens`.

    Each token looks back at half a row on average: 4 x width x row / 2 operations a layer.
    `projected_tokens` meet the vocabulary.
    """
    matrices = 2.0 * shape.layers * shape.layer_matrices * tokens
    attention = 2.0 * shape.layers * shape.query_width * row_tokens * tokens
    return matrices + attention + 2.0 * shape.vocabulary_matrix * projected_tokens


def forward_seconds(
    spec: TrainableSpec | FrozenSpec, shape: ModelShape, work: StepWork, on: Processors
) -> float:
    """Scoring all sequences once."""
    operations = _pass_flops(spec, shape, work)
    seconds = operations / (on.flops * on.speed.forward_share) + on.speed.call_s
    if isinstance(spec, TrainableSpec) and spec.training.zero_stage == 3:
        passes = _microbatches(spec, work, on, sequences=work.sequences)
        seconds += passes * _collective_seconds(parameters_of(spec, shape), on)
    return seconds


def update_seconds(spec: TrainableSpec, shape: ModelShape, work: StepWork, on: Processors) -> float:
    """All minibatches of a step: forward, backward, ZeRO's traffic, AdamW."""
    numbers, training = parameters_of(spec, shape), spec.training
    # LoRA needs no gradients of the base's weights, one of the three.
    passes = (4.0 if training.gradient_checkpointing else 3.0) - (training.lora is not None)
    updated = adapter_parameters(spec, shape) or numbers
    kept = _kept_share(spec, work, on)
    operations = (passes * work.epochs - kept) * _pass_flops(spec, shape, work)
    seconds = operations / (on.flops * on.speed.train_share)
    per_minibatch = _microbatches(spec, work, on, sequences=work.sequences_per_minibatch)
    # In units of all weights sent once: gather forward and backward, reduce (Rajbhandari 2020,
    # section 7); at stage 0 and 1 gradients travel once a minibatch.
    exchanges = {0: 2.0, 1: 2.0, 2: 1.0 + per_minibatch, 3: 3.0 * per_minibatch}
    exchange = exchanges[training.zero_stage] * _collective_seconds(numbers, on)
    owned = updated / on.ranks if training.zero_stage else updated
    # AdamW reads weight, gradient and two moments, and writes three of them: 28 bytes.
    adam = 28.0 * owned / (on.bandwidth * on.speed.memory_share)
    return seconds + work.minibatches * (exchange + adam + on.speed.call_s)


def generate_seconds(
    spec: GeneratorSpec, shape: ModelShape, work: StepWork, on: Processors
) -> float:
    """Prefill, then one decoding step a token of the longest response, waves beyond what an
    engine runs at once.
    """
    size = 4.0 if spec.precision == "float32" else 2.0
    own = math.ceil(work.sequences / on.ranks)
    at_once = min(own, spec.max_parallel_sequences)
    decoded = own * work.response_tokens
    steps = max(work.longest_response_tokens, decoded / at_once)
    active = decoded / steps
    rate = on.flops / on.ranks
    prefill = forward_flops(
        shape, tokens=own * work.prompt_tokens, row_tokens=work.prompt_tokens, projected_tokens=own
    )
    one_step = forward_flops(
        shape, tokens=active, row_tokens=2 * work.row_tokens, projected_tokens=active
    )
    context = work.prompt_tokens + work.response_tokens / 2
    moved = size * shape.parameters + active * context * shape.kv_bytes_per_token(int(size))
    step_s = max(
        one_step / (rate * on.speed.decode_share), moved / (on.bandwidth * on.speed.memory_share)
    )
    decode = steps * (step_s + on.speed.decode_step_s)
    return prefill / (rate * on.speed.prefill_share) + decode + on.speed.call_s


def sync_seconds(shape: ModelShape, speed: Speed) -> float:
    """Publishing weights, which travel as float32."""
    return 4.0 * shape.parameters / speed.sync_bytes_per_s + speed.sync_s


def _pass_flops(spec: TrainableSpec | FrozenSpec, shape: ModelShape, work: StepWork) -> float:
    responses = work.sequences * work.response_tokens
    return forward_flops(
        shape,
        tokens=work.sequences * work.row_tokens,
        row_tokens=work.row_tokens,
        projected_tokens=responses if spec.kind == "language" else 0.0,
    )


def _kept_share(spec: TrainableSpec, work: StepWork, on: Processors) -> float:
    """Share of a step's sequences that are updated from the pass that scored them: one microbatch
    a rank, if that pass was made, by a role that no other follows before the update.
    """
    training, rows = spec.training, min(work.sequences_per_minibatch, work.sequences)
    has_dropout = training.lora is not None and training.lora.dropout > 0
    is_scored = work.asks_policy if spec.kind == "language" else True
    waits = spec.kind == "value" and not (spec.resources.gpus_per_rank or work.side_by_side)
    if training.zero_stage == 3 or has_dropout or waits or not is_scored:
        return 0.0
    microbatches = _microbatches(spec, work, on, sequences=rows)
    return rows / microbatches / work.sequences


def _microbatches(spec: TrainableSpec, work: StepWork, on: Processors, *, sequences: int) -> int:
    tokens = sequences * work.row_tokens / on.ranks
    return max(1, math.ceil(tokens / spec.training.tokens_per_microbatch))


def _collective_seconds(numbers: int, on: Processors) -> float:
    """All weights gathered, or all gradients reduced, once: 4 bytes a number."""
    if on.ranks == 1:
        return 0.0
    return 4.0 * numbers * (1 - 1 / on.ranks) / on.speed.collective_bytes_per_s
