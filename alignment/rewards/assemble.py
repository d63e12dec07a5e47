"""From settings to the reward that PPO sees, and to where its critic starts."""

import json
from dataclasses import dataclass
from pathlib import Path

from alignment.config import PipelineConfig
from alignment.errors import ConfigError
from alignment.models.loading import load_tokenizer
from alignment.models.modules import saved_heads
from alignment.reward_config import (
    TRAINED,
    FunctionConfig,
    FunctionRewardConfig,
    HttpConfig,
    HttpRewardConfig,
)
from alignment.rewards.combined import TextScorer, TextSource, WeightedSource
from alignment.rewards.function import FunctionReward
from alignment.rewards.http import HttpReward
from alignment.rewards.models import ModelSource, Retokeniser, same_tokens
from alignment.training.roles import ScoreModel


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPlan:
    """What follows from settings and model folders, before any engine starts.

    model_folder: the reward model, if one is asked. critic_folder: what the critic's trunk comes
    from. is_ensemble: the role keeps its heads. retokeniser: None where the
    reward model reads the policy's tokens.
    """

    model_folder: Path
    critic_folder: Path
    is_ensemble: bool = False
    retokeniser: Retokeniser | None = None


def plan_reward(config: PipelineConfig, *, policy_folder: Path, own_folder: Path) -> RewardPlan:
    """Where reward model and critic come from.

    Args:
        config: the run's settings.
        policy_folder: the SFT model, with its tokenizer.
        own_folder: the reward model that this run has trained.

    Raises:
        ConfigError: a penalty for disagreement without an ensemble, or a critic that would have to
            start from a model with another tokenizer.
    """
    reward = config.reward
    trained = reward.trained
    folder = (trained.folder if trained else None) or own_folder
    retokeniser = None
    if folder != own_folder:  # the run's own was trained on the policy's tokens
        policy_tokenizer, tokenizer = load_tokenizer(policy_folder), load_tokenizer(folder)
        if not same_tokens(policy_tokenizer, tokenizer):
            retokeniser = Retokeniser(tokenizer, _context_of(folder))
    if not saved_heads(folder):
        raise ConfigError(
            f"`reward.trained.folder` {folder} holds no reward model: it has no value head; name a "
            "folder that a reward_model stage has written"
        )
    is_ensemble = saved_heads(folder) > 1
    if trained is not None and trained.disagreement_penalty and not is_ensemble:
        raise ConfigError(
            f"`reward.trained.disagreement_penalty` is {trained.disagreement_penalty}, but the "
            f"reward model in {folder} has one head, and one head cannot disagree: remove it, or "
            "take an ensemble"
        )
    start = reward.critic_start or (
        "reward_model" if trained is not None and retokeniser is None else "policy"
    )
    if start == "reward_model" and retokeniser is not None:
        raise ConfigError(
            f'`reward.critic_start` is "reward_model", but the reward model in {folder} has '
            f"another tokenizer than the policy in {policy_folder}, whose tokens the critic reads: "
            'set it to "policy", or remove it'
        )
    return RewardPlan(
        model_folder=folder,
        critic_folder=folder if start == "reward_model" else policy_folder,
        is_ensemble=is_ensemble,
        retokeniser=retokeniser,
    )


def reward_sources(
    config: PipelineConfig, plan: RewardPlan, role: ScoreModel | None
) -> list[WeightedSource]:
    """The sources in the order of the settings: trained, functions, scorers behind HTTP."""
    reward, sources = config.reward, []
    if reward.trained is not None:
        assert role is not None, "the plan asked for the reward model"
        model = ModelSource(
            role=role,
            disagreement_penalty=reward.trained.disagreement_penalty,
            retokeniser=plan.retokeniser,
        )
        sources.append(WeightedSource(name=TRAINED, source=model, weight=reward.trained.weight))
    scorers: dict[str, FunctionRewardConfig | HttpRewardConfig] = {**reward.function, **reward.http}
    for name, setting in scorers.items():
        source = TextSource(text_scorer(setting))
        sources.append(WeightedSource(name=name, source=source, weight=setting.weight))
    return sources


def text_scorer(setting: FunctionConfig | HttpConfig) -> TextScorer:
    """The scorer behind a table of settings; a function is imported here."""
    if isinstance(setting, FunctionConfig):
        return FunctionReward(setting.function)
    return HttpReward(setting)


def _context_of(folder: Path) -> int | None:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limit = settings.get("max_position_embeddings")
    return int(limit) if limit else None
