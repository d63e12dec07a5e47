"""Every setting of a run, as frozen pydantic models: one a stage, all of them in PipelineConfig.

The same classes are the TOML schema, the flow's parameter (so Prefect's form), the command
line (`--set ppo.learning_rate=1e-6`) and the record stored with the run. Unknown keys are
refused, and so is a setting that would have no effect. Loads neither torch nor ray.
"""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from alignment.errors import ConfigError
from alignment.ppo_config import METHODS as METHODS
from alignment.ppo_config import AdaptiveKLConfig as AdaptiveKLConfig
from alignment.ppo_config import PPOConfig as PPOConfig
from alignment.ppo_config import PretrainingMixConfig as PretrainingMixConfig
from alignment.ppo_config import SamplerCorrectionConfig as SamplerCorrectionConfig
from alignment.reward_config import FunctionConfig as FunctionConfig
from alignment.reward_config import HeldoutConfig as HeldoutConfig
from alignment.reward_config import HttpConfig as HttpConfig
from alignment.reward_config import MonitorsConfig as MonitorsConfig
from alignment.reward_config import RewardConfig as RewardConfig
from alignment.settings import Count as Count
from alignment.settings import Fraction as Fraction
from alignment.settings import LoRAConfig as LoRAConfig
from alignment.settings import NonNegative as NonNegative
from alignment.settings import OptimizerConfig as OptimizerConfig
from alignment.settings import Positive as Positive
from alignment.settings import Precision as Precision
from alignment.settings import Settings as Settings
from alignment.settings import TrainingConfig as TrainingConfig

_JOB_SERVER = re.compile(r"https?://[^/@\s?#]+(:\d+)?/?")
_S3_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()-]+)*/?")


class RunConfig(Settings):
    """What a run is called, where it keeps things, and the seed everything derives from."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "quickstart"
    seed: Annotated[int, Field(ge=0)] = 0
    store: Path = Path("store")
    """Folder of finished stages, shared by all runs."""
    shared_store: str | None = None
    """`s3://bucket/prefix`: finished stages are published there, and fetched into `store`."""
    runs: Path = Path("runs")
    """Folder with one sub-folder a run: metrics, summary and report."""
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Where each step's metrics go besides the run's own JSON lines; their clients are extra."""
    mlflow_tracking_uri: str | None = None
    """Absent: `mlflow.db` in the folder of runs."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """`offline` keeps everything in the run's folder; `online` sends it to Weights & Biases."""

    @model_validator(mode="after")
    def _logger_settings_have_an_effect(self) -> "RunConfig":
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"`run.loggers` names one twice: {', '.join(self.loggers)}")
        if self.mlflow_tracking_uri is not None and "mlflow" not in self.loggers:
            raise ValueError('`run.mlflow_tracking_uri` needs "mlflow" in `run.loggers`')
        if "@" in (self.mlflow_tracking_uri or ""):
            raise ValueError(
                "`run.mlflow_tracking_uri` holds a user name or password, and settings are stored "
                "with the run: use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if self.wandb_mode == "online" and "wandb" not in self.loggers:
            raise ValueError('`run.wandb_mode = "online"` needs "wandb" in `run.loggers`')
        return self

    @model_validator(mode="after")
    def _shared_store_is_a_place_on_s3(self) -> "RunConfig":
        if "@" in (self.shared_store or ""):
            raise ValueError(
                "`run.shared_store` holds a user name or password, and settings are stored with "
                "the run: use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        if self.shared_store is not None and not _S3_URL.fullmatch(self.shared_store):
            raise ValueError(
                f"`run.shared_store` is {self.shared_store!r}; accepted: s3://bucket/prefix. A "
                "folder that machines share is `run.store` itself"
            )
        return self


class ModelConfig(Settings):
    """The base model."""

    source: str = "smollm2-135m-instruct"
    """`smollm2-135m-instruct` (embedded), `tiny` (random, for tests), a folder or a hub id."""
    chat_template: Literal["model", "chatml"] = "chatml"
    """`model`: the one shipped with the tokenizer; `chatml`: ChatML without a system message."""
    max_prompt_tokens: Count = 128
    """Longer prompts are refused by name when the data stage reads them."""


class DataConfig(Settings):
    """Where prompts and demonstrations come from."""

    source: str = "starter"
    """`starter` (embedded), `hh-rlhf` (pairs with whole transcripts) or `parquet`."""
    path: Path | None = None
    """File of `hh-rlhf` pairs, or folder with demonstrations/prompts/preferences.parquet."""
    demonstrations: Count | None = None
    """Use at most this many demonstrations (first ones after a seeded shuffle); all if absent."""
    train_prompts: Count | None = None
    """Use at most this many prompts for candidates and PPO; all if absent."""
    heldout_prompts: Count | None = None
    """Use at most this many held-out prompts; all if absent."""
    preference_groups: Count | None = None
    """Train the reward model on at most this many imported comparison groups; all if absent."""
    max_response_tokens: Count = 256
    """Demonstrations and imported responses longer than this are left out, and counted."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> "DataConfig":
        if self.source == "starter" and self.path is not None:
            raise ValueError('`data.path` has no effect with `data.source = "starter"`: remove it')
        if self.source != "starter" and self.path is None:
            raise ValueError(f'`data.source = "{self.source}"` needs `data.path`')
        if self.source not in ("starter", "hh-rlhf", "parquet"):
            raise ValueError(
                f'`data.source` is "{self.source}"; accepted: starter, hh-rlhf, parquet'
            )
        return self


class SFTConfig(TrainingConfig):
    """Supervised fine-tuning on demonstrations, loss on the response only."""

    epochs: Count = 2
    sequences_per_minibatch: Count = 8
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=4e-5)


class CandidatesConfig(Settings):
    """Responses that will be ranked."""

    responses_per_prompt: Annotated[int, Field(ge=2, le=9)] = 4
    probes_per_prompt: Annotated[int, Field(ge=0, le=2)] = 2
    """Deliberately poor responses added for the ranking: one cut off, one to another prompt."""
    max_response_tokens: Count = 48
    temperature: Positive = 1.0
    prompts: Count | None = None
    """Rank only the first this many prompts; all train prompts if absent."""

    @model_validator(mode="after")
    def _at_most_nine(self) -> "CandidatesConfig":
        total = self.responses_per_prompt + self.probes_per_prompt
        if total > 9:
            raise ValueError(
                f"`candidates.responses_per_prompt` {self.responses_per_prompt} + "
                f"`candidates.probes_per_prompt` {self.probes_per_prompt} = {total}; "
                "a person ranks at most 9 responses at once"
            )
        return self


class PanelConfig(Settings):
    """The simulated panel: labelers that rank by a hidden rubric with noise. Not people."""

    labelers: Count = 3
    noise_sd: NonNegative = 0.12
    """Standard deviation of each labeler's error on the gold score (range 0 to 1)."""
    tie_threshold: NonNegative = 0.02
    """Noisy scores closer than this are ranked as a tie."""
    spammers: Annotated[int, Field(ge=0)] = 1
    """Further labelers who rank at random."""


class PreferencesConfig(Settings):
    """Who ranks."""

    source: Literal["panel", "people", "imported"] = "panel"
    """`panel`: simulated; `people`: in the browser, the run waits; `imported`: in the data."""
    rankings_per_prompt: Count = 3
    """Rankings wanted of each prompt, from different labelers."""
    panel: PanelConfig | None = PanelConfig()
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 7861
    """Where the ranking page is served; 0 takes a free port."""
    deadline_days: Positive = 30.0
    """How long a suspended run waits for people; it fails then, and rankings stay."""

    @model_validator(mode="after")
    def _panel_only_if_used(self) -> "PreferencesConfig":
        if self.source == "panel" and self.panel is None:
            raise ValueError('`preferences.source = "panel"` needs `[preferences.panel]`')
        if self.panel and self.source == "panel":
            available = self.panel.labelers + self.panel.spammers
            if available < self.rankings_per_prompt:
                raise ValueError(
                    f"`preferences.rankings_per_prompt` is {self.rankings_per_prompt}, but the "
                    f"panel has {available} labelers and each ranks a prompt once"
                )
        return self


class RewardModelConfig(TrainingConfig):
    """Bradley-Terry reward model on comparisons."""

    epochs: Count = 2
    groups_per_minibatch: Count = 8
    """Prompts a step; all comparisons among a prompt's responses stay together."""
    layers: Count | None = None
    """Use only the first this many transformer layers; all if absent."""
    heads: Count = 1
    """2 or more: an ensemble on one trunk, each head trained on its own draw of the prompts."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, warmup_steps=3)
    folds: Annotated[int, Field(ge=2)] | None = None
    """Also train this many models on complements for cross-validated accuracy; none if absent."""
    minimum_accuracy: Fraction = 0.0
    """Gate: the run stops before PPO if training accuracy is below this."""


class RoundsConfig(Settings):
    """How often candidates, rankings, reward model and PPO follow each other in one run."""

    count: Annotated[int, Field(ge=1, le=99)] = 1
    """Each further round starts from the policy and the reward model of the round before, ranks
    responses of that policy and of the one it came from, and takes prompts not used so far: every
    round gets an equal part of the train prompts."""


class EvaluationConfig(Settings):
    """Held-out comparison of the trained policy with its SFT start."""

    samples_per_prompt: Count = 2
    max_response_tokens: Count = 48
    temperature: Positive = 1.0
    bootstrap_resamples: Count = 2000


class RoleResources(Settings):
    """How many processes a role gets, and what each of them gets."""

    ranks: Count = 1
    gpus_per_rank: Annotated[int, Field(ge=0)] = 0
    cpus_per_rank: Positive = 0.2
    """Ray's bookkeeping of CPU shares; it does not limit threads."""


class ClusterConfig(Settings):
    """Where the roles run. None of it changes what is computed."""

    backend: Literal["ray", "local"] = "ray"
    """`local` keeps every role in this process, for debugging; no Ray, DeepSpeed or vLLM."""
    address: str | None = None
    """An existing Ray cluster; absent: a private one for this run."""
    job_server: str | None = None
    """`http://host:8265`, the dashboard of an existing Ray cluster: stages with engines are done
    there, each as a Ray job; absent: in the run's own process."""
    store_is_shared: bool = False
    """Every machine of the cluster sees `run.store` and `run.runs` at the same path. Without it,
    models and checkpoints travel through `run.shared_store`; without both, a cluster of several
    machines is refused."""
    threads: Count = 2
    """Compute threads of each role."""
    side_by_side: bool = False
    """On CPUs, PPO's policy, critic, reference and reward model work at the same time with half of
    `threads` each, not in turn with all of them: faster, for more memory at one moment."""
    object_store_gib: Positive = 1.5
    policy: RoleResources = RoleResources()
    critic: RoleResources = RoleResources()
    reference: RoleResources = RoleResources()
    reference_shares_policy: bool = True
    """With `ppo.lora`, the policy's own processes answer as the reference, adapters off; false
    gives the reference the processes of `cluster.reference`, as without LoRA."""
    reward_model: RoleResources = RoleResources()
    generator: RoleResources = RoleResources()
    generator_precision: Precision = "float32"
    kv_cache_gib: Positive = 1.0
    """KV cache of each rollout engine on CPU; sequences that find no room in it wait."""
    gpu_memory_fraction: Fraction = 0.9
    """Share of each GPU's memory that a rollout engine takes."""
    start_timeout_s: Positive = 300.0
    call_timeout_s: Positive = 1800.0

    @model_validator(mode="after")
    def _jobs_run_on_a_cluster(self) -> "ClusterConfig":
        if self.job_server is None:
            return self
        if not _JOB_SERVER.fullmatch(self.job_server):
            raise ValueError(
                f"`cluster.job_server` is {self.job_server!r}; accepted: http://host:port of the "
                "Ray dashboard, without user or password (a token comes from RAY_AUTH_TOKEN_PATH)"
            )
        if self.backend == "local":
            raise ValueError(
                '`cluster.job_server` has no effect with `cluster.backend = "local"`, which keeps '
                "every role in this process: remove one of the two"
            )
        if self.address is not None:
            raise ValueError(
                "`cluster.address` has no effect with `cluster.job_server`, as each job works on "
                "the cluster that it was submitted to: remove one of the two"
            )
        return self


class PipelineConfig(Settings):
    """One whole run. Remove a stage's table to leave the stage out where that is possible."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sft: SFTConfig = SFTConfig()
    rounds: RoundsConfig = RoundsConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    monitors: MonitorsConfig = MonitorsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def ppo_asks_reward_model(self) -> bool:
        """Whether a reward model scores during PPO: as a source of the reward, or as a monitor."""
        return self.reward.trained is not None or self.monitors.heldout is not None

    @model_validator(mode="after")
    def _stages_agree(self) -> "PipelineConfig":
        imported = self.preferences.source == "imported"
        if imported and self.data.source == "starter":
            raise ValueError(
                '`preferences.source = "imported"` needs comparisons in the data; '
                '`data.source = "starter"` has none: name a file of pairs or use the panel'
            )
        if self.data.preference_groups is not None and not imported:
            raise ValueError(
                "`data.preference_groups` has no effect with `preferences.source = "
                f'"{self.preferences.source}"`, which ranks anew: remove it, or set the source to '
                '"imported"'
            )
        problems = _reward_problems(self) + _lora_problems(self) + _round_problems(self)
        problems += _side_by_side_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _reward_problems(config: PipelineConfig) -> list[str]:
    """Settings of the reward that the rest of the run leaves without effect."""
    reward, problems = config.reward, []
    own = reward.trained is not None and reward.trained.folder is None
    penalty = reward.trained.disagreement_penalty if reward.trained else 0.0
    if own and penalty and config.reward_model.heads == 1:
        problems.append(
            f"`reward.trained.disagreement_penalty` (seen: {penalty}) needs heads that can "
            "disagree: set `reward_model.heads` to 2 or more"
        )
    if reward.critic_start is not None and not config.ppo.has_critic:
        problems.append(
            f'`reward.critic_start` has no effect with `ppo.method = "{config.ppo.method}"`, '
            "which has no critic: remove it"
        )
    return problems


def _round_problems(config: PipelineConfig) -> list[str]:
    """Rounds that nobody would rank, or whose prompts would not last."""
    count, problems = config.rounds.count, []
    if count == 1:
        return []
    if config.preferences.source == "imported":
        problems.append(
            f"`rounds.count` is {count}, but imported comparisons are ranked once and for all: let "
            "people or the panel rank, or remove it"
        )
    available = config.data.train_prompts
    for setting, wanted in (
        ("candidates.prompts", config.candidates.prompts),
        ("ppo.prompts_per_step", config.ppo.prompts_per_step),
    ):
        if wanted is not None and available is not None and wanted > available // count:
            problems.append(
                f"`{setting}` is {wanted}, but `rounds.count` {count} leaves each round "
                f"{available // count} of the {available} of `data.train_prompts`, as no round "
                "takes another's: raise that, or lower the other two"
            )
    return problems


def _lora_problems(config: PipelineConfig) -> list[str]:
    """A reference with processes of its own that would never be asked."""
    shared = config.ppo.lora is not None and config.cluster.reference_shares_policy
    if not shared or config.cluster.reference == RoleResources():
        return []
    return [
        "`cluster.reference` has no effect with `ppo.lora`, where the policy's processes answer as "
        "the reference: remove it, or set `cluster.reference_shares_policy` to false"
    ]


def _side_by_side_problems(config: PipelineConfig) -> list[str]:
    """Roles side by side where two do not train at the same time on CPUs of their threads."""
    cluster = config.cluster
    if not cluster.side_by_side:
        return []
    reasons = {
        '`cluster.backend = "local"`, which keeps every role in this process': (
            cluster.backend == "local"
        ),
        f'`ppo.method = "{config.ppo.method}"`, which has no critic beside the policy': (
            not config.ppo.has_critic
        ),
        "policy or critic on GPUs, which work at the same time anyway": (
            cluster.policy.gpus_per_rank + cluster.critic.gpus_per_rank > 0
        ),
        "`ppo.update_kl_limit_nats`, for which the critic waits until the policy is done": (
            config.ppo.update_kl_limit_nats is not None
        ),
    }
    return [
        f"`cluster.side_by_side` gains nothing with {reason}: remove it"
        for reason, holds in reasons.items()
        if holds
    ]


def load_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> PipelineConfig:
    """Defaults, then TOML files from left to right, then `key.path=value` overrides; last wins.

    Raises:
        ConfigError: a file is missing or not TOML, or a setting is refused; names file and key.
    """
    settings: dict[str, Any] = {}
    for path in paths:
        _merge(settings, _read_toml(path))
    for override in overrides:
        _merge(settings, _parse_override(override))
    try:
        return PipelineConfig.model_validate(settings)
    except ValidationError as error:
        where = ", ".join(str(p) for p in paths) or "the settings"
        raise ConfigError(_explain(error, where)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration {path} does not exist; name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"configuration {path} is not valid TOML: {error}") from None


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r} is not key=value, e.g. --set ppo.steps=10")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: quoting it for TOML inside a shell is a nuisance
    nested: Any = value
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _explain(error: ValidationError, where: str) -> str:
    lines = [f"{where} cannot be used:"]
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(
                f"- `{key}` is not a setting; accepted beside it: {_siblings(problem['loc'])}"
            )
        elif key:
            seen = "" if isinstance(problem["input"], dict) else f" (seen: {problem['input']!r})"
            lines.append(f"- `{key}`: {problem['msg'].removeprefix('Value error, ')}{seen}")
        else:
            lines.append(f"- {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _siblings(location: tuple[int | str, ...]) -> str:
    model: Any = PipelineConfig
    for part in location[:-1]:
        if part not in model.model_fields:
            continue  # the name a user gave to an entry of a table
        annotation = model.model_fields[str(part)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return ", ".join(sorted(model.model_fields))
