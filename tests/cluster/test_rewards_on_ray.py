"""An ensemble, evaluation during the run and sampling ahead, through PPO on the real engines."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ppo_runs import SEED, ppo_config
from role_factory import trainable_spec

from alignment.checkpoints import Checkpoints, RolloutJournal
from alignment.cluster import Cluster
from alignment.config import MonitorsConfig, OptimizerConfig, RewardModelConfig
from alignment.data.chat import encode_prompt
from alignment.experience import PreferenceBatch, Sampling, batch_from_rows
from alignment.metrics import check_names
from alignment.models.loading import load_tokenizer
from alignment.models.modules import saved_heads, write_normalisation
from alignment.records import Message, Prompt
from alignment.rewards.combined import CombinedReward, WeightedSource
from alignment.rewards.models import ModelSource
from alignment.rewards.texts import BatchTexts
from alignment.rewards.watch import HeldoutEvaluation, RewardWatch
from alignment.role_specs import FrozenSpec
from alignment.roles_local import start_roles as start_local_roles
from alignment.training.overlap import OneStepAhead
from alignment.training.ppo import train_ppo
from alignment.training.reward_model import train_reward_model
from alignment.training.roles import PPORoles

pytestmark = pytest.mark.engines

HEADS = 3
STEPS = 3


class ListSink:
    """Keeps every record in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        self.records.append(dict(metrics))


def comparisons() -> PreferenceBatch:
    """Six prompts with two responses each, the first of them preferred."""
    prompts = [[1, 5 + group] for group in range(6) for _ in range(2)]
    responses = [[20 + row, 30 + row][: 1 + row % 2] for row in range(12)]
    tokens = batch_from_rows(prompts, responses)
    return PreferenceBatch(
        token_ids=tokens.token_ids,
        attention_mask=tokens.attention_mask,
        response_mask=tokens.response_mask,
        group=torch.arange(6).repeat_interleave(2),
        member=torch.arange(2).repeat(6),
        preference=torch.tensor([[0.5, 1.0], [0.0, 0.5]]).repeat(6, 1),
        pair_weight=torch.tensor([[0.0, 1.0], [0.0, 0.0]]).repeat(6, 1),
    )


def trained_ensemble(cluster: Cluster, model: Path, folder: Path) -> None:
    """Three heads trained on DeepSpeed like in this process, each normalised on its own."""
    rate = OptimizerConfig(learning_rate=3e-3, epsilon=1e-2)
    config = RewardModelConfig(epochs=2, groups_per_minibatch=3, heads=HEADS, optimizer=rate)
    spec = replace(trainable_spec("ensemble", model, kind="value"), heads=HEADS, training=config)
    spec = replace(spec, optimizer=rate)
    local = start_local_roles([spec])["ensemble"]
    remote = cluster.start_roles([spec])["ensemble"]
    try:
        for role in (local, remote):
            train_reward_model(config, role, comparisons(), seed=0, metrics=ListSink())
        raw = remote.scores(comparisons())
        assert raw.shape == (12, HEADS)
        torch.testing.assert_close(raw, local.scores(comparisons()), atol=1e-4, rtol=0)
        remote.export(folder)
    finally:
        cluster.stop_roles(["ensemble"])
    assert saved_heads(folder) == HEADS
    means, scales = raw.mean(0).tolist(), (1 / raw.std(0)).tolist()
    write_normalisation(folder, mean=means, scale=scales)


def test_ppo_is_paid_by_an_ensemble_evaluated_on_the_way_and_sampled_ahead(
    cluster: Cluster, ppo_roles: PPORoles, tiny_model: Path, tmp_path: Path
) -> None:
    trained_ensemble(cluster, tiny_model, tmp_path / "ensemble")
    config = ppo_config(STEPS, overlap=True)
    tokenizer = load_tokenizer(tiny_model)
    texts = [
        Prompt(id=f"p{i}", messages=(Message(role="user", content=chr(ord("a") + i)),))
        for i in range(8)
    ]
    pairs = [(encode_prompt(tokenizer, text, max_prompt_tokens=99), text) for text in texts]
    prompts, read = [encoded for encoded, _ in pairs], BatchTexts(tokenizer, pairs)
    spec = FrozenSpec(
        name="judges", kind="value", model_folder=tmp_path / "ensemble", keeps_heads=True
    )
    judges = cluster.start_roles([spec])["judges"]
    source = ModelSource(role=judges, disagreement_penalty=0.5)
    reward = CombinedReward([WeightedSource(name="trained", source=source)], read)
    heldout = HeldoutEvaluation(
        generator=ppo_roles.generator,
        prompts=prompts[6:],
        sampling=Sampling(max_response_tokens=8),
        judges={
            "ppo/heldout_score_mean": lambda batch: source.score(batch, read.read(batch)).scores
        },
        seed=SEED,
        every_steps=2,
    )
    sink, journal = ListSink(), RolloutJournal(tmp_path / "journal")
    watch = RewardWatch(sink, reward, MonitorsConfig(), heldout=heldout, on_alarm=lambda _: None)
    ahead = OneStepAhead(ppo_roles.generator, journal, config, prompts[:6], SEED)  # type: ignore[arg-type]
    try:
        train_ppo(
            config,
            replace(ppo_roles, reward_model=reward, generator=ahead),
            prompts[:6],
            seed=SEED,
            checkpoints=Checkpoints(tmp_path / "checkpoints", stage_version=1),
            journal=journal,
            metrics=watch,
        )
        assert reward.last is not None
        rollout = journal.replay(STEPS - 1)
        assert rollout is not None
        local = start_local_roles([spec])["judges"].scores(rollout)
    finally:
        cluster.stop_roles(["judges"])
    for record in sink.records:
        check_names(record)
    assert [record["ppo/policy_version"] for record in sink.records] == [0, 0, 1]
    assert [("ppo/heldout_score_mean" in record) for record in sink.records] == [False, True, False]
    assert all(record["ppo/disagreement_mean"] > 0 for record in sink.records)
    assert all(record["ppo/first_ratio_max_deviation"] == 0.0 for record in sink.records)
    paid = local.mean(1) - 0.5 * local.std(1)
    torch.testing.assert_close(reward.last.totals, paid, atol=1e-4, rtol=0)
