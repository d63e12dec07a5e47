"""Operations by hand, seconds that follow from rates, and which way they move."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from shapes_for_tests import engine, frozen, machines, ppo_request, trained

from alignment.planning import calibration
from alignment.planning.known_shapes import KNOWN_SHAPES
from alignment.planning.step_time import (
    PHASES,
    Load,
    StepWork,
    forward_flops,
    forward_seconds,
    generate_seconds,
    phase_seconds,
    processors_of,
    step_seconds,
    sync_seconds,
    update_seconds,
)

LLAMA, SMOL = KNOWN_SHAPES["llama-2-7b"], KNOWN_SHAPES["smollm2-135m"]
QUICKSTART = StepWork(
    sequences=32,
    prompt_tokens=16,
    response_tokens=22,
    longest_response_tokens=48,
    sequences_per_minibatch=16,
)


def test_forward_operations_by_hand():
    """Llama-2-7B: 32 layers of 4 x 4096^2 + 3 x 4096 x 11008 = 202,375,168 weights.

    1000 tokens in rows of 500, 100 of them projected to 32000 x 4096.
    """
    matrices = 2 * 32 * 202_375_168 * 1000
    attention = 1000 * 32 * 4 * 4096 * 250  # a token looks back at 250 on average
    head = 2 * 100 * 32000 * 4096
    assert forward_flops(LLAMA, tokens=1000, row_tokens=500, projected_tokens=100) == (
        matrices + attention + head
    )


def test_the_work_of_a_step():
    assert QUICKSTART.minibatches == 2
    assert replace(QUICKSTART, epochs=4).minibatches == 8
    assert QUICKSTART.row_tokens == 38


def test_a_rank_computes_on_one_gpu_and_an_engine_on_all_of_its():
    where = machines(gpus=8)
    assert processors_of(frozen(gpus=4), where, threads=2).flops == 19.5e12
    assert processors_of(engine(gpus=4, precision="bfloat16"), where, threads=2).flops == 4 * 312e12
    assert processors_of(trained(ranks=4), machines(), threads=2).flops == pytest.approx(
        8 * calibration.CPU_CORE_FLOPS
    )


def test_phases_are_those_of_the_roles():
    request = ppo_request(SMOL)
    seconds = phase_seconds(request.specs, request.shapes, QUICKSTART, machines(), threads=2)
    assert tuple(seconds) == PHASES
    without = [s for s in request.specs if s.name != "critic"]
    left = phase_seconds(without, request.shapes, QUICKSTART, machines(), threads=2)
    assert left == {k: v for k, v in seconds.items() if k not in ("values", "update_critic")}
    unasked = replace(QUICKSTART, asks_policy=False)
    left = phase_seconds(request.specs, request.shapes, unasked, machines(), threads=2)
    kept = {"old_logprobs", "update_policy"}  # not asked, it has no pass to start from
    assert {k: v for k, v in left.items() if k != "update_policy"} == {
        k: v for k, v in seconds.items() if k not in kept
    }
    assert left["update_policy"] > 1.1 * seconds["update_policy"]


PHASES_S = dict(zip(PHASES, (8.0, 1.0, 3.0, 2.0, 0.5, 10.0, 6.0, 0.25), strict=True))


def test_roles_on_one_cpu_take_turns():
    assert step_seconds(PHASES_S, ppo_request(SMOL).specs, QUICKSTART) == sum(PHASES_S.values())


def test_of_roles_side_by_side_on_cpus_the_slowest_counts():
    """Generation 8, scoring max(1, 3, 2, 0.5), updates max(10, 6), sync 0.25."""
    beside, specs = replace(QUICKSTART, side_by_side=True), ppo_request(SMOL).specs
    assert step_seconds(PHASES_S, specs, beside) == 8 + 3 + 10 + 0.25
    in_turn = replace(beside, updates_in_turn=True)
    assert step_seconds(PHASES_S, specs, in_turn) == 8 + 3 + 16 + 0.25


def test_side_by_side_a_role_has_less_of_the_cores_and_the_step_takes_less_time():
    """Rates are 0.64 of those of all threads; four roles that score share two cores."""
    request, beside = ppo_request(SMOL), replace(QUICKSTART, side_by_side=True)
    alone, together = (
        phase_seconds(request.specs, request.shapes, work, machines(), threads=2)
        for work in (QUICKSTART, beside)
    )
    call = calibration.CPU_SPEED.call_s
    for phase, factor in (("score", 2 / 0.64), ("values", 2 / 0.64)):
        assert together[phase] - 2 * call == pytest.approx(factor * (alone[phase] - call))
    assert 1.4 < together["update_policy"] / alone["update_policy"] < 1 / 0.64
    assert together["generate"] == alone["generate"]
    taken = [
        step_seconds(seconds, request.specs, work)
        for seconds, work in ((alone, QUICKSTART), (together, beside))
    ]
    assert 0.75 < taken[1] / taken[0] < 0.9
    unasked = replace(beside, asks_policy=False)
    three = phase_seconds(request.specs, request.shapes, unasked, machines(), threads=2)
    assert three["score"] == pytest.approx(0.75 * together["score"])


def test_of_roles_on_gpus_of_their_own_the_slowest_counts():
    """Generation 8, scoring max(1, 3, 2, 0.5), updates max(10, 6), sync 0.25."""
    specs = [
        trained(gpus=1),
        trained("critic", "value", gpus=1),
        frozen(gpus=1),
        frozen("reward_model", "value", gpus=1),
        engine(gpus=1),
    ]
    assert step_seconds(PHASES_S, specs, QUICKSTART) == 8 + 3 + 10 + 0.25
    on_cpu = [*specs[2:], trained(gpus=1), trained("critic", "value")]
    assert step_seconds(PHASES_S, on_cpu, QUICKSTART) == 8 + 3 + 10 + 0.25
    in_turn = replace(QUICKSTART, updates_in_turn=True)
    assert step_seconds(PHASES_S, specs, in_turn) == 8 + 3 + 16 + 0.25
    both_on_cpu = [*on_cpu[:3], trained(), trained("critic", "value")]
    assert step_seconds(PHASES_S, both_on_cpu, QUICKSTART) == 8 + 3.5 + 16 + 0.25
    without = {k: v for k, v in PHASES_S.items() if k not in ("values", "update_critic")}
    assert step_seconds(without, [*specs[:1], *specs[2:]], QUICKSTART) == 8 + 3 + 10 + 0.25


def test_a_reference_inside_the_policy_takes_turns_with_it():
    inside = replace(frozen(), adapter_off="policy")
    specs = [trained(gpus=1), inside, frozen("reward_model", "value", gpus=1), engine(gpus=1)]
    without = {k: v for k, v in PHASES_S.items() if k not in ("values", "update_critic")}
    assert step_seconds(without, specs, QUICKSTART) == 8 + 5 + 10 + 0.25


def test_the_quickstart_step_of_the_reference_machine():
    """Shares measured in the run of 2026-11-30, the sync's in one after its proof had moved; the
    critic has the first 12 of 30 layers."""
    request = ppo_request(SMOL)
    shapes = request.shapes | {n: SMOL.first_layers(12) for n in ("critic", "reward_model")}
    seconds = phase_seconds(request.specs, shapes, QUICKSTART, machines(), threads=2)
    measured = {
        "generate": 0.244,
        "score": 0.0322,
        "old_logprobs": 0.0972,
        "reference_logprobs": 0.0914,
        "values": 0.0331,
        "update_policy": 0.344,
        "update_critic": 0.119,
        "sync_weights": 0.0285,
    }
    total = sum(seconds.values())
    assert total == pytest.approx(25.0, rel=0.25)
    for name, share in measured.items():
        assert seconds[name] / total == pytest.approx(share, rel=0.25), name


@pytest.mark.parametrize(
    ("work", "name", "changes", "passes"),
    [
        ({}, "policy", {}, 2.5),  # a minibatch, half of the sequences, is one microbatch
        ({"epochs": 4}, "policy", {}, 11.5),
        ({}, "policy", {"tokens_per_microbatch": 304}, 2.75),  # it is two
        ({}, "policy", {"ranks": 2, "tokens_per_microbatch": 304}, 2.5),  # of two ranks, each one
        ({}, "policy", {"zero_stage": 3}, 3.0),
        ({}, "policy", {"lora": {"dropout": 0.1}}, 2.0),  # no gradient of the base's weights
        ({}, "policy", {"lora": {}}, 1.5),
        ({"asks_policy": False}, "policy", {}, 3.0),
        ({}, "critic", {}, 3.0),  # the policy's update would wait beside what it keeps
        ({"side_by_side": True}, "critic", {}, 2.5),
        ({}, "critic", {"gpus": 1}, 2.5),
    ],
)
def test_the_first_microbatch_is_updated_from_the_pass_that_scored_it(
    work: dict[str, Any], name: str, changes: dict[str, Any], passes: float
) -> None:
    spec = trained(name, "language" if name == "policy" else "value", **changes)
    work_done = replace(QUICKSTART, **work)
    on = replace(processors_of(spec, machines(gpus=8), threads=2), bandwidth=math.inf, flops=1e12)
    on = replace(on, speed=replace(on.speed, call_s=0.0, collective_bytes_per_s=math.inf))
    one = forward_seconds(spec, SMOL, work_done, on) * on.speed.forward_share / on.speed.train_share
    assert update_seconds(spec, SMOL, work_done, on) == pytest.approx(passes * one)


def test_a_checkpointed_pass_costs_a_third_more():
    where = machines(gpus=8)
    on = processors_of(trained(gpus=1), where, threads=2)
    plain, again = (
        update_seconds(trained(gpus=1, gradient_checkpointing=c), LLAMA, QUICKSTART, on)
        for c in (False, True)
    )
    fixed = QUICKSTART.minibatches * (
        on.speed.call_s + 28 * LLAMA.parameters / (2039e9 * on.speed.memory_share)
    )
    kept = 0.5  # of the sequences, whose forward pass is made before
    assert (again - fixed) / (plain - fixed) == pytest.approx((4 - kept) / (3 - kept))


def test_zero_3_sends_weights_in_every_microbatch():
    """Gather forward, gather backward, reduce: 3 x 4 bytes x 3/4 of the weights, 4 ranks."""
    where = machines(gpus=8)
    times = []
    for budget in (10_000, 76):  # 16 sequences x 38 tokens / 4 ranks = 152: 1 and 2 microbatches
        spec = trained(ranks=4, gpus=1, zero_stage=3, tokens_per_microbatch=budget)
        on = processors_of(spec, where, threads=2)
        times.append(update_seconds(spec, LLAMA, QUICKSTART, on))
    sent = 3 * 4 * LLAMA.parameters * 0.75 / on.speed.collective_bytes_per_s
    assert times[1] - times[0] == pytest.approx(QUICKSTART.minibatches * sent)


def test_generation_goes_in_waves_beyond_what_an_engine_runs_at_once():
    spec = engine(gpus=1, precision="bfloat16")
    on = processors_of(spec, machines(gpus=8), threads=2)
    full = replace(QUICKSTART, sequences=64, response_tokens=48.0)
    one, two = (
        generate_seconds(spec, LLAMA, replace(full, sequences=n), on) - on.speed.call_s
        for n in (64, 128)
    )
    assert two == pytest.approx(2 * one)
    rate = processors_of(replace(spec, resources=spec.resources.model_copy(update={"ranks": 2})),
                         machines(gpus=8), threads=2)  # fmt: skip
    halved = generate_seconds(spec, LLAMA, replace(full, sequences=128), rate) - on.speed.call_s
    assert halved == pytest.approx(one)


def test_weights_travel_as_float32():
    slow = replace(calibration.GPU_SPEED, sync_bytes_per_s=1e9, sync_s=0.0)
    assert sync_seconds(LLAMA, slow) == pytest.approx(26.953662464)


@pytest.mark.parametrize("part", [field.name for field in fields(Load)])
def test_a_load_is_at_most_another_if_no_part_is_longer(part: str) -> None:
    load = Load(**dict.fromkeys((field.name for field in fields(Load)), 1.0))
    longer = replace(load, **{part: 2.0})
    assert load <= replace(load)
    assert load <= longer
    assert not longer <= load
