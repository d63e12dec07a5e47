"""In-process roles around the tiny model, for tests of the loops."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from alignment.config import OptimizerConfig, PPOConfig, TrainingConfig
from alignment.experience import EncodedPrompt, TokenBatch
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec, TrainableSpec
from alignment.roles_local import start_roles
from alignment.training.roles import PPORoles

LETTER_A = ord("a")


class CountingScorer:
    """Scores a response by the share of tokens that are in the lower half of the vocabulary."""

    def scores(self, batch: TokenBatch) -> Tensor:
        wanted = (batch.token_ids < 130) & batch.response_mask
        return wanted.sum(1) / batch.response_mask.sum(1)


class ListSink:
    """Keeps every record in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        self.records.append({"step": step, **metrics})


def toy_config(**overrides: object) -> PPOConfig:
    settings: dict[str, object] = {
        "steps": 3,
        "prompts_per_step": 8,
        "sequences_per_minibatch": 4,
        "max_response_tokens": 6,
        "kl_coefficient": 0.0,
        "tokens_per_microbatch": 128,
        "optimizer": OptimizerConfig(learning_rate=3e-3, final_learning_rate_fraction=1.0),
        "critic_optimizer": OptimizerConfig(learning_rate=3e-3, final_learning_rate_fraction=1.0),
    }
    return PPOConfig.model_validate(settings | overrides)


def toy_prompts(count: int = 8) -> list[EncodedPrompt]:
    return [EncodedPrompt(id=f"p{i}", token_ids=(1, 5 + i, 9, 40 + i)) for i in range(count)]


def toy_roles(model_folder: Path, config: PPOConfig) -> PPORoles:
    torch.manual_seed(0)
    training = TrainingConfig(tokens_per_microbatch=config.tokens_per_microbatch)
    steps = config.steps * config.epochs * config.sequences_per_step
    specs: list[RoleSpec] = [
        TrainableSpec(
            name="policy",
            kind="language",
            model_folder=model_folder,
            optimizer=config.optimizer,
            training=training,
            total_steps=steps,
            seed=0,
            entropy_gradient=config.entropy_coefficient > 0,
            ema_decay=config.ema_decay,
        ),
        FrozenSpec(name="reference", kind="language", model_folder=model_folder),
        GeneratorSpec(name="generator", model_folder=model_folder, max_sequence_tokens=64),
    ]
    if config.critic_optimizer is not None:
        critic = TrainableSpec(
            name="critic",
            kind="value",
            model_folder=model_folder,
            optimizer=config.critic_optimizer,
            training=training,
            total_steps=steps,
            seed=0,
            layers=1,
        )
        specs.append(critic)
    roles = start_roles(specs)
    return PPORoles(
        policy=roles["policy"],
        critic=roles.get("critic"),
        reference=roles["reference"],
        reward_model=CountingScorer(),
        generator=roles["generator"],
    )
