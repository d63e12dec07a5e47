"""Memory of one rank of each role, in bytes, part by part.

P parameters, N ranks of the role. Weights, gradients and AdamW's two moments are float32 at every
ZeRO stage (Rajbhandari et al. 2020, arXiv 1910.02054, section 3, with float32 in place of their
half precision); `bfloat16` is autocast, which keeps a bf16 copy of every weight until the
backward pass ends. The activation formula counts the tensors autograd saves for a Llama layer
(tests/planning/test_activations.py holds it to what torch saves).
"""

from dataclasses import dataclass

from alignment.config import ClusterConfig, Precision
from alignment.planning import calibration as known
from alignment.planning.machines import GpuKind
from alignment.planning.model_shapes import ModelShape
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec, TrainableSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMemory:
    """What one rank holds on each of its devices: its GPUs, or the system's memory without any.

    `start` is the most it holds while it starts; `host` is system memory of a rank on GPUs;
    `resting` is what stays of a rank on CPU between its calls.
    """

    role: str
    ranks: int
    gpus: int
    weights: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    kv_cache: int = 0
    buffers: int = 0
    overhead: int = 0
    start: int = 0
    host: int = 0
    resting: int = 0

    @property
    def working(self) -> int:
        """All parts at once, at the busiest moment of a step."""
        state = self.weights + self.gradients + self.optimizer
        return state + self.activations + self.kv_cache + self.buffers + self.overhead

    @property
    def needed(self) -> int:
        """The most it ever holds on a device."""
        return max(self.working, self.start)

    @property
    def certain(self) -> int:
        """What it holds whatever the batches are: no estimate enters."""
        return self.weights + self.gradients + self.optimizer + (0 if self.gpus else self.kv_cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizes:
    """The largest batch a role is called with: rows over all ranks, tokens of a row."""

    rows: int
    prompt_tokens: int
    response_tokens: int

    @property
    def row_tokens(self) -> int:
        """Tokens of the longest row."""
        return self.prompt_tokens + self.response_tokens


def role_memory(
    spec: RoleSpec,
    shape: ModelShape,
    batch: BatchSizes,
    cluster: ClusterConfig,
    gpu: GpuKind | None,
    *,
    publishes: bool,
    readers: int = 0,
) -> RoleMemory:
    """Memory of one rank of any role.

    Args:
        spec: the role.
        shape: its model, already cut to the layers it keeps.
        batch: the largest batch it is called with.
        cluster: sizes of the KV cache and of the rollout engines' share of a GPU.
        gpu: the GPU it runs on, where it has one.
        publishes: the policy's weights go to rollout engines, on CPUs through Ray's object store.
        readers: so many engines read them where they are instead; what several processes map
            counts to each in part.
    """
    if isinstance(spec, GeneratorSpec):
        if gpu is None:
            return _generator_on_cpu(spec, shape, cluster, publishes=publishes, readers=readers)
        return _generator_on_gpu(spec, shape, cluster.gpu_memory_fraction, gpu)
    if isinstance(spec, FrozenSpec):
        return _frozen(spec, shape, batch)
    return _trainable(spec, shape, batch, publishes=publishes, readers=readers)


def parameters_of(spec: RoleSpec, shape: ModelShape) -> int:
    """Numbers of the role's model: a value model has a scalar head in place of the vocabulary."""
    if not isinstance(spec, GeneratorSpec) and spec.kind == "value":
        return shape.backbone_parameters + shape.hidden + 1
    return shape.parameters


def adapter_parameters(spec: TrainableSpec, shape: ModelShape) -> int:
    """Numbers of the role's LoRA adapters, r (inputs + outputs) a layer; 0 without LoRA."""
    lora = spec.training.lora
    if lora is None:
        return 0
    hidden, query, kv, inner = shape.hidden, shape.query_width, shape.kv_width, shape.intermediate
    sides = {
        "q_proj": hidden + query,
        "k_proj": hidden + kv,
        "v_proj": hidden + kv,
        "o_proj": query + hidden,
        "gate_proj": hidden + inner,
        "up_proj": hidden + inner,
        "down_proj": inner + hidden,
    }
    chosen = sides if lora.targets is None else [name for name in sides if name in lora.targets]
    return shape.layers * lora.r * sum(sides[name] for name in chosen)


def microbatch_tokens(batch: BatchSizes, *, budget: int, ranks: int) -> int:
    """Padded tokens of the largest microbatch: the budget, less if a rank has fewer rows."""
    rows = -(-batch.rows // ranks)
    return max(batch.row_tokens, min(budget, rows * batch.row_tokens))


def saved_activations(shape: ModelShape, tokens: int, precision: Precision) -> int:
    """Bytes autograd keeps of one layer for the backward pass, without weights."""
    hidden, query, kv = shape.hidden, shape.query_width, shape.kv_width
    if precision == "float32":
        width = 16 * hidden + 8 * query + 8 * kv + 8 * shape.intermediate
    else:
        width = 12 * hidden + 4 * query + 4 * kv + 4 * shape.intermediate
    return tokens * (width + 4 * shape.attention_heads + 8)


def packing_activations(
    shape: ModelShape, tokens: int, precision: Precision, *, row_tokens: int
) -> int:
    """Bytes of one layer that a CPU keeps beside those, because its rows are packed.

    Row by row the outputs are kept, and once more together. Short rows in 16-bit arithmetic keep
    the weights of attention, in float32 and rounded.
    """
    if precision == "bfloat16" and row_tokens <= known.SHORT_ROW_TOKENS:
        return tokens * 6 * shape.attention_heads * row_tokens
    return tokens * (4 if precision == "float32" else 2) * shape.query_width


def vocabulary_logits(
    shape: ModelShape, batch: BatchSizes, tokens: int, *, trained: bool, on_gpu: bool
) -> int:
    """Bytes of logits at the busiest moment: what backward needs, on a GPU copies of a chunk."""
    responses = -(-tokens * batch.response_tokens // batch.row_tokens)
    chunk = min(known.VOCABULARY_CHUNK_TOKENS, responses)
    is_kept = trained and responses <= known.VOCABULARY_KEPT_CHUNKS * known.VOCABULARY_CHUNK_TOKENS
    copies = known.VOCABULARY_COPIES_ON_GPU if on_gpu else 0
    return 4 * shape.vocabulary * ((responses if is_kept else chunk) + copies * chunk)


def _trainable(
    spec: TrainableSpec, shape: ModelShape, batch: BatchSizes, *, publishes: bool, readers: int
) -> RoleMemory:
    training, ranks = spec.training, spec.resources.ranks
    stage, numbers = training.zero_stage, parameters_of(spec, shape)
    updated = adapter_parameters(spec, shape) or numbers
    share, updated_share = -(-numbers // ranks), -(-updated // ranks)
    tokens = microbatch_tokens(batch, budget=training.tokens_per_microbatch, ranks=ranks)
    on_gpu = bool(spec.resources.gpus_per_rank)
    one_layer = saved_activations(shape, tokens, training.precision)
    if training.gradient_checkpointing:  # alignment.models.lean_layers then keeps one tensor more
        one_layer += (4 if training.precision == "float32" else 2) * shape.intermediate * tokens
    if not on_gpu:
        longest = batch.row_tokens
        one_layer += packing_activations(shape, tokens, training.precision, row_tokens=longest)
    kept = shape.layers * (4 * shape.hidden * tokens)
    activations = kept + one_layer if training.gradient_checkpointing else shape.layers * one_layer
    # The dense gradients of embedding and head. Without a head that of the embedding is the
    # gradient itself, unless there is one already from an earlier microbatch.
    is_cut = -(-batch.rows // ranks) * batch.row_tokens > training.tokens_per_microbatch
    matrices = 2 if spec.kind == "language" else int(is_cut)
    temporary = 0 if training.lora else 4 * matrices * shape.vocabulary_matrix
    if spec.kind == "language":
        activations += vocabulary_logits(shape, batch, tokens, trained=True, on_gpu=on_gpu)
    adapters = updated if training.lora else 0
    weights = 4 * (share if stage == 3 else numbers) + 4 * adapters
    weights += 4 * updated if spec.ema_decay else 0  # the average, whole on every rank
    gradients = 4 * (updated_share if stage >= 2 else updated)
    master = updated_share if stage in (1, 2) else 0  # DeepSpeed copies what it updates
    optimizer = 4 * ((2 * updated_share if stage else 2 * updated) + master)
    buffers = temporary + 4 * _collective_numbers(stage, numbers, updated, ranks)
    buffers += 2 * numbers if training.precision == "bfloat16" else 0
    published = 0
    if publishes and spec.kind == "language" and not on_gpu:
        given = _readers_part(numbers, readers) * readers // ranks  # by the first rank alone
        published = -given if readers else _store_share(shape)
    slack = 0 if on_gpu else _slack(activations + gradients + temporary)
    idle = known.CUDA_CONTEXT_BYTES if on_gpu else known.IDLE_ROLE_BYTES
    whole = on_gpu and (stage < 3 or known.LOADS_WHOLE_MODEL_ON_DEVICE)
    return RoleMemory(
        role=spec.name,
        ranks=ranks,
        gpus=int(on_gpu),
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        buffers=buffers + published + slack,
        overhead=idle,
        start=4 * numbers + (4 * share if stage else 0) + idle if whole else 0,
        host=known.IDLE_ROLE_BYTES + 4 * numbers if on_gpu else 0,
        resting=0 if on_gpu else weights + optimizer + published + idle,
    )


def _collective_numbers(stage: int, numbers: int, updated: int, ranks: int) -> int:
    """Float32 numbers in DeepSpeed's buckets; ZeRO 3 also holds weights it has gathered."""
    if ranks == 1:
        return 0
    bucket = min(known.REDUCE_BUCKET_NUMBERS, updated)
    return min(known.LIVE_PARAMETERS, numbers) + 2 * bucket if stage == 3 else bucket


def _frozen(spec: FrozenSpec, shape: ModelShape, batch: BatchSizes) -> RoleMemory:
    """Every rank holds the whole model: frozen roles are not sharded."""
    numbers, ranks = parameters_of(spec, shape), spec.resources.ranks
    tokens = microbatch_tokens(batch, budget=spec.tokens_per_microbatch, ranks=ranks)
    activations = 4 * tokens * (4 * shape.hidden + 3 * shape.intermediate)
    on_gpu = bool(spec.resources.gpus_per_rank)
    if spec.kind == "language":
        logits = vocabulary_logits(shape, batch, tokens, trained=False, on_gpu=on_gpu)
        activations = max(activations, logits)
    idle = known.CUDA_CONTEXT_BYTES if on_gpu else known.IDLE_ROLE_BYTES
    return RoleMemory(
        role=spec.name,
        ranks=ranks,
        gpus=int(on_gpu),
        weights=4 * numbers,
        activations=activations,
        buffers=0 if on_gpu else _slack(activations),
        overhead=idle,
        host=known.IDLE_ROLE_BYTES + 4 * numbers if on_gpu else 0,
        resting=0 if on_gpu else 4 * numbers + idle,
    )


def _generator_on_cpu(
    spec: GeneratorSpec, shape: ModelShape, cluster: ClusterConfig, *, publishes: bool, readers: int
) -> RoleMemory:
    """A tied head is packed apart from the embedding; see `publishes` for what updates add."""
    weights = _bytes_of(spec.precision) * shape.parameters
    buffers = _bytes_of(spec.precision) * shape.vocabulary_matrix if shape.tied else 0
    if publishes:  # the copy an update leaves, and a share of what it was made from
        buffers += weights
        buffers += _readers_part(shape.parameters, readers) if readers else _store_share(shape)
    cache = int(cluster.kv_cache_gib * known.GIB)
    return RoleMemory(
        role=spec.name,
        ranks=spec.resources.ranks,
        gpus=0,
        weights=weights,
        kv_cache=cache,
        buffers=buffers,
        overhead=known.IDLE_GENERATOR_BYTES,
        resting=weights + cache + buffers + known.IDLE_GENERATOR_BYTES,
    )


def _readers_part(numbers: int, readers: int) -> int:
    """What each engine counts of float32 weights that it maps beside the policy."""
    return 4 * numbers // (readers + 1)


def _store_share(shape: ModelShape) -> int:
    """Half of the buckets in Ray's object store, which policy and engine both map."""
    largest = 4 * max(shape.vocabulary_matrix, shape.hidden * shape.intermediate)
    return min(4 * shape.parameters, 3 * max(known.SYNC_BUCKET_BYTES, largest)) // 2


def _generator_on_gpu(
    spec: GeneratorSpec, shape: ModelShape, fraction: float, gpu: GpuKind
) -> RoleMemory:
    """The engine fills its share of each GPU: what weights and graphs leave is KV cache."""
    devices = spec.resources.gpus_per_rank
    weights = -(-_bytes_of(spec.precision) * shape.parameters // devices)
    overhead = known.GRAPHS_AND_PROFILE_BYTES
    one_sequence = spec.max_sequence_tokens * kv_bytes_per_token(spec, shape)
    return RoleMemory(
        role=spec.name,
        ranks=spec.resources.ranks,
        gpus=devices,
        weights=weights,
        kv_cache=max(0, int(fraction * gpu.memory) - weights - overhead),
        overhead=overhead,
        start=weights + overhead + one_sequence,
        host=known.IDLE_GENERATOR_BYTES * devices,
    )


def kv_bytes_per_token(spec: GeneratorSpec, shape: ModelShape) -> int:
    """Bytes of KV cache a token takes on each of the engine's devices.

    Heads that are fewer than the devices are repeated on them.
    """
    devices = max(1, spec.resources.gpus_per_rank)
    whole = shape.kv_bytes_per_token(_bytes_of(spec.precision))
    return -(-whole // min(devices, shape.kv_heads))


def _bytes_of(precision: Precision) -> int:
    return 4 if precision == "float32" else 2


def _slack(transient: int) -> int:
    return int((known.HEAP_SLACK - 1.0) * transient)
