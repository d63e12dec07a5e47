"""Methods and named options of PPO: refused where they do nothing, and seen to do what they say."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from toy_roles import ListSink, toy_config, toy_prompts, toy_roles

from alignment.checkpoints import Checkpoints, LoopState, RolloutJournal
from alignment.config import METHODS, OptimizerConfig, PPOConfig
from alignment.errors import ConfigError, NumericsError
from alignment.experience import ScoredRollout, TokenBatch, batch_from_rows
from alignment.metrics import check_names
from alignment.objectives.masking import masked_variance
from alignment.objectives.running_moments import RunningMoments
from alignment.training.ppo import train_ppo
from alignment.training.ppo_experience import build_experience, next_coefficient
from alignment.training.ppo_objective import critic_denominator, critic_loss, policy_loss
from alignment.training.ppo_report import PhaseClock
from alignment.training.ppo_scoring import check_scored
from alignment.training.ppo_update import optimise
from alignment.training.pretraining_mix import PretrainingMix
from alignment.training.roles import LogprobOutputs, LossSums, PPORoles, ValueOutputs

GROUPS = {"responses_per_prompt": 2}
NO_CRITIC = {"critic_optimizer": None}
AFTER_END = {"score_position": "after_end"}


def scored_rollout() -> ScoredRollout:
    """Two prompts with two responses of 3, 2, 3 and 1 tokens; the last two were cut off."""
    generator = torch.Generator().manual_seed(3)
    batch = batch_from_rows([[1, 2]] * 4, [[3, 4, 5], [6, 7], [8, 9, 3], [4]])
    mask = batch.response_mask

    def grid(spread: float) -> torch.Tensor:
        return torch.where(mask, spread * torch.randn(mask.shape, generator=generator), 0.0)

    old = grid(0.5) - 2.0 * mask
    return ScoredRollout(
        token_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        response_mask=mask,
        sampling_logprobs=old + grid(0.3),
        finished=torch.tensor([True, True, False, False]),
        prompt_index=torch.tensor([0, 0, 1, 1]),
        policy_version=torch.zeros(4, dtype=torch.int64),
        scores=torch.tensor([1.0, -0.5, 0.25, 2.0]),
        old_logprobs=old,
        reference_logprobs=old + grid(0.2),
        old_values=grid(1.0),
        end_values=torch.tensor([0.5, 0.25, -0.5, 0.0]),
    )


def experience_under(**settings: object):
    config = toy_config(kl_coefficient=0.1, whiten_advantages=False, **settings)
    scored = scored_rollout()
    moments = RunningMoments(count=10, mean=5.0, squared_deviations=9 * 4.0)
    return build_experience(scored, config, kl_coefficient=0.1, moments=moments)


def last_returns(**settings: object) -> list[float]:
    """Return at each row's last token, lambda and gamma 1: what the response was paid there."""
    experience = experience_under(gae_lambda=1.0, **settings)
    last = experience.attention_mask.sum(1) - 1
    kl = (scored_rollout().old_logprobs - scored_rollout().reference_logprobs) * 0.1
    at_last = experience.returns.gather(1, last[:, None]) + kl.gather(1, last[:, None])
    return at_last.flatten().tolist()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "rloo", **NO_CRITIC}, r"rloo.*`ppo\.responses_per_prompt` of 2 or more"),
        ({"method": "grpo", **GROUPS}, r"`ppo\.critic_optimizer`.*no effect.*has no critic"),
        ({"method": "rloo", **NO_CRITIC, **GROUPS, "value_clip": 0.2}, r"`ppo\.value_clip`"),
        ({"method": "rloo", **NO_CRITIC, **GROUPS, "gae_lambda": 0.9}, r"`ppo\.gae_lambda`"),
        ({"method": "rloo", **NO_CRITIC, **GROUPS, "discount": 0.9}, r"`ppo\.discount`"),
        ({"method": "reinforce++", **NO_CRITIC, "critic_warmup_steps": 1}, "critic_warmup_steps"),
        ({**NO_CRITIC}, r'`ppo\.method = "ppo"` needs `ppo\.critic_optimizer`'),
        ({"kl_placement": "loss", "kl_coefficient": 0.1}, "k1.*no gradient in expectation"),
        ({"adaptive_kl": {}}, r"`ppo\.adaptive_kl` scales `ppo\.kl_coefficient`, which is 0"),
        ({"whiten_advantages": False, "whitening_variance": "biased"}, "whitening_variance"),
        ({"old_logprobs": "sampler", "sampler_correction": {}}, "sampler_correction"),
        (
            {"old_logprobs": "sampler", "sampler_gap_limit_nats": 1e-3, "lora": {"dropout": 0.1}},
            r"`ppo\.sampler_gap_limit_nats` would be held against dropout",
        ),
        ({"sampler_correction": {"low": 0.5}}, r'no effect with kind "truncate"'),
        ({"sampler_correction": {"kind": "mask"}}, "low < 1 < high"),
        ({"sequences_per_minibatch": 8, "update_kl_limit_nats": 0.1}, "update_kl_limit_nats"),
        ({"critic_warmup_steps": 3}, r"leaves none of `ppo\.steps` 3"),
        ({"whiten_rewards": True, **AFTER_END}, r"`ppo\.whiten_rewards` scales the rewards of tok"),
        ({"method": "rloo", **NO_CRITIC, **GROUPS, **AFTER_END}, r"`ppo\.score_position`"),
        ({"dual_clip": 1.0}, "greater than 1"),
        ({"ema_decay": 0.9, "lora": {}}, r"`ppo\.ema_decay` and `ppo\.lora`"),
        ({"ema_decay": 0.9, "zero_stage": 3}, r"`ppo\.zero_stage = 3` does not have"),
        ({"ema_decay": 1.0}, "less than 1"),
    ],
)
def test_settings_that_contradict_or_do_nothing_are_refused_by_name(
    settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        toy_config(**settings)


@pytest.mark.parametrize("method", METHODS)
def test_a_stored_configuration_is_read_back_as_it_was(method: str) -> None:
    config = PPOConfig.model_validate({"method": method, **GROUPS})
    assert PPOConfig.model_validate_json(config.model_dump_json()) == config
    assert (config.critic_optimizer is not None) == (method == "ppo")


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ppo"])
def test_each_method_trains_without_a_critic(method: str, tiny_model: Path, tmp_path: Path) -> None:
    settings = {"method": method, "steps": 2, **GROUPS, **NO_CRITIC, "kl_coefficient": 0.01}
    config = toy_config(prompts_per_step=4, checkpoint_every_steps=1, **settings)
    roles, sink = toy_roles(tiny_model, config), ListSink()
    assert roles.critic is None
    before = flat(roles)
    keep = Checkpoints(tmp_path / "checkpoints", stage_version=1)
    journal = RolloutJournal(tmp_path / "journal")
    train_ppo(config, roles, toy_prompts(), seed=0, checkpoints=keep, journal=journal, metrics=sink)
    assert (flat(roles) - before).abs().max() > 1e-4
    assert not (tmp_path / "checkpoints" / "step-000002" / "critic").exists()
    assert not {name for name in sink.records[-1] if "critic" in name or "value" in name}
    check_names(set(sink.records[-1]) - {"step"})
    restored = keep.restore(toy_roles(tiny_model, config))
    assert restored is not None
    assert restored.score_moments.count == 16


def flat(roles: PPORoles) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in roles.policy.weights().values()])


def test_missing_eos_subtracts_or_replaces() -> None:
    plain = last_returns()
    assert last_returns(missing_eos_penalty=0.75) == pytest.approx(
        [plain[0], plain[1], plain[2] - 0.75, plain[3] - 0.75]
    )
    replaced = last_returns(missing_eos_penalty=0.75, missing_eos_rule="replace")
    assert replaced == pytest.approx([plain[0], plain[1], -0.75, -0.75])


def test_score_may_be_paid_one_step_after_the_end() -> None:
    """By hand: after the end the value is end_values and the reward the score."""
    settings = {"discount": 0.9, "gae_lambda": 0.5}
    plain, after = experience_under(**settings), experience_under(**settings, **AFTER_END)
    scored = scored_rollout()
    assert torch.equal(after.end_returns, scored.scores)
    last = scored.attention_mask.sum(1, keepdim=True) - 1
    expected = 0.9 * scored.end_values + 0.45 * (scored.scores - scored.end_values) - scored.scores
    moved = (after.advantages - plain.advantages).gather(1, last).squeeze(1)
    torch.testing.assert_close(moved, expected)
    whole = {"gae_lambda": 1.0}  # without a discount the policy is paid the same
    plain, after = experience_under(**whole), experience_under(**whole, **AFTER_END)
    torch.testing.assert_close(after.advantages, plain.advantages)


def test_critic_learns_the_value_after_the_end_where_the_score_is_paid() -> None:
    config = toy_config(**AFTER_END)
    experience = experience_under(**AFTER_END)
    zero = torch.zeros(experience.response_mask.shape)
    outputs = ValueOutputs(new_values=zero, scores=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    with_end = critic_loss(outputs, experience, clip=None, has_end=True).loss
    without = critic_loss(outputs, experience, clip=None).loss
    missed = outputs.scores - experience.end_returns
    torch.testing.assert_close(with_end - without, 0.5 * missed.square().sum())
    assert critic_denominator(experience, config) == 9 + 4


def test_scores_are_normalised_by_all_scores_so_far_before_the_clip() -> None:
    expected = [(score - 5.0) / 2.0 for score in (1.0, -0.5, 0.25, 2.0)]
    assert last_returns(normalise_scores=True) == pytest.approx(expected)
    clipped = last_returns(normalise_scores=True, reward_clip=1.6)
    assert clipped == pytest.approx([max(score, -1.6) for score in expected])


def test_whitening_takes_either_variance_and_keeps_the_mean_of_rewards() -> None:
    mask = scored_rollout().response_mask
    for variance, unbiased in (("unbiased", True), ("biased", False)):
        config = toy_config(kl_coefficient=0.1, whitening_variance=variance)
        experience = build_experience(
            scored_rollout(), config, kl_coefficient=0.1, moments=RunningMoments()
        )
        spread = masked_variance(experience.advantages, mask, unbiased=unbiased)
        assert float(spread) == pytest.approx(1.0, abs=1e-5)
    plain = experience_under(gae_lambda=0.0, discount=0.0).returns
    white = experience_under(gae_lambda=0.0, discount=0.0, whiten_rewards=True).returns
    assert float(masked_variance(white, mask)) == pytest.approx(1.0, abs=1e-5)
    assert float(white[mask].mean()) == pytest.approx(float(plain[mask].mean()), abs=1e-6)


def test_sampler_correction_scales_the_advantages_and_not_the_returns() -> None:
    plain = experience_under()
    corrected = experience_under(sampler_correction={"high": 1.1})
    weight = (scored_rollout().old_logprobs - scored_rollout().sampling_logprobs).exp()
    torch.testing.assert_close(corrected.advantages, plain.advantages * weight.clamp(max=1.1))
    assert torch.equal(corrected.returns, plain.returns)
    masked = experience_under(sampler_correction={"kind": "mask", "low": 0.9, "high": 1.1})
    is_kept = (weight >= 0.9) & (weight <= 1.1)
    torch.testing.assert_close(masked.advantages, plain.advantages * weight * is_kept)
    assert 0 < int((is_kept & scored_rollout().response_mask).sum()) < 9


def test_a_gap_between_sampler_and_trainer_raises_the_alarm() -> None:
    scored = scored_rollout()
    mean = float(
        (scored.sampling_logprobs - scored.old_logprobs)[scored.response_mask].abs().mean()
    )
    check_scored(scored, toy_config(sampler_gap_limit_nats=1.01 * mean), step=4)
    with pytest.raises(NumericsError, match=r"at step 4, over `ppo\.sampler_gap_limit_nats`"):
        check_scored(scored, toy_config(sampler_gap_limit_nats=0.99 * mean), step=4)


def test_adaptive_kl_measures_a_sequence_or_a_token() -> None:
    scored = scored_rollout()
    settings = {"target_nats": 1.0, "horizon_sequences": 100.0}
    for unit, kl in (("sequence", 1.1), ("token", 1.1 * 4 / 9)):
        config = toy_config(kl_coefficient=0.1, adaptive_kl=settings | {"unit": unit})
        error = min(max(kl - 1, -0.2), 0.2)
        expected = 0.1 * (1 + error * 8 / 100)
        assert next_coefficient(config, 0.1, scored, 1.1) == pytest.approx(expected)


def test_loss_holds_dual_clip_kl_and_entropy() -> None:
    experience = experience_under()
    mask = experience.response_mask
    new = experience.old_logprobs + 3.0 * mask
    outputs = LogprobOutputs(new_logprobs=new, entropy=0.7 * mask)
    objective = partial(policy_loss, clip_low=0.2, clip_high=0.2, aggregation="token-mean")
    plain = objective(outputs, experience).loss
    bad = torch.where(mask, experience.advantages, 0.0).clamp(max=0.0)
    ratio = torch.tensor(3.0).exp()
    dual = objective(outputs, experience, dual_clip=2.5).loss
    assert float(dual) == pytest.approx(float(plain + (ratio - 2.5) * bad.sum()), rel=1e-5)
    difference = (new - experience.reference_logprobs)[mask]
    kl = objective(outputs, experience, kl_coefficient=0.3, kl_estimator="k2").loss
    assert float(kl - plain) == pytest.approx(float(0.15 * difference.square().sum()), rel=1e-4)
    entropy = objective(outputs, experience, entropy_coefficient=0.5).loss
    assert float(plain - entropy) == pytest.approx(0.5 * 0.7 * 9, rel=1e-4)


@pytest.fixture
def prepared(tiny_model: Path):
    """Roles and an experience of one real rollout under the settings given."""

    def prepare(**settings: object):
        config = toy_config(epochs=2, **settings)
        roles = toy_roles(tiny_model, config)
        rollout = batch_from_rows([[1, 2]] * 8, [[5 + i, 9, 30 + i] for i in range(8)])
        mask = rollout.response_mask
        old = roles.policy.logprobs(rollout)
        base = experience_under()
        advantages = torch.where(mask, torch.linspace(-1, 1, 8)[:, None], 0.0)
        experience = replace(
            base,
            token_ids=rollout.token_ids,
            attention_mask=rollout.attention_mask,
            response_mask=mask,
            old_logprobs=old,
            reference_logprobs=old,
            old_values=torch.zeros(mask.shape),
            advantages=advantages,
            returns=advantages,
            end_values=torch.zeros(8),
            end_returns=torch.zeros(8),
        )
        return config, roles, experience

    return prepare


def test_update_kl_limit_ends_the_steps_updates(prepared) -> None:
    counts = []
    for limit in (1e3, 1e-7):
        config, roles, experience = prepared(update_kl_limit_nats=limit)
        state = LoopState(0, 0.0)
        log = optimise(config, roles, experience, state, None, seed=0, clock=PhaseClock())
        counts.append(log.metrics()["ppo/updates"])
    assert counts == [4.0, 2.0]  # the first minibatch sees KL 0, the second what the first did


def test_the_policy_rests_while_the_critic_warms_up(prepared) -> None:
    config, roles, experience = prepared(critic_warmup_steps=1)
    before, values = flat(roles), roles.critic.values(experience)
    for step, rests in ((0, True), (1, False)):
        state = LoopState(step, 0.0)
        log = optimise(config, roles, experience, state, None, seed=0, clock=PhaseClock())
        assert torch.equal(flat(roles), before) == rests
        assert ("ppo/policy_loss" in log.metrics()) != rests
    assert not torch.equal(roles.critic.values(experience), values)


def test_entropy_bonus_spreads_the_policy(prepared) -> None:
    entropies = []
    for coefficient in (0.0, 1.0):
        config, roles, experience = prepared(entropy_coefficient=coefficient)
        experience = replace(experience, advantages=torch.zeros_like(experience.advantages))
        optimise(config, roles, experience, LoopState(0, 0.0), None, seed=0, clock=PhaseClock())
        tokens = float(experience.response_mask.sum())
        sums = roles.policy.forward_backward(experience, entropy_of, denominator=tokens)
        entropies.append(sums["entropy"] / tokens)
    assert entropies[1] > entropies[0] + 0.01


def entropy_of(outputs: LogprobOutputs, batch: TokenBatch) -> LossSums:
    entropy = outputs.entropy.detach().sum()
    return LossSums(loss=outputs.new_logprobs.sum(), metrics={"entropy": entropy})


def test_pretraining_mix_adds_its_gradient_to_the_update(prepared) -> None:
    demonstrations = batch_from_rows([[1, 3]] * 3, [[7, 8], [9, 10], [11]])
    rate = OptimizerConfig(learning_rate=3e-3, final_learning_rate_fraction=1.0)
    losses = []
    for settings in ({}, {"pretraining_mix": {"coefficient": 5.0, "sequences_per_minibatch": 2}}):
        config, roles, experience = prepared(optimizer=rate, **settings)
        given = demonstrations if settings else None
        mix = PretrainingMix.from_settings(config, given, seed=1)
        state = LoopState(0, 0.0)
        log = optimise(config, roles, experience, state, mix, seed=0, clock=PhaseClock())
        assert ("ppo/pretraining_loss" in log.metrics()) == bool(settings)
        logprobs = roles.policy.logprobs(demonstrations)
        losses.append(-float(logprobs.sum() / demonstrations.response_mask.sum()))
    assert losses[1] < losses[0] - 0.05


def test_pretraining_mix_visits_all_sequences_and_needs_some() -> None:
    demonstrations = batch_from_rows([[1, 3]] * 3, [[7, 8], [9, 10], [11]])
    config = toy_config(pretraining_mix={"sequences_per_minibatch": 2})
    mix = PretrainingMix.from_settings(config, demonstrations, seed=1)
    assert mix is not None
    seen = [row for update in range(3) for row in mix.rows(update)]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]
    with pytest.raises(ConfigError, match="none were given"):
        PretrainingMix.from_settings(config, None, seed=1)
    with pytest.raises(ConfigError, match="is not set"):
        PretrainingMix.from_settings(toy_config(), demonstrations, seed=1)
