"""The roles as a training loop sees them: proxies of actor groups.

They satisfy the protocols of `alignment.training.roles`. Batches are shared among a role's
ranks here, and the answers put together again in the batch's own row order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.cluster.carried_folders import Carrier, fetch_folder, send_folder
from alignment.cluster.generator import GeneratedResponse, Sampled, require_same_answer
from alignment.cluster.groups import ActorGroup, Call
from alignment.cluster.lent_weights import LentWeights
from alignment.cluster.shards import merge_grids, merge_metrics, merge_rows, shard_batch
from alignment.cluster.weights import FolderWeights
from alignment.errors import ClusterError, DataError
from alignment.experience import (
    EncodedPrompt,
    Rollout,
    Sampling,
    TokenBatch,
    batch_from_rows,
)
from alignment.role_specs import FrozenSpec
from alignment.roles_local import prompt_index
from alignment.training.roles import Loss, StepReport


class RemoteRole:
    """A role on its actors."""

    def __init__(self, group: ActorGroup, carrier: Carrier | None = None) -> None:
        self.group = group
        self.carrier = carrier
        """Takes folders to the role's hosts and back; None where they share the driver's disk."""

    def describe(self) -> list[dict[str, Any]]:
        """What runs behind each rank: process, engine and its version, device, memory."""
        described: list[dict[str, Any]] = self.group.call("describe")
        return described

    @property
    def devices(self) -> frozenset[str] | None:
        """Where the role computes; see `alignment.training.side_by_side`."""
        return self.group.devices

    def end(self, reason: str) -> None:
        """End the role's processes; later calls are refused with the reason."""
        self.group.end(reason)

    def _grids(self, operation: str, batch: TokenBatch, *settings: Any) -> Tensor:
        shards = shard_batch(batch, len(self.group))
        answers = self.group.call_each(operation, [(shard, *settings) for shard in shards])
        return merge_grids(batch, shards, answers)

    def _rows(self, operation: str, batch: TokenBatch) -> Tensor:
        shards = shard_batch(batch, len(self.group))
        answers = self.group.call_each(operation, [(shard,) for shard in shards])
        return merge_rows(batch, shards, answers)


class RemoteTrainable(RemoteRole):
    """A model with an optimiser, on DeepSpeed."""

    def forward_backward(
        self, batch: TokenBatch, loss: Loss, *, denominator: float
    ) -> dict[str, float]:
        """Add the gradient of the whole batch's loss; see `Trainable.forward_backward`."""
        shards = shard_batch(batch, len(self.group))
        return merge_metrics(
            self.group.call_each(
                "forward_backward", [(shard, loss, denominator) for shard in shards]
            )
        )

    def step(self) -> StepReport:
        """Clip, update the weights, advance the schedule, clear the gradients."""
        report: StepReport = self.group.call("step")[0]
        return report

    def rest(self) -> None:
        """Give freed memory back to the machine."""
        self.group.call("rest")

    def save_checkpoint(self, folder: Path) -> None:
        """Write weights, optimiser, schedule and random states of every rank."""
        self._write("save_checkpoint", folder)

    def load_checkpoint(self, folder: Path) -> None:
        """Restore all of it; CheckpointError names a missing part."""
        if self.carrier is None:
            self.group.call("load_checkpoint", folder.absolute())
            return
        with self.carrier.passing_place() as place:
            self.group.call("load_checkpoint", send_folder(folder, place.url))

    def export(self, folder: Path) -> None:
        """Write the weights as a loadable folder."""
        self._write("export", folder)

    def _write(self, operation: str, folder: Path) -> None:
        """Let the ranks write into the driver's folder, or fetch into it what they have sent."""
        if self.carrier is None:
            self.group.call(operation, folder.absolute())
            return
        with self.carrier.passing_place() as place:
            for sent in self.group.call(operation, place):
                fetch_folder(sent, folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyWeights:
    """A policy's weights of one moment, not copied: they leave its process as engines load them."""

    policy: "RemotePolicy"
    changes: int
    """How often the policy's weights had changed until then."""

    def require_current(self) -> None:
        """Raise ClusterError if the policy has other weights by now."""
        if self.changes != self.policy.changes:
            raise ClusterError(
                f"the weights of {self.policy.group.role} were asked for before its last step or "
                "loaded checkpoint and are gone; ask for `weights()` and load them before the "
                "next `step()`"
            )


class RemotePolicy(RemoteTrainable):
    """The language model being trained."""

    changes = 0
    """How often its weights were replaced."""

    def step(self) -> StepReport:
        """Clip, update the weights, advance the schedule, clear the gradients."""
        self.changes += 1
        return super().step()

    def load_checkpoint(self, folder: Path) -> None:
        """Restore all of it; CheckpointError names a missing part."""
        self.changes += 1
        super().load_checkpoint(folder)

    def logprobs(self, batch: TokenBatch, *, trained_next: bool = False) -> Tensor:
        """Log-probability of each response token, float32 [B, T]; see `Policy.logprobs`."""
        return self._grids("logprobs", batch, trained_next)

    def lent(self) -> LentWeights | None:
        """Where engines of its host may read its weights; None if they have to be copied."""
        where: LentWeights | None = self.group.call("lent_weights")[0]
        return where

    @cached_property
    def buckets(self) -> int:
        """In how many pieces its weights leave it."""
        count: int = self.group.call("count_buckets")[0]
        return count

    def weights(self) -> PolicyWeights:
        """A handle on the current weights, to be loaded before the next `step()`."""
        return PolicyWeights(policy=self, changes=self.changes)


class RemoteValueTrainable(RemoteTrainable):
    """The critic, or the reward model while it is being trained."""

    def values(self, batch: TokenBatch, *, trained_next: bool = False) -> Tensor:
        """Value before each response token, float32 [B, T]; see `Critic.values`.

        On a CPU that roles use in turn nothing is kept: the policy is updated before.
        """
        is_apart = self.group.side_by_side or bool(self.group.gpus_per_rank)
        return self._grids("values", batch, trained_next and is_apart)

    def scores(self, batch: TokenBatch) -> Tensor:
        """Score of each sequence, float32 [B]."""
        return self._rows("scores", batch)


class RemoteReference(RemoteRole):
    """A frozen language model."""

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probability of each response token, float32 [B, T]."""
        return self._grids("logprobs", batch)


class SharedReference(RemoteRole):
    """The base of a policy with LoRA, answered by the policy's own processes, adapters off."""

    def __init__(self, group: ActorGroup, spec: FrozenSpec) -> None:
        super().__init__(group)
        self._spec = spec

    def describe(self) -> list[dict[str, Any]]:
        """Nothing: its processes are the policy's, which describes them."""
        return []

    def end(self, reason: str) -> None:
        """Nothing ends: the processes belong to the policy."""

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probability of each response token, float32 [B, T]."""
        return self._grids("reference_logprobs", batch, self._spec)


class RemoteRewardModel(RemoteRole):
    """A frozen reward model."""

    def scores(self, batch: TokenBatch) -> Tensor:
        """Normalised score of each sequence, float32 [B]."""
        return self._rows("scores", batch)


@dataclass(frozen=True, slots=True)
class RemoteRollout:
    """A rollout that the engines are sampling, each its span of the prompts."""

    prompts: tuple[EncodedPrompt, ...]
    call: Call
    probing: Call | None = None
    """The policy's answer to the probe, if the weights that sample are a policy's."""

    def wait(self) -> Rollout:
        """The rollout, rows in the order of the prompts, of engines with the policy's weights.

        Raises:
            ClusterError: an engine does not come to the policy's log-probabilities. See `Call.wait`
                for the others.
        """
        engines = self.call.group
        sampled: list[Sampled] = self.call.wait(engines.deadline())
        if self.probing is not None:
            probe = self.probing.wait(self.probing.group.deadline())[0]
            for rank, one in enumerate(sampled):
                require_same_answer(one.answer, probe, engine=f"{engines.role} rank {rank}")
        return _rollout(self.prompts, [response for one in sampled for response in one.responses])


class RemoteGenerator(RemoteRole):
    """Rollout engines, on vLLM."""

    _lender: tuple[bytes, bool] | None = None
    """The last policy that would lend its weights, and whether all engines can read them."""
    _probing: Call | None = None
    """What the policy whose weights are in use says of the probe."""

    def generate(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, *, seeds: Sequence[int]
    ) -> Rollout:
        """One response for each prompt in the order given (repeat a prompt for K samples).

        Raises:
            DataError: no prompts, a seed too few or too many, or a prompt too long.
            ClusterError: an engine has not taken the policy's last weights over completely.
        """
        return self.begin(prompts, sampling, seeds=seeds).wait()

    def begin(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, *, seeds: Sequence[int]
    ) -> "RemoteRollout":
        """Like `generate`, without waiting. Engines take their calls in order, so weights loaded
        later do not change it.
        """
        if not prompts or len(prompts) != len(seeds):
            raise DataError(f"got {len(prompts)} prompts and {len(seeds)} seeds; give one a prompt")
        spans = _contiguous_spans(len(prompts), len(self.group))
        call = self.group.submit(
            "generate",
            [(list(prompts[span]), sampling, list(seeds[span])) for span in spans],
        )
        return RemoteRollout(tuple(prompts), call, self._probing)

    def load_weights(self, weights: PolicyWeights | FolderWeights, *, version: int) -> None:
        """Use these weights from now on and stamp later rollouts with `version`.

        Raises:
            ModelError: a folder's weights are of another shape; nothing was changed.
            ClusterError: the policy has changed since it was asked for its weights, or weights
                were missing. See `Call.wait` for the others. Whether an engine comes to the
                policy's log-probabilities is what each `generate` looks at.
        """
        if isinstance(weights, PolicyWeights):
            weights.require_current()
            self._load_from(weights.policy, version)
            return
        if self.carrier is not None and isinstance(weights.folder, Path):
            weights = FolderWeights(folder=self.carrier.model(weights.folder))
        self.group.call("load_folder", weights, version)
        self._probing = None

    def _load_from(self, policy: RemotePolicy, version: int) -> None:
        """Engines take the weights; that they have is proved by each rollout of them."""
        if policy.group.gpus_per_rank:  # over NCCL
            policy.group.call("send_weights", self.group.actors, self.group.gpus_per_rank)
            self.group.call("adopt_weights", version, True)
        elif (lent := policy.lent()) is not None and self._can_read(lent):
            loading = self.group.submit_to_all("load_lent", lent, version)
            _wait_for_engines(loading, policy.group)
        else:
            self._copy(policy.group, policy.buckets)
            self.group.call("finish_update", version)
        # Not before the engines are done: it would take their cores.
        self._probing = policy.group.submit_to_all("probe")

    def _can_read(self, lent: LentWeights) -> bool:
        if self._lender is None or self._lender[0] != lent.secret:
            self._lender = lent.secret, all(self.group.call("can_read", lent))
        return self._lender[1]

    def _copy(self, policy: ActorGroup, buckets: int) -> None:
        """Take the weights from Ray's object store, where at most three buckets are at a time.

        Engines load one bucket while the next waits for them and the policy copies the one behind.
        """
        copying = policy.submit_to_all("copy_bucket", 0)
        before = self.group.submit_to_all("begin_update")
        for following in range(1, buckets + 1):
            bucket = copying.wait(policy.deadline())[0]
            if following < buckets:
                copying = policy.submit_to_all("copy_bucket", following)
            loading = self.group.submit_to_all("load_bucket", bucket)
            _wait_for_engines(before, policy)
            before = loading
        _wait_for_engines(before, policy)


def _wait_for_engines(loading: Call, policy: ActorGroup) -> None:
    try:
        loading.wait(loading.group.deadline())
    except ClusterError:
        policy.require_alive("giving its weights")  # they go with its process
        raise


def _contiguous_spans(items: int, parts: int) -> list[slice]:
    """Consecutive spans of nearly equal size; none is empty."""
    parts = min(items, parts)
    bounds = [items * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(bounds)]


def _rollout(prompts: Sequence[EncodedPrompt], responses: Sequence[GeneratedResponse]) -> Rollout:
    batch = batch_from_rows([p.token_ids for p in prompts], [r.token_ids for r in responses])
    sampling_logprobs = torch.zeros(batch.token_ids.shape)
    sampling_logprobs[batch.response_mask] = torch.tensor(
        [logprob for response in responses for logprob in response.logprobs]
    )
    return Rollout(
        token_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        response_mask=batch.response_mask,
        sampling_logprobs=sampling_logprobs,
        finished=torch.tensor([response.finished for response in responses]),
        prompt_index=prompt_index(prompts),
        policy_version=torch.tensor([response.policy_version for response in responses]),
    )
