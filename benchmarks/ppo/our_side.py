"""Our PPO on its real roles, one step at a time: Ray actors, DeepSpeed, vLLM."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment.checkpoints import RolloutJournal
from alignment.cluster import Cluster
from alignment.config import ClusterConfig, PipelineConfig
from alignment.experience import EncodedPrompt, Rollout, Sampling
from alignment.role_specs import RoleSpec
from alignment.seeds import derive_seed
from alignment.training.ppo import train_ppo
from alignment.training.roles import PPORoles
from benchmarks.exact.in_process import NothingSaved
from benchmarks.operations import Sequences
from benchmarks.ppo.workload import BATCH, MAX_PROMPT_TOKENS, RESPONSE_TOKENS, Variant, ppo_config
from flows.stages.ppo import ppo_role_specs

NEVER = 3
"""SmolLM2's `<repo_name>`, which it does not say: ends a response instead of its end of turn."""

KV_CACHE_GIB = 0.19
"""Of 32 sequences of 126 tokens SmolLM2-135M keeps 0.17 GiB."""

ROLES = ("policy", "critic", "reference", "reward_model", "generator")


class EnoughError(Exception):
    """Ends the training from within its metric sink."""


class OurPPO:
    """The started roles of one variant."""

    def __init__(self, roles: Mapping[str, Any], variant: Variant, scratch: Path) -> None:
        self.roles = roles
        self.variant = variant
        self.scratch = scratch
        if variant.forced:
            for actor in roles["generator"].group.actors:
                _get(actor.__ray_call__.remote(never_stop))

    def pids(self) -> dict[str, int]:
        """Each role's process."""
        return {name: self.roles[name].describe()[0]["pid"] for name in ROLES}

    def sample(self, prompts: Sequence[EncodedPrompt]) -> Sequences:
        """How long the responses are that an untrained policy gives."""
        sampling = Sampling(max_response_tokens=RESPONSE_TOKENS)
        seeds = [derive_seed(0, "sample", 0, i) for i in range(len(prompts))]
        return lengths_of(self.roles["generator"].generate(prompts, sampling, seeds=seeds))

    def train(
        self,
        prompts: Sequence[EncodedPrompt],
        *,
        steps: int,
        after_step: Callable[[int, Mapping[str, float]], None],
        sequences: int = BATCH,
    ) -> None:
        """Take steps; `after_step` gets each one's number (from 1) and metrics, and may raise
        `EnoughError` to end.
        """
        roles = {name: self.roles[name] for name in ROLES}
        journal = Path(tempfile.mkdtemp(prefix="journal-", dir=self.scratch))
        try:
            train_ppo(
                ppo_config(self.variant, steps=steps, sequences=sequences),
                PPORoles(**roles),
                prompts,
                seed=0,
                checkpoints=NothingSaved(),  # type: ignore[arg-type]
                journal=RolloutJournal(journal),
                metrics=_Sink(after_step),
            )
        except EnoughError:
            return


class _Sink:
    def __init__(self, after_step: Callable[[int, Mapping[str, float]], None]) -> None:
        self._after_step = after_step

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called by the loop when a step is done, its weights published."""
        self._after_step(step, metrics)


def role_specs(variant: Variant, models: tuple[Path, Path], *, steps: int) -> list[RoleSpec]:
    """The roles as the PPO stage starts them."""
    settings: dict[str, Any] = {
        "model": {"max_prompt_tokens": MAX_PROMPT_TOKENS},
        "ppo": ppo_config(variant, steps=steps),
        "cluster": {"generator_precision": variant.precision},
    }
    return ppo_role_specs(PipelineConfig.model_validate(settings), *models, seed=0)


@contextmanager
def our_roles(
    variant: Variant, models: tuple[Path, Path], scratch: Path, *, threads: int, steps: int
) -> Iterator[OurPPO]:
    """All five roles, started on a private Ray; ended with the block."""
    cluster = ClusterConfig(
        threads=threads,
        generator_precision=variant.precision,
        side_by_side=True,
        kv_cache_gib=KV_CACHE_GIB,
    )
    with Cluster.open(cluster, log_folder=scratch / "logs") as opened:
        roles = opened.start_roles(role_specs(variant, models, steps=steps))
        yield OurPPO(roles, variant, scratch)


def lengths_of(rollout: Rollout) -> Sequences:
    """Prompt and response lengths of a rollout."""
    responses = rollout.response_mask.sum(1)
    prompts = rollout.attention_mask.sum(1) - responses
    return Sequences(tuple(prompts.tolist()), tuple(responses.tolist()))


def never_stop(actor: Any) -> None:
    """Within a rollout engine's process: nothing ends a response before its limit."""
    actor._end_of_turn = NEVER


def _get(reference: Any) -> Any:
    import ray

    return ray.get(reference)
