"""Alternatives for a whole run: what fits PPO must let the stages before it fit as well."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from alignment.config import PipelineConfig, TrainingConfig
from alignment.planning.alternatives import Alternative, alternatives
from alignment.planning.machines import Machines
from alignment.planning.model_shapes import ModelShape
from alignment.planning.plan import StageRequest, plan_stage
from alignment.role_specs import TrainableSpec
from flows.plan_request import Lengths, stage_requests, step_work

_SHOWN = 3
_TRIED = 8


def run_alternatives(
    config: PipelineConfig, shape: ModelShape, lengths: Lengths, machines: Machines
) -> list[tuple[Alternative, dict[str, Any]]]:
    """At most three with all their settings: fastest first, last the one with the fewest GPUs."""
    ppo = stage_requests(config, shape, lengths)[-1]
    work = step_work(config, lengths)
    found = alternatives(ppo, config.cluster, work, machines, section="ppo", limit=_TRIED)
    whole = []
    for alternative in found:
        changed = with_settings(config, alternative.settings)
        requests = stage_requests(changed, shape, lengths)[:-1]
        earlier = [_settings_that_fit(changed, request, machines) for request in requests]
        if all(settings is not None for settings in earlier):
            added = {k: v for settings in earlier for k, v in (settings or {}).items()}
            whole.append((alternative, {**alternative.settings, **added}))
    return whole if len(whole) <= _SHOWN else [*whole[: _SHOWN - 1], whole[-1]]


def with_settings(config: PipelineConfig, settings: Mapping[str, Any]) -> PipelineConfig:
    """The configuration with some settings changed, `{"cluster.policy.ranks": 2}`."""
    changed: PipelineConfig = config
    for key, value in settings.items():
        changed = _changed(changed, key.split("."), value)
    return changed


def _changed(model: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    inner = _changed(getattr(model, name), rest, value) if rest else value
    return model.model_copy(update={name: inner})


def _settings_that_fit(
    config: PipelineConfig, request: StageRequest, machines: Machines
) -> dict[str, Any] | None:
    """Changes of an earlier stage's training, none if it fits as it is; None if nothing helps."""
    training: TrainingConfig = getattr(config, request.stage)
    for changes in _training_changes(training):
        changed = training.model_copy(update=changes)
        specs = tuple(
            replace(spec, training=changed) if isinstance(spec, TrainableSpec) else spec
            for spec in request.specs
        )
        plan = plan_stage(replace(request, specs=specs), config.cluster, machines)
        if plan.verdict != "too large":
            return {f"{request.stage}.{name}": value for name, value in changes.items()}
    return None


def _training_changes(training: TrainingConfig) -> Iterator[dict[str, Any]]:
    """What to change, the least disturbing first."""
    now = training.tokens_per_microbatch
    for checkpointing, stage, share in product(
        (False, True), dict.fromkeys((training.zero_stage, 2, 3)), (1, 2, 4)
    ):
        wanted = {
            "zero_stage": stage,
            "gradient_checkpointing": checkpointing or training.gradient_checkpointing,
            "tokens_per_microbatch": now // share,
        }
        yield {k: v for k, v in wanted.items() if v != getattr(training, k)}
