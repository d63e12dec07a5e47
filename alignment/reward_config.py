"""Settings of what PPO is paid for, and of what watches whether it deserves it.

`[reward]` names the sources whose weighted sum is the score of a response; with none named it is
the run's own reward model. `[monitors]` changes nothing that is computed. A setting that would
have no effect is refused by name. Loads neither torch nor ray.
"""

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from alignment.settings import Count, NonNegative, Positive, Settings

Factor = Annotated[float, Field(gt=1)]
SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
TRAINED = "trained"
"""Name of the reward model among the sources."""


def _some_weight(weight: float) -> float:
    if weight == 0:
        raise ValueError("a source of weight 0 has no effect: remove it")
    return weight


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("accepted: http://host:port/path or https://host/path")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            "a user name, password or query may be a secret, and settings are stored with the "
            "run: put a token into an environment variable and name it in `token_variable`"
        )
    return url


Weight = Annotated[float, AfterValidator(_some_weight)]


class FunctionConfig(Settings):
    """A Python function `(prompts: list[str], responses: list[str]) -> list[float]`."""

    function: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`module:function`, importable or a file in the folder the command is run in."""


class HttpConfig(Settings):
    """A scorer behind HTTP: POST {"prompts": [..], "responses": [..]} -> {"scores": [..]}."""

    url: Annotated[str, AfterValidator(_without_secrets)]
    timeout_s: Positive = 30.0
    """Longest time to connect, and to wait for any part of the answer."""
    attempts: Count = 4
    """Requests of the same responses before the step is given up."""
    backoff_s: NonNegative = 1.0
    """Pause after the first failed attempt; it doubles after each further one."""
    responses_per_request: Count = 64
    token_variable: str | None = None
    """Environment variable whose value is sent as a bearer token."""


class FunctionRewardConfig(FunctionConfig):
    """A function as one source of the reward."""

    weight: Weight = 1.0


class HttpRewardConfig(HttpConfig):
    """A scorer behind HTTP as one source of the reward."""

    weight: Weight = 1.0


class TrainedRewardConfig(Settings):
    """A trained reward model as one source of the reward."""

    weight: Weight = 1.0
    folder: Path | None = None
    """A saved reward model from elsewhere, with its tokenizer; absent: the run's own."""
    disagreement_penalty: NonNegative = 0.0
    """An ensemble's score is the mean of its heads minus this many standard deviations."""


class RewardConfig(Settings):
    """The score of a response: weight times score, summed over the sources."""

    trained: TrainedRewardConfig | None = None
    """Absent while no other source is named: the run's own reward model."""
    function: dict[SourceName, FunctionRewardConfig] = Field(default_factory=dict)
    """`[reward.function.<name>]`."""
    http: dict[SourceName, HttpRewardConfig] = Field(default_factory=dict)
    """`[reward.http.<name>]`."""
    critic_start: Literal["reward_model", "policy"] | None = None
    """What the critic starts from. Absent: the reward model that pays, if its tokenizer is the
    policy's; else the policy."""

    @model_validator(mode="before")
    @classmethod
    def _the_reward_model_unless_others_are_named(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        others = any(settings.get(kind) for kind in ("function", "http"))
        if others or settings.get(TRAINED) is not None:
            return settings
        return {**settings, TRAINED: {}}

    @model_validator(mode="after")
    def _names_are_clear(self) -> "RewardConfig":
        twice = sorted(self.function.keys() & self.http.keys())
        if twice:
            raise ValueError(
                f"`reward.function` and `reward.http` both name {', '.join(twice)}: each source "
                "needs a name of its own, its metrics carry it"
            )
        for kind, named in (("function", self.function), ("http", self.http)):
            if TRAINED in named:
                raise ValueError(
                    f"`reward.{kind}.{TRAINED}`: `{TRAINED}` is the reward model's name"
                )
        return self

    def result_settings(self) -> dict[str, Any]:
        """What of it decides a result; nothing for the default. Files are pinned as inputs."""
        if self == RewardConfig():
            return {}
        how = {"timeout_s", "attempts", "backoff_s", "responses_per_request", "token_variable"}
        kept = self.model_dump(mode="json", exclude={TRAINED: {"folder"}})
        kept["http"] = {
            name: {key: value for key, value in scorer.items() if key not in how}
            for name, scorer in kept["http"].items()
        }
        return {"reward": kept}


class HeldoutConfig(Settings):
    """Evaluation with the reward model during the run, on prompts that are not trained on."""

    every_steps: Count = 5
    prompts: Count = 16
    """The first this many held-out prompts, one response each."""
    judge: FunctionConfig | HttpConfig | None = None
    """A second judge, that the policy is not trained on: `function`, or `url` and its settings."""


class MonitorsConfig(Settings):
    """Alarms for a policy that games its reward. They stop nothing and change no result."""

    baseline_steps: Count = 3
    """The mean over the first this many steps is what later steps are compared with."""
    length_factor: Factor = 1.5
    """Alarm where responses are longer or shorter than the baseline by this factor."""
    repetition_rise: Positive = 0.1
    """Alarm where the share of repeated token triples is above the baseline's by this much."""
    disagreement_factor: Factor = 1.5
    """Alarm where an ensemble's disagreement is above the baseline's by this factor."""
    judge_fall: Positive = 0.1
    """Alarm where the reward rises and the held-out judge falls by this much, in its units."""
    judge_evaluations: Annotated[int, Field(ge=2)] = 3
    """How many evaluations of the held-out judge a trend is drawn through."""
    texts_per_alarm: Count = 3
    """How many of the best-paid suspicious responses an alarm keeps."""
    heldout: HeldoutConfig | None = None
    """Absent: no evaluation during the run, and no alarm about a judge."""

    @model_validator(mode="after")
    def _judge_settings_have_an_effect(self) -> "MonitorsConfig":
        if self.heldout is None:
            for name in ("judge_fall", "judge_evaluations"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"`monitors.{name}` has no effect without `[monitors.heldout]`: remove "
                        "it, or add that table"
                    )
        return self
