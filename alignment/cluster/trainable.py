"""A trained model's rank: one process of a DeepSpeed engine.

Every method is called on all ranks of the role at once, because most contain collectives.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.cluster.carried_folders import (
    ActorOfSomeHost,
    CarriedFolder,
    PassingPlace,
    reading_from,
    writing_to,
)
from alignment.cluster.deepspeed_engine import (
    ClipAndReport,
    EngineModule,
    gathered_parameters,
    other_arithmetic,
    start_engine,
)
from alignment.cluster.engine_checkpoint import load_engine_checkpoint, save_engine_checkpoint
from alignment.cluster.lent_weights import Lender, LentWeights, can_lend
from alignment.cluster.process_group import (
    join_store,
    largest_over_ranks,
    open_store,
    start_process_group,
)
from alignment.cluster.processes import actor_device, describe_process, gives_memory_back
from alignment.cluster.shards import Shard
from alignment.cluster.weights import (
    WeightBucket,
    WeightProbe,
    in_buckets,
    probe_tokens,
    put_in_store,
)
from alignment.errors import NumericsError
from alignment.experience import TokenBatch, batch_from_rows, select_rows
from alignment.models.loading import load_trainable_module
from alignment.models.lora import PublishedWeight, base_digest
from alignment.models.modules import LanguageModel
from alignment.models.optimizer import trained_state_bytes
from alignment.models.passes import (
    KeptPass,
    Module,
    accumulate_gradients,
    first_pass,
    logprobs_of,
    microbatches,
    run,
    scores_of,
    values_of,
)
from alignment.models.weight_average import WeightAverage
from alignment.role_specs import FrozenSpec, TrainableSpec
from alignment.training.roles import Loss, StepReport


class TrainableActor(ActorOfSomeHost):
    """One rank of a language or value model with an optimiser."""

    def __init__(
        self, spec: TrainableSpec, timeout_s: float, keeps_memory: bool = False, *, rank: int
    ) -> None:
        self.spec = spec
        self.keeps_memory = keeps_memory
        self.rank = rank
        self.num_ranks = spec.resources.ranks
        self._timeout_s = timeout_s
        self._store: Any = None
        self._engine: Any = None
        self._clip: ClipAndReport | None = None
        self._sender: tuple[list[Any], Any] | None = None
        self._kept: KeptPass | None = None
        self._lender: Lender | None = None

    def open_meeting_point(self) -> tuple[str, int]:
        """Rank 0 only: host and port where the other ranks join."""
        from ray.util import get_node_ip_address

        host: str = get_node_ip_address()
        self._store = open_store(host, self.num_ranks, timeout_s=self._timeout_s)
        return host, self._store.port

    def start(self, meeting_point: tuple[str, int]) -> None:
        """Join the other ranks, load the model, start the engine."""
        spec = self.spec
        self.device = actor_device(spec.name, self.rank, gpus=spec.resources.gpus_per_rank)
        if self._store is None:
            self._store = join_store(*meeting_point, self.num_ranks, timeout_s=self._timeout_s)
        start_process_group(
            self._store,
            rank=self.rank,
            num_ranks=self.num_ranks,
            device=self.device,
            timeout_s=self._timeout_s,
        )
        torch.manual_seed(spec.seed + self.rank)
        self._own: Module = load_trainable_module(spec).to(self.device)
        if self._gathers_in_forward and isinstance(self._own, LanguageModel):
            self._own.most_chunks = lambda own: largest_over_ranks(own, self.device)
        self._engine, self._clip = start_engine(self._own, spec)
        self._module = EngineModule(self._engine, self._own)
        self._average = WeightAverage(self._own, spec.ema_decay)

    def forward_backward(self, shard: Shard, loss: Loss, denominator: float) -> dict[str, float]:
        """Add this rank's part of the gradient; see `alignment.training.roles.Trainable`."""
        pieces = microbatches(self._own, shard.batch, tokens=self._microbatch_tokens)
        weights = [shard.weight] * len(pieces)
        # ZeRO 2 and 3 communicate in every microbatch, so all ranks need equally many.
        padding = largest_over_ranks(len(pieces), self.device) - len(pieces)
        return accumulate_gradients(
            self._module,
            pieces + [pieces[-1]] * padding,
            loss,
            denominator=denominator,
            # DeepSpeed will divide by the number of ranks: see deepspeed_engine.
            backward=lambda total, _last: self._engine.backward(total * self.num_ranks),
            weights=weights + [0.0] * padding,
            kept=self._take_kept(),
        )

    def step(self) -> StepReport:
        """Clip, update weights and average, advance the schedule, clear the gradients.

        Raises:
            NumericsError: the gradient is not finite; the weights are as before.
        """
        learning_rate = float(self._engine.get_lr()[0])
        self._engine.step()
        norm = float(self._clip.norm if self._clip else self._engine.get_global_grad_norm())
        if not math.isfinite(norm) or not self._engine.was_step_applied():
            raise NumericsError(
                f"{self.spec.name}: the gradient norm is {norm} at optimiser step "
                f"{self._engine.global_steps}; the weights are as before. Lower the learning "
                "rate, or look at the last batch"
            )
        self._average.update()
        self._kept = None  # it was of the weights before
        return StepReport(gradient_norm=norm, learning_rate=learning_rate)

    @gives_memory_back
    def rest(self) -> None:
        """Keep nothing of the last updates while other roles work."""
        self._kept = None

    @gives_memory_back
    def logprobs(self, shard: Shard, trained_next: bool = False) -> Tensor:
        """Log-probability of each response token, float32 [b, t]; see `Policy.logprobs`."""
        self._keep_in_step(shard.batch)
        kept, tokens = self._keep_pass(shard.batch, trained_next), self._microbatch_tokens
        return logprobs_of(self._module, shard.batch, tokens=tokens, kept=kept)

    @gives_memory_back
    def reference_logprobs(self, shard: Shard, reference: FrozenSpec) -> Tensor:
        """What the base says, adapters off, computed as `reference` asks; float32 [b, t]."""
        tokens, policy = reference.tokens_per_microbatch, self._language_model()
        as_asked = other_arithmetic(
            self._engine,
            policy,
            precision=reference.precision,
            temperature=reference.temperature,
        )
        with policy.adapters.off(), as_asked:
            self._keep_in_step(shard.batch, tokens)
            return logprobs_of(self._module, shard.batch, tokens=tokens)

    @gives_memory_back
    def values(self, shard: Shard, trained_next: bool = False) -> Tensor:
        """Value before each response token, float32 [b, t]; see `Critic.values`."""
        self._keep_in_step(shard.batch)
        kept, tokens = self._keep_pass(shard.batch, trained_next), self._microbatch_tokens
        return values_of(self._module, shard.batch, tokens=tokens, kept=kept)

    @gives_memory_back
    def scores(self, shard: Shard) -> Tensor:
        """Score of each sequence, float32 [b]."""
        self._keep_in_step(shard.batch)
        return scores_of(self._module, shard.batch, tokens=self._microbatch_tokens)

    def lent_weights(self) -> LentWeights | None:
        """Rank 0: where engines of this host may read the weights, which move there once; None if
        they have to be copied, being on a GPU, sharded by DeepSpeed or to be merged.
        """
        if self.rank or self.spec.training.zero_stage or self.device.type != "cpu":
            return None
        if self._lender is None:
            weights = self._language_model().published_weights()
            if not can_lend(weights):
                return None
            self._lender = Lender(weights)
        return self._lender.lent()

    def count_buckets(self) -> int:
        """In how many pieces `copy_bucket` gives the weights."""
        return len(self._buckets)

    def copy_bucket(self, number: int) -> WeightBucket | None:
        """Rank 0: one piece of the weights in Ray's object store; other ranks: nothing."""
        bucket = self._buckets[number]
        return put_in_store(bucket, gather=gathered_parameters, keep=self.rank == 0)

    def send_weights(self, engines: list[Any], workers_per_engine: int) -> None:
        """The weights to rollout engines on GPUs, over NCCL; connects the first time."""
        if self._sender is None or self._sender[0] != engines:
            from alignment.cluster.nccl_transfer import connect_policy

            connection = connect_policy(
                self._language_model().published_weights(),
                engines,
                rank=self.rank,
                workers_per_engine=workers_per_engine,
            )
            self._sender = (engines, connection)
        self._sender[1].send_weights()

    @gives_memory_back
    def probe(self) -> WeightProbe:
        """What the present weights make of one sequence; see `WeightProbe`."""
        policy = self._language_model()
        tokens = probe_tokens(int(policy.causal_lm.config.vocab_size))
        batch = batch_from_rows([tokens[:1]], [tokens[1:]])
        with other_arithmetic(self._engine, policy, precision="float32", temperature=1.0):
            logprobs = logprobs_of(self._module, batch, tokens=len(tokens))
        return WeightProbe(token_ids=tuple(tokens), logprobs=tuple(logprobs[0, 1:].tolist()))

    @gives_memory_back
    def save_checkpoint(self, target: Path | PassingPlace) -> CarriedFolder | None:
        """Weights, their average, optimiser, schedule and random states of this rank."""
        with writing_to(target) as written:
            if self.rank == 0:
                self._average.save(written.folder)
            save_engine_checkpoint(
                self._engine,
                written.folder,
                rank=self.rank,
                num_ranks=self.num_ranks,
                base_digest=self._base_digest,
            )
        return written.sent

    def load_checkpoint(self, source: Path | CarriedFolder) -> None:
        """Restore all of it; CheckpointError names a missing part."""
        self._kept = None
        with reading_from(source) as folder:
            load_engine_checkpoint(
                self._engine,
                folder,
                rank=self.rank,
                num_ranks=self.num_ranks,
                base_digest=self._base_digest,
                is_own_copy=isinstance(source, CarriedFolder),
            )
            self._average.load(folder)

    @gives_memory_back
    def export(self, target: Path | PassingPlace) -> CarriedFolder | None:
        """Rank 0 writes the weights, or their average, as a loadable folder."""
        with (
            writing_to(target) as written,
            gathered_parameters(list(self._own.parameters())),
            self._average.in_place(),
        ):
            if self.rank == 0:
                written.folder.mkdir(parents=True, exist_ok=True)
                self._own.save(written.folder)
        return written.sent

    def describe(self) -> dict[str, Any]:
        """What runs behind this rank."""
        facts = {"role": self.spec.name, "rank": self.rank, **describe_process()}
        if self._engine is None:
            return facts
        import deepspeed

        training = self.spec.training
        facts["exactness"] |= {
            "deepspeed": deepspeed.__version__,
            "precision": training.precision,
            "tokens_per_microbatch": training.tokens_per_microbatch,
            "zero_stage": training.zero_stage,
        }
        return {
            **facts,
            "checkpoint_bytes": trained_state_bytes(
                self._own,
                zero_stage=training.zero_stage,
                averaged=self.spec.ema_decay is not None,
            ),
            "engine": type(self._engine).__name__,
            "optimizer": type(self._engine.optimizer).__name__,
            "deepspeed": deepspeed.__version__,
            "steps": self._engine.global_steps,
            "device": str(self.device),
        }

    def _keep_pass(self, batch: TokenBatch, trained_next: bool) -> KeptPass | None:
        """The first microbatch's pass if training is to start from it, and not before that.

        ZeRO 3 has whole weights during a pass only.
        """
        self._kept = None
        if trained_next and self.spec.training.zero_stage < 3:
            self._kept = first_pass(self._module, batch, tokens=self._microbatch_tokens)
        return self._kept

    def _take_kept(self) -> KeptPass | None:
        kept, self._kept = self._kept, None
        return kept

    def _language_model(self) -> LanguageModel:
        assert isinstance(self._own, LanguageModel), "only a policy has weights to publish"
        return self._own

    @cached_property
    def _buckets(self) -> list[list[PublishedWeight]]:
        buckets = list(in_buckets(self._language_model().published_weights()))
        return buckets[-1:] + buckets[:-1]  # the smallest first: engines can begin the sooner

    @cached_property
    def _base_digest(self) -> str | None:
        """Of the frozen weights, which a checkpoint leaves out; None where all are trained."""
        if self.spec.training.lora is None:
            return None
        return base_digest(self.spec.model_folder)

    @property
    def _microbatch_tokens(self) -> int:
        return self.spec.training.tokens_per_microbatch

    @property
    def _gathers_in_forward(self) -> bool:
        """Whether each forward pass of a layer is a collective."""
        return self.spec.training.zero_stage == 3 and self.num_ranks > 1

    def _keep_in_step(self, batch: TokenBatch, tokens: int | None = None) -> None:
        """ZeRO 3 gathers weights in every forward pass: run as many as the busiest rank."""
        if not self._gathers_in_forward:
            return
        own = len(microbatches(self._own, batch, tokens=tokens or self._microbatch_tokens))
        shortest = select_rows(batch, [int(batch.attention_mask.sum(1).argmin())])
        for _ in range(largest_over_ranks(own, self.device) - own):
            with torch.no_grad():
                run(self._module, shortest, self.device)
