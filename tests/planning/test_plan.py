"""A stage against machines: verdicts, refusals with their numbers, alternatives that fit."""

from dataclasses import replace
from itertools import product

import pytest
from shapes_for_tests import engine, frozen, machines, ppo_request, trained

from alignment.config import ClusterConfig
from alignment.errors import ClusterError
from alignment.planning.alternatives import alternatives
from alignment.planning.known_shapes import KNOWN_SHAPES
from alignment.planning.memory import BatchSizes
from alignment.planning.plan import StageRequest, plan_stage, require_room, tight_places
from alignment.planning.step_time import StepWork, phase_seconds, step_seconds

SMOL, LLAMA = KNOWN_SHAPES["smollm2-135m"], KNOWN_SHAPES["llama-2-7b"]
WORK = StepWork(
    sequences=128,
    prompt_tokens=256,
    response_tokens=256,
    longest_response_tokens=512,
    sequences_per_minibatch=32,
)
LONG = BatchSizes(rows=32, prompt_tokens=512, response_tokens=512)


def stage(*specs, shape=LLAMA, batch=LONG):
    return StageRequest(
        stage="ppo",
        specs=specs,
        shapes={s.name: shape for s in specs},
        batches={s.name: batch for s in specs},
    )


def test_quickstart_size_fits_24_gib_and_not_8():
    """Certain without any batch: policy and critic 4 x 4 bytes a parameter, and so on."""
    request = ppo_request(SMOL)
    fits = plan_stage(request, ClusterConfig(), machines(memory_gib=24))
    assert fits.verdict == "fits"
    require_room([fits])
    assert tight_places([fits]) == []
    (node,) = fits.nodes
    value = SMOL.backbone_parameters + SMOL.hidden + 1
    trained_bytes = 16 * (SMOL.parameters + value) + 4 * (SMOL.parameters + value)
    engine_bytes = 4 * SMOL.parameters + 2**30
    assert node.certain == trained_bytes + engine_bytes
    tight = plan_stage(request, ClusterConfig(), machines(memory_gib=node.used / 2**30 / 0.95))
    assert tight.verdict == "tight"
    assert (
        "policy, critic, reference, reward_model, generator are predicted"
        in tight_places([tight])[0]
    )
    # predicted not to fit, but only by estimates: told, not refused
    doubtful = plan_stage(request, ClusterConfig(), machines(memory_gib=node.certain / 2**30 + 1))
    assert doubtful.verdict == "too large"
    require_room([doubtful])
    small = plan_stage(request, ClusterConfig(), machines(memory_gib=node.certain / 2**30 - 1))
    with pytest.raises(
        ClusterError, match=r"critic and the roles beside it need at least 6\.5 GiB"
    ):
        require_room([small])


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (trained(gpus=1), r"policy needs at least 100\.4 GiB on each GPU for weights, gradients"),
        (trained("critic", "value", gpus=1), r"raise `cluster.critic.ranks` and set `zero_stage`"),
        (frozen(gpus=1), r"reference needs at least 128\.5 GiB .* weights in float32.*system mem"),
        (engine(gpus=1), r"generator needs at least .* `cluster.generator.gpus_per_rank`"),
        (trained(gpus=1, ranks=8, zero_stage=3), "whole float32 model, which each rank loads"),
    ],
)
def test_a_role_larger_than_its_gpu_is_refused_by_name(spec, told):
    large = {"reference", "generator"} | ({spec.name} if spec.resources.ranks > 1 else set())
    shape = KNOWN_SHAPES["codellama-34b" if spec.name in large else "llama-2-7b"]
    if spec.name == "reference":
        shape = replace(shape, other_parameters=750_000_000)
    plan = plan_stage(stage(spec, shape=shape), ClusterConfig(), machines(gpus=8, nodes=2))
    assert plan.verdict == "too large"
    with pytest.raises(ClusterError, match=told):
        require_room([plan])


def test_roles_go_where_placement_puts_them():
    plan = plan_stage(
        stage(trained(ranks=10, gpus=1), engine(gpus=4)), ClusterConfig(), machines(gpus=8, nodes=2)
    )
    assert [node.roles for node in plan.nodes] == [("policy", "generator"), ("policy",)]
    assert plan.nodes[1].used == 6 * plan.roles[0].memory.host  # 4 beside the engine, 6 here
    refused = plan_stage(stage(trained(ranks=9, gpus=1)), ClusterConfig(), machines(gpus=8))
    assert refused.verdict == "too large"
    with pytest.raises(ClusterError, match=r"stage ppo: policy 9 = 9 GPUs wanted, 8 in the clus"):
        require_room([refused])


@pytest.mark.parametrize(
    ("name", "gpus", "kind"),
    [
        ("qwen2.5-0.5b", 1, "H200"),
        ("qwen2.5-0.5b", 8, "A100-80G"),
        ("qwen2.5-7b", 16, "H200"),
        ("llama-2-13b", 64, "A100-80G"),
        ("qwen2.5-32b", 64, "H200"),
    ],
)
def test_alternatives_really_fit(name, gpus, kind):
    """Each, put in place of the given roles, fits by the plan itself; the first is fastest."""
    request = ppo_request(KNOWN_SHAPES[name], LONG, gpus=1, precision="bfloat16")
    where = machines(gpus=min(8, gpus), nodes=-(-gpus // 8), kind=kind)
    found = alternatives(request, ClusterConfig(), WORK, where, section="ppo", limit=4)
    assert found
    for alternative in found:
        assert alternative.plan.verdict != "too large"
        assert alternative.gpus <= gpus
        again = plan_stage(_with(request, alternative.settings), ClusterConfig(), where)
        assert again == alternative.plan
    assert [a.step_s for a in found] == sorted(a.step_s for a in found)
    assert [a.gpus for a in found] == sorted((a.gpus for a in found), reverse=True)


@pytest.mark.parametrize("inside", [False, True])
def test_no_other_way_to_give_eight_gpus_is_faster(inside):
    """Every way is tried, at the training settings of the first alternative."""
    lora = {"lora": {"r": 8}} if inside else {}
    request = ppo_request(KNOWN_SHAPES["qwen2.5-3b"], LONG, gpus=1, precision="bfloat16", **lora)
    if inside:
        shared = replace(frozen(), adapter_off="policy")
        specs = tuple(shared if s.name == "reference" else s for s in request.specs)
        request = replace(request, specs=specs)
    where = machines(gpus=8)
    first, *_ = alternatives(request, ClusterConfig(), WORK, where, section="ppo")
    training = {k: v for k, v in first.settings.items() if k.startswith("ppo.")}
    times, threads = dict[int, float](), ClusterConfig().threads
    for given in product(*(list(_ways(spec)) for spec in request.specs)):
        gpus = sum(ranks * each for ranks, each in given)
        names = [s.name for s in request.specs]
        if gpus > 8:
            continue
        settings = dict(training)
        for name, (ranks, each) in zip(names, given, strict=True):
            settings |= {f"cluster.{name}.ranks": ranks, f"cluster.{name}.gpus_per_rank": each}
        changed = _with(request, settings)
        seconds = phase_seconds(changed.specs, changed.shapes, WORK, where, threads=threads)
        taken = step_seconds(seconds, changed.specs, WORK)
        fits = plan_stage(changed, ClusterConfig(), where).verdict != "too large"
        if fits and taken < times.get(gpus, float("inf")):
            times[gpus] = taken
    assert first.step_s <= min(times.values()) / 0.98
    assert first.step_s >= min(times.values()) * (1 - 1e-9)
    assert all(first.step_s < 0.981 * taken for gpus, taken in times.items() if gpus < first.gpus)


def _ways(spec):
    """Ranks and GPUs a rank of one role on one machine of 8."""
    if getattr(spec, "adapter_off", None):
        return [(1, 0)]
    each = (1, 2, 4, 8) if spec.name == "generator" else (1,)
    on_gpus = [(ranks, n) for n in each for ranks in (1, 2, 4, 8) if ranks * n <= 8]
    return on_gpus if spec.name in ("policy", "generator") else [(1, 0), *on_gpus]


def test_the_first_alternative_does_not_recompute_where_memory_is_ample():
    request = ppo_request(KNOWN_SHAPES["qwen2.5-0.5b"], LONG, gpus=1, precision="bfloat16")
    first, *_ = alternatives(request, ClusterConfig(), WORK, machines(gpus=8), section="ppo")
    assert "ppo.gradient_checkpointing" not in first.settings
    assert first.settings.get("ppo.zero_stage", 0) < 3


def test_a_reference_in_the_policy_s_processes_takes_nothing_of_its_own():
    request = ppo_request(SMOL, lora={"r": 8})
    shared = replace(frozen(), adapter_off="policy")
    specs = tuple(shared if s.name == "reference" else s for s in request.specs)
    plan = plan_stage(replace(request, specs=specs), ClusterConfig(), machines())
    assert "reference" not in plan.nodes[0].roles
    assert {fit.memory.role for fit in plan.roles} == {s.name for s in specs} - {"reference"}
    where = machines(gpus=8)
    for found in alternatives(
        replace(request, specs=specs), ClusterConfig(), WORK, where, section="ppo"
    ):
        assert not any(key.startswith("cluster.reference") for key in found.settings)


def test_nothing_is_proposed_where_nothing_fits():
    request = ppo_request(KNOWN_SHAPES["llama-2-70b"], LONG, gpus=1, precision="bfloat16")
    where = machines(gpus=8, nodes=8)
    assert alternatives(request, ClusterConfig(), WORK, where, section="ppo") == []


def test_what_fits_is_changed_only_for_speed():
    request = ppo_request(SMOL)
    where = machines(memory_gib=24)
    assert alternatives(request, ClusterConfig(), WORK, where, section="ppo") == []
    tight = machines(memory_gib=plan_stage(request, ClusterConfig(), where).nodes[0].used / 2**30)
    found = alternatives(request, ClusterConfig(), WORK, tight, section="ppo")
    assert found
    assert all(a.plan.nodes[0].used < tight.nodes[0].memory for a in found)


def _with(request, settings):
    """The request with `--set` settings applied the long way round."""
    specs = []
    for spec in request.specs:
        place = f"cluster.{spec.name}."
        own = {k.split(".")[-1]: v for k, v in settings.items() if k.startswith(place)}
        shared = {k.split(".")[-1]: v for k, v in settings.items() if k.startswith("ppo.")}
        changes = {"resources": spec.resources.model_copy(update=own)}
        if hasattr(spec, "training"):
            changes["training"] = spec.training.model_copy(update=shared)
        elif spec.name != "generator" and "tokens_per_microbatch" in shared:
            changes["tokens_per_microbatch"] = shared["tokens_per_microbatch"]
        specs.append(replace(spec, **changes))
    return replace(request, specs=tuple(specs))
