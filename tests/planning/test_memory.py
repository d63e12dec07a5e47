"""Memory of a role: hand-worked bytes, and what must hold whatever the numbers."""

from dataclasses import replace

import pytest
from shapes_for_tests import SMALL_BATCH, engine, frozen, machines, trained

from alignment.cluster.weights import BUCKET_BYTES
from alignment.config import ClusterConfig
from alignment.planning.calibration import SYNC_BUCKET_BYTES
from alignment.planning.known_shapes import KNOWN_SHAPES
from alignment.planning.machines import GIB, gpu_kind
from alignment.planning.memory import BatchSizes, microbatch_tokens, role_memory
from alignment.planning.plan import _readers

LLAMA = KNOWN_SHAPES["llama-2-7b"]
SMOL = KNOWN_SHAPES["smollm2-135m"]
A100 = gpu_kind("A100-80G")


def memory(spec, shape=LLAMA, batch=SMALL_BATCH, gpu=A100, publishes=True, readers=0, **cluster):
    config = ClusterConfig(**cluster)
    return role_memory(spec, shape, batch, config, gpu, publishes=publishes, readers=readers)


def test_llama_2_7b_at_zero_3_on_8_ranks_by_hand():
    """6,738,415,616 parameters / 8 = 842,301,952 a rank; 4 bytes each, AdamW two numbers."""
    role = memory(trained(ranks=8, gpus=1, zero_stage=3))
    assert role.weights == 3_369_207_808
    assert role.gradients == 3_369_207_808
    assert role.optimizer == 6_738_415_616
    # Gathered weights 1e9 and two buckets of 5e8, and the dense gradients of embedding and head.
    assert role.buffers == 4 * (1_000_000_000 + 2 * 500_000_000) + 2 * 4 * 32000 * 4096
    # Before DeepSpeed shards it, each rank holds the whole model: 26,953,662,464 bytes.
    assert role.start == 26_953_662_464 + 3_369_207_808 + role.overhead


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 1, 1, 2), (1, 1, 1, 3 / 8), (2, 1, 1 / 8, 3 / 8), (3, 1 / 8, 1 / 8, 2 / 8)],
)
def test_what_each_zero_stage_shards(stage, weights, gradients, optimizer):
    """In units of 4 bytes a parameter; stages 1 and 2 keep a copy of the share they update."""
    role = memory(trained(ranks=8, gpus=1, zero_stage=stage))
    unit = 4 * LLAMA.parameters
    assert (role.weights, role.gradients, role.optimizer) == (
        weights * unit,
        gradients * unit,
        optimizer * unit,
    )


def test_bfloat16_keeps_a_copy_of_every_weight():
    plain, mixed = (
        memory(trained(ranks=8, gpus=1, zero_stage=3, precision=p)) for p in ("float32", "bfloat16")
    )
    assert mixed.buffers - plain.buffers == 2 * LLAMA.parameters
    assert mixed.activations < plain.activations
    assert mixed.weights == plain.weights


def test_ranks_reduce_gradients_through_a_bucket():
    """5e8 numbers at most, beside the dense gradients of embedding and head."""
    dense = 2 * 4 * 32000 * 4096
    for stage in (0, 1, 2):
        assert memory(trained(ranks=2, gpus=1, zero_stage=stage)).buffers == dense + 2_000_000_000
        assert memory(trained(gpus=1, zero_stage=stage)).buffers == dense


def test_lora_updates_its_adapters_only():
    """r 16 on all seven matrices of 30 layers: 16 x 30 x (4x576 + 2x192 + 3x(576 + 1536) + 2x576)
    numbers; q alone: 16 x 30 x (576 + 576).
    """
    lora = {"r": 16}
    role = memory(trained(lora=lora), SMOL, gpu=None)
    numbers = 16 * 30 * (6 * 576 + 2 * 192 + 3 * 2112)
    assert role.gradients == 4 * numbers
    assert role.optimizer == 8 * numbers
    assert role.weights == 4 * (134_515_008 + numbers)
    small = memory(trained(lora=lora | {"targets": ["q_proj"]}), SMOL, gpu=None)
    assert small.gradients == 4 * 16 * 30 * 1152


def test_activations_by_hand():
    """One row of 112 tokens in SmolLM2: 30 layers x (16x576 + 12x576 + 8x192 + 8x1536 + 9x4 + 8)
    bytes a token, and 48 responses x 49152 x 4 bytes of logits, later their gradient.
    """
    batch = BatchSizes(rows=1, prompt_tokens=64, response_tokens=48)
    role = memory(trained(), SMOL, batch, gpu=None)
    assert role.activations == 112 * 30 * 29_996 + 9_437_184
    value = memory(trained("critic", "value"), SMOL, batch, gpu=None)
    assert value.activations == 112 * 30 * 29_996
    assert value.weights == 4 * (134_515_008 + 576 + 1)


def test_a_value_model_needs_a_second_embedding_gradient_only_in_later_microbatches():
    """4 rows of 128 tokens, in one microbatch of 512 or in two; a language model has two anyway."""
    batch = BatchSizes(rows=4, prompt_tokens=64, response_tokens=64)
    dense = 4 * 32000 * 4096
    for budget, matrices in ((512, 0), (511, 1)):
        how = {"gpus": 1, "tokens_per_microbatch": budget}
        assert memory(trained("critic", "value", **how), batch=batch).buffers == matrices * dense
        assert memory(trained(**how), batch=batch).buffers == 2 * dense


def test_the_vocabulary_is_projected_in_chunks():
    """Up to three chunks of 512 are kept, of more one at a time; gradients take their place."""
    batch = BatchSizes(rows=64, prompt_tokens=1, response_tokens=127)
    one_token = 4 * 49152
    for tokens, rows in ((1024, 1016), (2048, 512), (4096, 512)):
        role = memory(trained(tokens_per_microbatch=tokens), SMOL, batch, gpu=None)
        assert role.activations == tokens * 30 * 29_996 + rows * one_token


def test_kv_cache_bytes_a_token_by_hand():
    """2 x 32 layers x 32 heads x 128 wide x 2 bytes, and 8 of 64 heads at 70B."""
    assert LLAMA.kv_bytes_per_token(2) == 524_288
    assert KNOWN_SHAPES["llama-2-70b"].kv_bytes_per_token(2) == 327_680


def test_an_engine_fills_its_share_of_the_gpu():
    role = memory(engine(gpus=1, precision="bfloat16"), gpu_memory_fraction=0.9)
    assert role.weights == 13_476_831_232
    assert role.weights + role.overhead + role.kv_cache == int(0.9 * A100.memory)
    assert role.start == role.weights + role.overhead + 1024 * 524_288
    halves = memory(engine(gpus=2, precision="bfloat16"))
    assert halves.weights == role.weights // 2
    assert halves.kv_cache > role.kv_cache


def test_an_engine_on_cpu_holds_its_cache_from_the_start():
    role = memory(engine(), SMOL, gpu=None, kv_cache_gib=3)
    assert role.kv_cache == 3 * GIB
    assert role.weights == 4 * 134_515_008
    # the tied head's packed copy, an update's copy, half of three buckets as large as the embedding
    assert role.buffers == 4 * 49152 * 576 + 4 * 134_515_008 + 3 * 4 * 49152 * 576 // 2
    alone = memory(engine(), SMOL, gpu=None, kv_cache_gib=3, publishes=False)
    assert alone.buffers == 4 * 49152 * 576


def test_weights_that_engines_read_in_place_count_to_all_who_map_them():
    """A quarter each to the policy and three engines; nothing is in the store."""
    policy, reading = trained(), engine()
    copied = memory(policy, SMOL, gpu=None)
    lent = memory(policy, SMOL, gpu=None, readers=3)
    whole, store = 4 * 134_515_008, 3 * 4 * 49152 * 576 // 2
    assert lent.working == copied.working - store - whole * 3 // 4
    assert lent.resting == copied.resting - store - whole * 3 // 4
    beside = memory(reading, SMOL, gpu=None).buffers
    assert memory(reading, SMOL, gpu=None, readers=3).buffers == beside - store + whole // 4
    assert memory(trained(ranks=2), SMOL, gpu=None, readers=3).resting == (
        memory(trained(ranks=2), SMOL, gpu=None).resting - store - whole * 3 // 8
    ), "the mean of two ranks, of which one lends"
    critic = trained("critic", "value")
    assert memory(critic, SMOL, gpu=None, readers=3) == memory(critic, SMOL, gpu=None)


@pytest.mark.parametrize(
    ("policy", "engines", "readers"),
    [
        (trained(), engine(), 1),
        (trained(ranks=2), engine(ranks=3), 3),
        (trained(zero_stage=1), engine(), 0),
        (trained(lora={}), engine(), 0),
        (trained(gpus=1), engine(), 0),
        (trained(), engine(gpus=1, precision="bfloat16"), 0),
        (trained("critic", "value"), engine(), 0),
    ],
)
def test_only_plain_whole_weights_on_cpus_are_read_in_place(policy, engines, readers):
    assert _readers([policy, engines, frozen()]) == readers


def test_a_cache_may_be_a_part_of_a_gib():
    assert memory(engine(), SMOL, gpu=None, kv_cache_gib=0.25).kv_cache == GIB // 4


def test_the_store_holds_less_of_a_small_model():
    whole = memory(engine(), SMOL, gpu=None, kv_cache_gib=3)
    one_layer = memory(engine(), replace(SMOL, layers=1), gpu=None, kv_cache_gib=3)
    shares = [role.buffers - role.weights - 4 * 49152 * 576 for role in (whole, one_layer)]
    assert shares[0] == 3 * 4 * 49152 * 576 // 2
    assert shares[1] == one_layer.weights // 2, "all of it"
    assert SYNC_BUCKET_BYTES == BUCKET_BYTES


def test_frozen_roles_are_not_sharded():
    assert memory(frozen(ranks=8, gpus=1)).weights == memory(frozen(gpus=1)).weights == 26953662464


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_more_ranks_never_need_more(stage):
    sizes = [memory(trained(ranks=n, gpus=1, zero_stage=stage)).working for n in (2, 4, 8, 16)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_less_is_less():
    few, many = (memory(trained(tokens_per_microbatch=t)).working for t in (256, 1024))
    assert few < many
    kept, recomputed = (
        memory(trained(gradient_checkpointing=c)).activations for c in (False, True)
    )
    assert recomputed < kept / 3
    shallow, deep = (memory(trained(), SMOL.first_layers(n)).working for n in (12, 30))
    assert shallow < deep


def test_a_microbatch_holds_at_least_the_longest_row():
    batch = BatchSizes(rows=8, prompt_tokens=300, response_tokens=100)
    assert microbatch_tokens(batch, budget=256, ranks=1) == 400
    assert microbatch_tokens(batch, budget=2048, ranks=1) == 2048
    assert microbatch_tokens(batch, budget=8192, ranks=1) == 3200
    assert microbatch_tokens(batch, budget=8192, ranks=4) == 800


def test_roles_on_gpus_take_system_memory_too():
    """The float32 model passes through it on its way to the GPU."""
    role = memory(trained(gpus=1))
    assert role.host > 4 * LLAMA.parameters
    assert machines(gpus=1).gpu == A100
