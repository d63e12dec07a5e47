"""Weights from a policy on GPUs straight to rollout engines on GPUs, through vLLM's NCCL backend.

The policy's rank 0 is rank 0 of a communicator; the engines' workers follow. Every rank of the
policy runs the same passes over its parameters, because ZeRO 3 makes them whole collectively.
"""

import socket
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from torch import Tensor
from vllm.distributed.weight_transfer import (
    ParamMeta,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from alignment.cluster.deepspeed_engine import gathered_parameters
from alignment.cluster.weights import in_buckets, whole_shape
from alignment.models.lora import PublishedWeight


class PolicySource(WeightSource):
    """The policy's weights under their published names, whole and merged, in one fixed order."""

    def __init__(self, weights: Sequence[PublishedWeight]) -> None:
        self._weights = weights

    def metadata(self) -> list[ParamMeta]:
        """What iteration will yield; nothing is gathered for it."""
        return [
            ParamMeta(weight.name, plain.dtype, whole_shape(plain))
            for weight in self._weights
            for plain in weight.parameters[:1]
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for some in in_buckets(self._weights):
            with gathered_parameters([p for weight in some for p in weight.parameters]):
                for weight in some:
                    yield weight.name, weight.value()


class EnginesClient:
    """vLLM's `VLLMWeightSyncClient` for several independent engines on Ray actors.

    vLLM's own Ray client gives every engine the same ranks in the communicator; here engine i
    gets the ranks after those of engine i - 1.
    """

    def __init__(self, actors: Sequence[Any], *, workers_per_engine: int) -> None:
        self._actors = list(actors)
        self._workers_per_engine = workers_per_engine

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every engine join the communicator."""
        ray.get(
            [
                actor.synchronise.remote(
                    "init_weight_transfer_engine",
                    {"init_info": init_info | {"rank_offset": 1 + i * self._workers_per_engine}},
                )
                for i, actor in enumerate(self._actors)
            ]
        )

    def start_weight_update(self) -> None:
        """Let every layer wait for its new weights."""
        self._on_all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Receive what the policy broadcasts meanwhile."""
        self._on_all("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Repack every layer for its kernels."""
        self._on_all("finish_weight_update", weight_version)

    def _on_all(self, operation: str, *arguments: Any) -> None:
        ray.get([actor.synchronise.remote(operation, *arguments) for actor in self._actors])


def connect_policy(
    weights: Sequence[PublishedWeight],
    actors: Sequence[Any],
    *,
    rank: int,
    workers_per_engine: int,
) -> TrainerWeightTransferEngine[Any]:
    """One policy rank's end; called on every rank. Its `send_weights()` does a whole update."""
    host = ray.util.get_node_ip_address()
    information = NCCLTrainerInitInfo(
        master_address=host,
        master_port=_free_port(host),
        world_size=1 + len(actors) * workers_per_engine,
        rank=rank,
    )
    client = EnginesClient(actors, workers_per_engine=workers_per_engine)
    engine: TrainerWeightTransferEngine[Any] = WeightTransferTrainerFactory.trainer_init(
        information, client=client, source=PolicySource(weights)
    )
    return engine


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
