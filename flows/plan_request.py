"""What a configuration asks of the machines: each stage's roles, model shapes and batches."""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from alignment.config import PipelineConfig
from alignment.planning.memory import BatchSizes
from alignment.planning.model_shapes import ModelShape
from alignment.planning.plan import StageRequest
from alignment.planning.step_time import StepWork
from alignment.role_specs import FrozenSpec, RoleSpec, TrainableSpec, is_side_by_side
from flows.stages.ppo import ppo_role_specs

STARTER_PROMPT_TOKENS = 16.0
"""Mean of the starter prompts with SmolLM2's tokenizer and ChatML (12 to 21)."""
STARTER_DEMONSTRATION_TOKENS = 25
"""Longest of the starter demonstrations with SmolLM2's tokenizer."""
USUAL_SHARE = 0.5
"""Mean length over the limit, where nothing is known about the data."""
_NO_FOLDER = Path("model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens: limits of prompt, PPO response and demonstration, for memory; means, for time."""

    longest_prompt: int
    longest_response: int
    longest_demonstration: int
    mean_prompt: float
    mean_response: float


def lengths_of(
    config: PipelineConfig, *, prompt: float | None = None, response: float | None = None
) -> Lengths:
    """Limits from the settings; means as given, else guessed."""
    limit = config.model.max_prompt_tokens
    starter = min(STARTER_PROMPT_TOKENS, float(limit))
    guessed = starter if config.data.source == "starter" else USUAL_SHARE * limit
    return Lengths(
        longest_prompt=limit,
        longest_response=config.ppo.max_response_tokens,
        longest_demonstration=config.data.max_response_tokens,
        mean_prompt=guessed if prompt is None else prompt,
        mean_response=USUAL_SHARE * config.ppo.max_response_tokens
        if response is None
        else response,
    )


def seen_lengths(config: PipelineConfig, lengths: Lengths) -> Lengths:
    """What batches are likely to hold in place of the limits: mean prompts, as the longest prompt
    and the longest response seldom meet in one row.
    """
    demonstration = lengths.longest_demonstration
    if config.data.source == "starter":
        demonstration = min(demonstration, STARTER_DEMONSTRATION_TOKENS)
    return replace(
        lengths,
        longest_prompt=min(ceil(lengths.mean_prompt), lengths.longest_prompt),
        longest_demonstration=demonstration,
    )


def stage_requests(
    config: PipelineConfig, shape: ModelShape, lengths: Lengths
) -> list[StageRequest]:
    """The stages that start trained roles, in their order; PPO is the last."""
    return [
        _sft(config, shape, lengths),
        _reward_model(config, shape, lengths),
        _ppo(config, shape, lengths),
    ]


def step_work(config: PipelineConfig, lengths: Lengths) -> StepWork:
    """One PPO step of the configuration."""
    ppo = config.ppo
    specs = ppo_role_specs(config, _NO_FOLDER, _NO_FOLDER, seed=0)
    return StepWork(
        sequences=ppo.sequences_per_step,
        prompt_tokens=lengths.mean_prompt,
        response_tokens=lengths.mean_response,
        longest_response_tokens=lengths.longest_response,
        sequences_per_minibatch=ppo.sequences_per_minibatch,
        epochs=ppo.epochs,
        updates_in_turn=ppo.update_kl_limit_nats is not None,
        asks_policy=ppo.old_logprobs == "trainer",
        side_by_side=is_side_by_side(specs, config.cluster),
    )


def _sft(config: PipelineConfig, shape: ModelShape, lengths: Lengths) -> StageRequest:
    spec = TrainableSpec(
        name="sft",
        kind="language",
        model_folder=_NO_FOLDER,
        optimizer=config.sft.optimizer,
        training=config.sft,
        total_steps=1,
        seed=0,
        resources=config.cluster.policy,
    )
    batch = BatchSizes(
        rows=config.sft.sequences_per_minibatch,
        prompt_tokens=lengths.longest_prompt,
        response_tokens=lengths.longest_demonstration,
    )
    return _request("sft", [spec], shape, shape, {"sft": batch})


def _reward_model(config: PipelineConfig, shape: ModelShape, lengths: Lengths) -> StageRequest:
    settings, candidates = config.reward_model, config.candidates
    spec = TrainableSpec(
        name="reward_model",
        kind="value",
        model_folder=_NO_FOLDER,
        optimizer=settings.optimizer,
        training=settings,
        total_steps=1,
        seed=0,
        resources=config.cluster.reward_model,
        layers=settings.layers,
    )
    imported = config.preferences.source == "imported"
    ranked = 2 if imported else candidates.responses_per_prompt + candidates.probes_per_prompt
    batch = BatchSizes(
        rows=settings.groups_per_minibatch * ranked,
        prompt_tokens=lengths.longest_prompt,
        response_tokens=lengths.longest_demonstration
        if imported
        else candidates.max_response_tokens,
    )
    value = shape.first_layers(settings.layers)
    return _request("reward_model", [spec], shape, value, {"reward_model": batch})


def _ppo(config: PipelineConfig, shape: ModelShape, lengths: Lengths) -> StageRequest:
    specs = ppo_role_specs(config, _NO_FOLDER, _NO_FOLDER, seed=0)

    def batch(rows: int) -> BatchSizes:
        return BatchSizes(
            rows=rows,
            prompt_tokens=lengths.longest_prompt,
            response_tokens=lengths.longest_response,
        )

    rows = {
        spec.name: config.ppo.sequences_per_minibatch
        if isinstance(spec, TrainableSpec)
        else config.ppo.sequences_per_step
        for spec in specs
    }
    value = shape.first_layers(config.reward_model.layers)
    return _request("ppo", specs, shape, value, {name: batch(n) for name, n in rows.items()})


def _request(
    stage: str,
    specs: list[RoleSpec],
    language: ModelShape,
    value: ModelShape,
    batches: dict[str, BatchSizes],
) -> StageRequest:
    return StageRequest(
        stage=stage,
        specs=tuple(specs),
        shapes={spec.name: value if _is_value(spec) else language for spec in specs},
        batches=batches,
    )


def _is_value(spec: RoleSpec) -> bool:
    return isinstance(spec, TrainableSpec | FrozenSpec) and spec.kind == "value"
