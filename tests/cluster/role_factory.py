"""Specs, batches and losses for the tests of the cluster roles."""

import hashlib
import os
import random
import signal
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch

from alignment.cluster.generator import GeneratorActor
from alignment.cluster.groups import ActorGroup, Deadline
from alignment.cluster.process_identity import identity_of
from alignment.cluster.processes import actor_environment
from alignment.cluster.session import Cluster
from alignment.cluster.trainable import TrainableActor
from alignment.cluster.weights import WeightBucket
from alignment.config import ClusterConfig, OptimizerConfig, RoleResources, TrainingConfig
from alignment.errors import NumericsError
from alignment.experience import EncodedPrompt, TokenBatch, batch_from_rows
from alignment.models.loading import load_language_model
from alignment.role_specs import TrainableSpec
from alignment.training.roles import LogprobOutputs, LossSums, ValueOutputs

VOCABULARY = range(3, 250)


def make_cluster_config(**changes: Any) -> ClusterConfig:
    settings = {"object_store_gib": 0.25, "threads": 1, "start_timeout_s": 240.0}
    return ClusterConfig(**(settings | changes))


def trainable_spec(
    name: str,
    folder: Path,
    *,
    kind: Literal["language", "value"] = "language",
    ranks: int = 1,
    zero_stage: Literal[0, 1, 2, 3] = 0,
    precision: Literal["float32", "bfloat16"] = "float32",
    learning_rate: float = 1e-2,
    ema_decay: float | None = None,
    **training: Any,
) -> TrainableSpec:
    return TrainableSpec(
        name=name,
        kind=kind,
        model_folder=folder,
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, warmup_steps=1, max_gradient_norm=100.0
        ),
        training=TrainingConfig(
            tokens_per_microbatch=64, zero_stage=zero_stage, precision=precision, **training
        ),
        total_steps=20,
        seed=0,
        resources=RoleResources(ranks=ranks),
        ema_decay=ema_decay,
    )


def random_batch(rows: int, *, seed: int, longest: int = 30) -> TokenBatch:
    """Rows of very different lengths, so that microbatches and ranks get unequal shares."""
    draw = random.Random(seed)
    prompts = [draw.choices(VOCABULARY, k=draw.randint(1, longest)) for _ in range(rows)]
    responses = [draw.choices(VOCABULARY, k=draw.randint(1, longest)) for _ in range(rows)]
    return batch_from_rows(prompts, responses)


def random_prompts(count: int, *, tokens: int, seed: int) -> list[EncodedPrompt]:
    draw = random.Random(seed)
    return [
        EncodedPrompt(id=f"p{i}", token_ids=tuple(draw.choices(VOCABULARY, k=tokens + i)))
        for i in range(count)
    ]


def negative_logprob(outputs: LogprobOutputs, batch: TokenBatch) -> LossSums:
    tokens = batch.response_mask
    loss = -outputs.new_logprobs[tokens].sum()
    return LossSums(loss=loss, metrics={"tokens": tokens.sum()})


def squared_value(outputs: ValueOutputs, batch: TokenBatch) -> LossSums:
    return LossSums(loss=(outputs.new_values[batch.response_mask] - 1).square().sum(), metrics={})


def not_a_number(outputs: Any, batch: Any) -> LossSums:
    return LossSums(loss=outputs.new_logprobs.sum() * float("nan"), metrics={})


class RevealingActor(TrainableActor):
    """Tells the gradient that reached AdamW: its first moment after one step is 0.1 of it."""

    def gradients(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        first_beta = self.spec.optimizer.betas[0]
        optimizer = self._engine.optimizer
        if self.spec.training.zero_stage in (1, 2):
            # DeepSpeed 0.19.8 links parameters to their states after the first group's step, when
            # the second group has none yet.
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()
        revealed = {}
        for name, parameter in self._own.named_parameters():
            if not parameter.requires_grad:
                continue
            if self.spec.training.zero_stage:
                moment = safe_get_full_optimizer_state(parameter, "exp_avg")
            else:
                moment = optimizer.state[parameter]["exp_avg"]
            revealed[name] = (moment / (1 - first_beta)).clone()
        return revealed

    def keeps_a_pass(self) -> bool:
        return self._kept is not None

    def project_at_most(self, tokens: int) -> None:
        """Cut the projection to the vocabulary into smaller chunks than real models need."""
        self._own.chunk_tokens = tokens

    def weight_digest(self) -> str:
        digest = hashlib.sha256()
        for _, parameter in self._own.named_parameters():
            own = getattr(parameter, "ds_tensor", parameter)  # this rank's part under ZeRO 3
            digest.update(own.detach().numpy().tobytes())
        return digest.hexdigest()

    def draw_random_numbers(self) -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))


class PlainActor:
    """No engine: for what the group does when an actor fails, hangs or dies."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def describe(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "process": identity_of(os.getpid())}

    def meet(self) -> int:
        return self.rank

    def answer(self) -> int:
        return self.rank

    def refuse_on(self, rank: int) -> int:
        """One rank refuses; the others would wait for it for ever."""
        if self.rank == rank:
            raise NumericsError(f"rank {rank} has seen a NaN")
        time.sleep(3600)
        return self.rank

    def crash(self) -> None:
        raise KeyError("a mistake of ours")

    def fill_gpu(self) -> None:
        """What torch 2.11 raised on an H200."""
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.38 GiB. GPU 0 has a total capacity of 139.80 "
            "GiB of which 681.56 MiB is free. Of the allocated memory 136.35 GiB is allocated by "
            "PyTorch, and 231.85 MiB is reserved by PyTorch but unallocated."
        )

    def die_on(self, rank: int) -> None:
        if self.rank == rank:
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
        raise RuntimeError("connection closed by peer")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def start_group(
    cluster: Cluster, actor_class: type[Any], spec: TrainableSpec, config: ClusterConfig
) -> ActorGroup:
    """Ranks of a test's own trainable class, started like the real ones."""
    environment = actor_environment(
        "deepspeed", threads=config.threads, gpus=0, scratch=cluster.scratch
    )
    actors = [
        ray.remote(actor_class)
        .options(num_cpus=0.1, runtime_env={"env_vars": environment})
        .remote(spec, config.call_timeout_s, rank=rank)
        for rank in range(spec.resources.ranks)
    ]
    group = ActorGroup(spec.name, actors, call_timeout_s=240.0, logs=cluster.logs)
    group.remember_processes(group.call("describe"))
    [point] = group.submit("open_meeting_point", [()]).wait(Deadline.after(240.0, "test"))
    group.call("start", point)
    return group


class SabotagedGenerator(GeneratorActor):
    """The real rollout engine, with prefix caching on, and every wrong way to give it weights."""

    def start(self) -> None:
        from alignment.cluster import generator

        original = generator.engine_arguments
        generator.engine_arguments = lambda *args: original(*args) | {"enable_prefix_caching": True}
        super().start()

    def load_without_transfer_engine(self, folder: Path) -> str:
        weights = list(load_language_model(folder).named_weights())
        try:
            self._llm.apply_model(lambda model: model.load_weights(weights))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "no error"

    def load_weights_only(self, folder: Path) -> None:
        self._load_folder(folder)
        self._version = 0  # believe it, which ours would not yet

    def load_one_bucket_of_two(self, folder: Path) -> None:
        named = list(load_language_model(folder).named_weights())
        half = {name: ("float32", tensor.numpy()) for name, tensor in named[: len(named) // 2]}
        bucket = WeightBucket(reference=ray.put(half))
        self.begin_update()
        self.load_bucket(bucket)
        self.finish_update(2)

    def repack(self) -> None:
        from alignment.cluster.generator import _repack_tied_head

        self._llm.apply_model(_repack_tied_head)

    def reset_cache(self) -> None:
        self._llm.reset_prefix_cache()

    def norms(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[list[str], list[torch.Tensor]]:
        """Who answers for the norm of x, and it; then the norm of both's sum, and that sum."""
        from vllm import ir

        providers = [
            ir.ops.rms_norm.dispatch(x, weight, epsilon).provider,
            ir.ops.fused_add_rms_norm.dispatch(x, residual, weight, epsilon).provider,
        ]
        alone = ir.ops.rms_norm(x, weight, epsilon)
        summed = ir.ops.fused_add_rms_norm(x, residual, weight, epsilon)
        return providers, [alone, *summed]


class GlooCommunicator:
    """Stands in for vLLM's PyNcclCommunicator: the same calls, carried by gloo on CPU."""

    def __init__(self, host: str, port: int, rank: int, world_size: int, device: object) -> None:
        store = torch.distributed.TCPStore(
            host, port, world_size, is_master=rank == 0, wait_for_workers=False
        )
        prefixed = torch.distributed.PrefixStore("weights", store)
        self._group = torch.distributed.ProcessGroupGloo(
            prefixed, rank, world_size, timedelta(seconds=60)
        )
        self._store = store

    def broadcast(self, tensor: torch.Tensor, src: int, stream: object = None) -> None:
        options = torch.distributed.BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        """Gloo has nothing to release."""


def exchange_nccl_for_gloo() -> None:
    """In this process: the one substitution, and no-ops for the CUDA stream and device asked for.

    Packing is switched off, because vLLM packs on CUDA streams.
    """
    from vllm.distributed.weight_transfer import nccl_common, nccl_engine

    nccl_common.stateless_init_process_group = GlooCommunicator
    torch.cuda.current_stream = lambda *_: None  # type: ignore[assignment]
    torch.accelerator.current_device_index = lambda: 0
    original = nccl_engine.NCCLTrainerInitInfo
    nccl_transfer_information = partial(original, packed=False)
    from alignment.cluster import nccl_transfer

    nccl_transfer.NCCLTrainerInitInfo = nccl_transfer_information  # type: ignore[misc,assignment]


class GlooPolicy(TrainableActor):
    """The real policy with NCCL's wire exchanged for gloo's."""

    def send_weights(self, engines: list[Any], workers_per_engine: int) -> None:
        exchange_nccl_for_gloo()
        super().send_weights(engines, workers_per_engine)


class GlooGenerator(GeneratorActor):
    """The real rollout engine on CPU with vLLM's NCCL receiver, its wire exchanged for gloo's."""

    def start(self) -> None:
        from alignment.cluster import generator

        exchange_nccl_for_gloo()
        original = generator.engine_arguments
        generator.engine_arguments = lambda *args: (
            original(*args) | {"weight_transfer_config": {"backend": "nccl"}}
        )
        super().start()
