"""A frozen model's rank: the reference or the reward model, plain torch without gradients."""

from typing import Any

from torch import Tensor

from alignment.cluster.carried_folders import ActorOfSomeHost
from alignment.cluster.processes import actor_device, describe_process, gives_memory_back
from alignment.cluster.shards import Shard
from alignment.models.loading import load_frozen_module
from alignment.models.passes import Module, logprobs_of, scores_of
from alignment.role_specs import FrozenSpec


class FrozenActor(ActorOfSomeHost):
    """One independent copy of the model; ranks share the rows of a batch."""

    def __init__(self, spec: FrozenSpec, *, rank: int) -> None:
        self.spec = spec
        self.rank = rank
        self._module: Module | None = None

    def start(self) -> None:
        """Load the model."""
        device = actor_device(self.spec.name, self.rank, gpus=self.spec.resources.gpus_per_rank)
        self._module = load_frozen_module(self.spec).requires_grad_(False).to(device)

    @gives_memory_back
    def logprobs(self, shard: Shard) -> Tensor:
        """Log-probability of each response token, float32 [b, t]."""
        return logprobs_of(self._started(), shard.batch, **self._limits())

    @gives_memory_back
    def scores(self, shard: Shard) -> Tensor:
        """Normalised score of each sequence, float32 [b]."""
        return scores_of(self._started(), shard.batch, **self._limits())

    def describe(self) -> dict[str, Any]:
        """What runs behind this rank."""
        facts = {"role": self.spec.name, "rank": self.rank, **describe_process()}
        facts["exactness"] |= self._limits()
        return facts if self._module is None else {**facts, "engine": "torch"}

    def _started(self) -> Module:
        assert self._module is not None, "start() comes first"
        return self._module

    def _limits(self) -> dict[str, Any]:
        return {"tokens": self.spec.tokens_per_microbatch, "precision": self.spec.precision}
