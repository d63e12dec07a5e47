"""`[reward]` and `[monitors]`: the default stays what it was, and nonsense is refused by name."""

from pathlib import Path

import pytest

from alignment.config import PipelineConfig, RewardConfig, load_config
from alignment.errors import ConfigError


def test_the_default_is_the_runs_own_reward_model_and_decides_no_key() -> None:
    config = PipelineConfig()
    assert config.reward.trained is not None
    assert config.reward.result_settings() == {}
    assert RewardConfig.model_validate({"trained": {}}).result_settings() == {}
    assert config.ppo_asks_reward_model


def test_naming_another_source_replaces_the_reward_model_unless_it_is_named_too() -> None:
    alone = load_config([], ["reward.function.brevity.function=my_rewards:brevity"])
    assert alone.reward.trained is None
    assert not alone.ppo_asks_reward_model
    both = load_config(
        [], ["reward.function.brevity.function=my_rewards:brevity", "reward.trained.weight=2"]
    )
    assert both.reward.trained is not None
    assert both.reward.trained.weight == 2
    assert PipelineConfig.model_validate(both.model_dump(mode="json")) == both


def test_how_a_scorer_is_called_decides_no_result() -> None:
    def settings(timeout_s: float, weight: float) -> object:
        http = {"url": "http://h:1/s", "timeout_s": timeout_s, "weight": weight}
        return RewardConfig.model_validate({"http": {"tone": http}}).result_settings()

    assert settings(1.0, 0.5) == settings(9.0, 0.5) != settings(1.0, 0.6)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward.function.b.functoin=m:f"], r"functoin` is not a setting.*function"),
        (["reward.function.b.function=m.f"], r"reward\.function\.b\.function"),
        (["reward.function.B.function=m:f"], r"reward\.function\.B"),
        (["reward.function.trained.function=m:f"], r"`trained` is the reward model's name"),
        (
            ["reward.function.b.function=m:f", "reward.http.b.url=http://h/s"],
            r"both name b",
        ),
        (["reward.trained.weight=0"], r"no effect"),
        (["reward.trained.disagreement_penalty=1"], r"set `reward_model\.heads` to 2 or more"),
        (["reward.critic_start=policy", "ppo.method=rloo", "ppo.responses_per_prompt=2"], "rloo"),
        (["reward.http.b.url=http://u:p@h/s"], r"may be a secret"),
        (["monitors.judge_fall=0.5"], r"monitors\.judge_fall` has no effect"),
        (["monitors.length_factor=1"], r"greater than 1"),
        (["run.wandb_mode=online"], r'needs "wandb" in `run\.loggers`'),
        (["run.mlflow_tracking_uri=http://h"], r'needs "mlflow" in `run\.loggers`'),
        (
            ['run.loggers=["mlflow"]', "run.mlflow_tracking_uri=http://u:p@h"],
            "MLFLOW_TRACKING_PASSWORD",
        ),
        (['run.loggers=["tensorbord"]'], "tensorboard"),
    ],
)
def test_settings_that_contradict_or_do_nothing_are_refused_by_name(
    overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config([], overrides)


def test_a_judge_is_a_function_or_an_address(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        '[monitors.heldout]\nevery_steps = 2\njudge = { url = "http://127.0.0.1:9/s" }\n'
        '[reward.function.brevity]\nfunction = "m:f"\nweight = 0.5\n'
    )
    config = load_config([path])
    assert config.monitors.heldout is not None
    assert config.monitors.heldout.judge is not None
    assert config.ppo_asks_reward_model  # it judges, though it does not pay
