"""Constants that only a measurement can give, each with where it comes from.

Three kinds: *measured* on the CPU path of this project, *published* by others for GPUs, and
*read* in the source of an engine. Change them here and nowhere else; `alignflow plan CONFIG
--against RUN` says how far they are off.
"""

from dataclasses import dataclass

MIB = 2**20
GIB = 2**30

# --- memory of a process before it holds a model --------------------------------------------

IDLE_ROLE_BYTES = 310 * MIB
"""Measured: proportional set size of an idle process with ray, torch, transformers and deepspeed
imported (285 to 309 MiB), and of frozen roles in a run less their mapped weights (313 to 333)."""
IDLE_GENERATOR_BYTES = 506 * MIB
"""Measured: vLLM started on a 90k-parameter model, 1530 MiB, less its 1 GiB of KV cache."""
DRIVER_BYTES = 900 * MIB
"""Estimate: the driving process, Ray's own and a private Prefect server."""
CUDA_CONTEXT_BYTES = 1536 * MIB
"""Estimate, not measured here: CUDA context, cuBLAS workspaces, NCCL buffers of one process."""
GRAPHS_AND_PROFILE_BYTES = 2 * GIB
"""Estimate, not measured here: vLLM's CUDA graphs and activations within its share of a GPU."""

# --- what engines keep beside the model -------------------------------------------------------

HEAP_SLACK = 1.15
"""Measured: resident memory of a training step on CPU over the tensors that live at its peak
(1.06 to 1.19, glibc told to keep freed pages, see alignment/cluster/processes.py)."""
LOADS_WHOLE_MODEL_ON_DEVICE = True
"""Read: alignment/cluster/trainable.py moves the whole float32 model to the rank's device before
DeepSpeed shards it, at every ZeRO stage. False once ZeRO 3 starts from sharded weights."""
REDUCE_BUCKET_NUMBERS = 500_000_000
"""Read: DeepSpeed 0.19, `reduce_bucket_size` default, in numbers of float32."""
LIVE_PARAMETERS = 1_000_000_000
"""Read: DeepSpeed 0.19, `stage3_max_live_parameters` default."""
VOCABULARY_CHUNK_TOKENS = 512
"""Read: `chunk_tokens` of alignment.models.modules.LanguageModel."""
VOCABULARY_KEPT_CHUNKS = 3
"""Read: `KEPT_CHUNKS` of alignment.objectives.logprobs."""
SHORT_ROW_TOKENS = 256
"""Read: `SHORT` of alignment.models.row_attention."""
VOCABULARY_COPIES_ON_GPU = 2
"""Read: log-softmax and its exponential in objectives/logprobs.py, of a whole chunk; a CPU has
them of a few rows."""
SYNC_BUCKET_BYTES = 64 * 2**20
"""Read: `BUCKET_BYTES` of alignment.cluster.weights; at most three are in Ray's object store."""
ENGINE_SEQUENCES = 64
"""Read: `max_parallel_sequences` default of GeneratorSpec."""

# --- speed ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What one processor reaches: operations and bytes a second, in each kind of work.

    `*_share` are shares of the peak rate of matrix products, `memory_share` of the memory's.
    """

    train_share: float
    forward_share: float
    prefill_share: float
    decode_share: float
    memory_share: float
    decode_step_s: float
    """Fixed cost of one decoding step of the rollout engine."""
    sync_bytes_per_s: float
    sync_s: float
    """Fixed cost of publishing weights."""
    collective_bytes_per_s: float
    """Per rank, for ZeRO's gathers and reductions."""
    call_s: float
    """Fixed cost of one call of a role."""


CPU_CORE_FLOPS = 100e9
"""Measured: float32 matrix products of training shapes, each of 2 virtual cores of an Intel Xeon
with AMX (180 to 225 Gflop/s together, 2026-11-30). Those of an AMD EPYC with AVX2, beside other
work, reached 53 to 63 together."""
CPU_HALF_OF_THREADS = 0.64
"""Measured: what one of a role's two threads reaches where policy and critic have one each, over
both where they take turns (0.57 to 0.67, 2026-11-30): the other need not be waited for."""
CPU_BFLOAT16_FACTOR = 1.0
"""Deliberately none: on that Xeon bf16 steps took 0.6 to 0.85 of the time of float32, and what they
take without bf16 instructions was not measured."""
CPU_MEMORY_BANDWIDTH = 20e9
"""Estimate, bytes a second of the whole machine."""

CPU_SPEED = Speed(
    # Fitted to the quickstart's PPO steps on that Xeon, 2026-11-30, with nothing beside: median
    # step 25.0 s, shares of its phases in tests/planning/test_step_time.py. Decoding also to
    # rollouts of 32 sequences of 64 tokens, the sync to another run of the day.
    train_share=0.66,
    forward_share=0.75,
    prefill_share=0.80,
    decode_share=0.40,
    memory_share=0.50,
    decode_step_s=0.040,
    sync_bytes_per_s=0.9e9,
    sync_s=0.1,
    collective_bytes_per_s=1e9,
    call_s=0.1,
)

GPU_SPEED = Speed(
    # Published: see docs/performance.md, "The plan against published figures". Never measured
    # by this project.
    train_share=0.42,
    forward_share=0.45,
    prefill_share=0.45,
    decode_share=0.40,
    memory_share=0.75,
    decode_step_s=0.010,
    sync_bytes_per_s=5.6e9,
    sync_s=2.5,
    collective_bytes_per_s=100e9,
    call_s=0.05,
)
