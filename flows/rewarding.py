"""What PPO is paid for and what watches it, made from a run's settings and started roles."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.config import RewardConfig
from alignment.errors import ConfigError
from alignment.records import Prompt
from flows.alarms import SUSPICIOUS_NAME, AlarmLog
from flows.manifest import InputReference, digest_file
from flows.metrics_log import read_metrics
from flows.run_context import RunContext
from flows.stages.data import HELDOUT_PROMPTS
from flows.workspace import StageWorkspace

if TYPE_CHECKING:
    from torch import Tensor

    from alignment.experience import EncodedPrompt, TokenBatch
    from alignment.rewards.assemble import RewardPlan
    from alignment.rewards.combined import CombinedReward
    from alignment.rewards.watch import HeldoutEvaluation, RewardWatch

PromptPair = tuple["EncodedPrompt", Prompt]


def reward_inputs(config: RewardConfig) -> dict[str, InputReference]:
    """What the reward reads besides the run's own models: functions' files, a foreign model.

    A function is pinned by the file it is in; what that file imports is not looked at.
    """
    from alignment.rewards.function import source_of_function

    inputs = {}
    for source in config.function.values():
        path = source_of_function(source.function)
        inputs[f"reward function {source.function}"] = InputReference(
            digest=digest_file(path), source=str(path)
        )
    trained = config.trained
    if trained is not None and trained.folder is not None:
        inputs["foreign reward model"] = _folder_input(trained.folder)
    return inputs


def combined_reward(
    run: RunContext,
    plan: "RewardPlan",
    roles: Mapping[str, Any],
    tokenizer: Any,
    prompts: Sequence[PromptPair],
) -> "CombinedReward":
    """The reward of this run, over roles that have started. `prompts`: all that are sampled."""
    from alignment.rewards.assemble import reward_sources
    from alignment.rewards.combined import CombinedReward
    from alignment.rewards.texts import BatchTexts

    sources = reward_sources(run.config, plan, roles.get("reward_model"))
    return CombinedReward(sources, BatchTexts(tokenizer, prompts))


def watched(
    run: RunContext,
    stage: str,
    reward: "CombinedReward",
    *,
    after_step: int,
    heldout: "HeldoutEvaluation | None",
) -> "RewardWatch":
    """The stage's metric sink behind the monitors; a resumed training goes on after a step."""
    from alignment.rewards.watch import RewardWatch

    earlier = read_metrics(run.record.metrics_path(run.name(stage)))
    return RewardWatch(
        run.sink(stage, run.config.ppo.steps),
        reward,
        run.config.monitors,
        history=[step for step in earlier if step["step"] <= after_step],
        heldout=heldout,
        on_alarm=AlarmLog(_suspicious_path(run), run.progress.say, after_step=after_step),
    )


def heldout_evaluation(
    run: RunContext,
    plan: "RewardPlan",
    roles: Mapping[str, Any],
    tokenizer: Any,
    encoded: Callable[[str, int], list[PromptPair]],
    *,
    seed: int,
) -> "HeldoutEvaluation | None":
    """The evaluation during the run, where `[monitors.heldout]` asks for one.

    `encoded` gives the first so many prompts of a table of the data stage.
    """
    config = run.config.monitors.heldout
    if config is None:
        return None
    prompts = encoded(HELDOUT_PROMPTS, config.prompts)
    from alignment.experience import Sampling
    from alignment.rewards.assemble import text_scorer
    from alignment.rewards.combined import TextSource
    from alignment.rewards.models import ModelSource
    from alignment.rewards.texts import BatchTexts
    from alignment.rewards.watch import HeldoutEvaluation

    texts = BatchTexts(tokenizer, prompts)
    trained = run.config.reward.trained
    model = ModelSource(
        role=roles["reward_model"],
        disagreement_penalty=trained.disagreement_penalty if trained else 0.0,
        retokeniser=plan.retokeniser,
    )
    sources: dict[str, Any] = {"ppo/heldout_score_mean": model}
    if config.judge is not None:
        sources["ppo/heldout_judge_mean"] = TextSource(text_scorer(config.judge))

    def judged_by(source: Any) -> "Callable[[TokenBatch], Tensor]":
        return lambda batch: source.score(batch, texts.read(batch)).scores

    ppo = run.config.ppo
    return HeldoutEvaluation(
        generator=roles["generator"],
        prompts=[encoded for encoded, _ in prompts],
        sampling=Sampling(max_response_tokens=ppo.max_response_tokens, temperature=ppo.temperature),
        judges={name: judged_by(source) for name, source in sources.items()},
        seed=seed,
        every_steps=config.every_steps,
    )


def keep_suspicious(run: RunContext, workspace: StageWorkspace) -> tuple[str, ...]:
    """The alarms' texts as an output of the stage, for runs that reuse it; none without alarms."""
    path = _suspicious_path(run)
    if not path.exists():
        return ()
    workspace.output(SUSPICIOUS_NAME).write_bytes(path.read_bytes())
    return (SUSPICIOUS_NAME,)


def _suspicious_path(run: RunContext) -> Path:
    """Where the alarms' texts of the round at hand gather."""
    own = Path(SUSPICIOUS_NAME)
    return run.record.folder / f"{run.name(own.stem)}{own.suffix}"


def _folder_input(folder: Path) -> InputReference:
    """A foreign reward model, pinned by the digests of its files."""
    import hashlib

    files = sorted(file for file in folder.glob("*") if file.is_file())
    if not files:
        raise ConfigError(
            f"`reward.trained.folder` {folder} has no files; name a folder that a reward_model "
            "stage has written"
        )
    listing = "\n".join(f"{file.name} {digest_file(file)}" for file in files)
    return InputReference(digest=hashlib.sha256(listing.encode()).hexdigest(), source=str(folder))
