"""The end of a run: what it measured, whether its gate holds, and the report."""

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from alignment.config import PPOConfig
from alignment.evaluation.policy_comparison import PolicyComparison
from alignment.evaluation.result import read_evaluation
from alignment.statistics.bootstrap import Interval
from flows.alarms import SUSPICIOUS_NAME
from flows.manifest import Artifact
from flows.metrics_log import read_metrics
from flows.rounds import Round, round_figures
from flows.run_context import ACTORS, RunContext
from flows.run_record import METRICS_OUTPUT, RunOutcome, stage_of
from flows.stages.evaluation import RESULT, SAMPLES
from flows.summary import (
    SUMMARY_NAME,
    Actor,
    Check,
    Summary,
    Target,
    Versions,
    memory_of,
    this_machine,
    timing_of,
    write_summary,
)
from flows.versions import TRAINING_ENGINES, code_versions, why_not_loaded


def finish_run(
    run: RunContext, prepared: Sequence[Artifact], rounds: Sequence[Round]
) -> RunOutcome:
    """Write summary and report into the run's folder and show the results of the last round.

    `prepared` are the artifacts of the stages before the first round.
    """
    last, folder = rounds[-1], run.record.folder
    for name in (RESULT, SAMPLES):
        shutil.copyfile(last.verdict.path(name), folder / name)
    if SUSPICIOUS_NAME in last.policy.outputs:
        shutil.copyfile(last.policy.path(SUSPICIOUS_NAME), folder / SUSPICIOUS_NAME)
    made = [*prepared, *(stage for done in rounds for stage in done.stages)]
    # Imported rankings are the data stage's own: each stage counts once.
    stages = list({(stage.stage, stage.key): stage for stage in made}.values())
    if len(run.reused) < len(stages) or not (folder / SUMMARY_NAME).exists():
        write_summary(folder, _summary(run, stages, rounds))
    from flows.report import write_report

    report = write_report(run.record.folder)
    return RunOutcome(folder=run.record.folder, report=report)


def _summary(run: RunContext, stages: Sequence[Artifact], rounds: Sequence[Round]) -> Summary:
    actors = tuple(
        Actor.model_validate(actor) for stage in stages for actor in stage.metrics.get(ACTORS, ())
    )
    return Summary(
        run=run.record.name,
        command=run.options.command,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=run.config.run.seed,
        simulated_labels=run.config.preferences.source == "panel",
        data=_data_counts(stages),
        targets=_targets(run, rounds),
        checks=_checks(run, stages, actors),
        versions=_versions(run, stages),
        actors=actors,
        timing=timing_of(run.clock, tuple(run.reused)),
        memory=memory_of(run.memory.report()),
        machine=this_machine(),
        reused=tuple(run.reused),
    )


def _data_counts(stages: Sequence[Artifact]) -> dict[str, int]:
    (data,) = (stage for stage in stages if stage.stage == "data")
    return {name: count for name, count in data.metrics.items() if isinstance(count, int)}


def _targets(run: RunContext, rounds: Sequence[Round]) -> dict[str, Target]:
    result = read_evaluation(rounds[-1].verdict.path(RESULT))
    figures = _policy_figures(result.headline) | round_figures(rounds)
    if result.reward_model is not None:
        for kind in ("all_pairs", "sampled_pairs"):
            accuracy = getattr(result.reward_model, kind)
            if accuracy is None:
                continue
            about = "share of held-out pairs ordered as noise-free gold does"
            figures[f"reward_model/accuracy_{kind}"] = (accuracy.accuracy, about)
            figures[f"reward_model/length_baseline_{kind}"] = (
                accuracy.length_baseline,
                "the same pairs by `shorter is better`",
            )
            figures[f"reward_model/over_length_{kind}"] = (
                accuracy.difference,
                "accuracy minus the length baseline, paired",
            )
    if result.cross_validated is not None:
        pooled = result.cross_validated.pooled
        about = "pairs people ranked, each scored by a model that never saw its prompt"
        figures["reward_model/cross_validated_accuracy"] = (pooled.accuracy, about)
        figures["reward_model/cross_validated_length_baseline"] = (
            pooled.length_baseline,
            "the same pairs by `shorter is better`",
        )
        figures["reward_model/cross_validated_over_length"] = (
            pooled.difference,
            "accuracy minus the length baseline, paired",
        )
    return {name: _target(run, interval, about) for name, (interval, about) in figures.items()}


def _policy_figures(comparison: PolicyComparison) -> dict[str, tuple[Interval, str]]:
    figures: dict[str, tuple[Interval, str]] = {}
    for name, interval in comparison.sft.items():
        figures[f"sft/{name}"] = (interval, "the SFT policy on held-out prompts")
    for name, interval in comparison.ppo.items():
        figures[f"ppo/{name}"] = (interval, "the PPO policy on held-out prompts")
    for name, interval in comparison.difference.items():
        figures[f"gain/{name}"] = (interval, "PPO minus SFT, paired by prompt")
    for name, interval in comparison.win_rate.items():
        figures[f"win_rate/{name}"] = (interval, "how often a PPO response beats an SFT response")
    return figures


def _first_ratio_may_differ(ppo: PPOConfig) -> bool:
    """The sampler's own log-probabilities, or dropout, make the first ratio inexact on purpose."""
    return ppo.old_logprobs == "sampler" or (ppo.lora is not None and ppo.lora.dropout > 0)


def _target(run: RunContext, interval: Interval, about: str) -> Target:
    return Target(
        value=interval.value,
        n=interval.clusters,
        low=interval.low,
        high=interval.high,
        about=f"{about}; 95% bootstrap by prompt over {interval.n} values",
        seed=run.config.run.seed,
        command=run.options.command,
    )


def _checks(
    run: RunContext, stages: Sequence[Artifact], actors: Sequence[Actor]
) -> dict[str, Check]:
    steps = [
        row
        for stage in stages
        if stage.stage == "ppo" and METRICS_OUTPUT in stage.outputs
        for row in read_metrics(stage.path(METRICS_OUTPUT))
    ]
    values = [v for row in steps for v in row.values() if isinstance(v, float)]
    finite = all(math.isfinite(value) for value in values)
    ratios = [r for row in steps if (r := row.get("ppo/first_ratio_max_deviation")) is not None]
    deviation = max(ratios, default=math.inf)  # the critic's warm-up steps have none
    highest_kl = max((row["ppo/kl_nats"] for row in steps), default=math.inf)
    versions = sorted({int(row["ppo/policy_version"]) for row in steps})
    pids = {actor.pid for actor in actors if stage_of(actor.stage) == "ppo"}
    checks = {
        "all_stages_done": Check(passed=True, detail=_counted(stages)),
        "all_finite": Check(
            passed=finite, detail=f"{len(values)} recorded values of {len(steps)} PPO steps"
        ),
        "first_ratio_is_one": Check(
            passed=deviation == 0.0 or _first_ratio_may_differ(run.config.ppo),
            detail=f"largest |ratio - 1| at the first update of a step is {deviation:.2e}",
        ),
        "kl_under_budget": Check(
            passed=highest_kl <= run.config.ppo.kl_budget_nats,
            detail=f"highest {highest_kl:.3f} nats a sequence, budget "
            f"{run.config.ppo.kl_budget_nats}",
        ),
        "rollouts_from_several_policy_versions": Check(
            passed=len(versions) >= 2, detail=f"versions {versions}"
        ),
    }
    if run.config.cluster.backend == "ray":
        asked = {
            "critic": run.config.ppo.has_critic,
            "reward_model": run.config.ppo_asks_reward_model,
        }
        roles = [role for role in PPO_ROLES if asked.get(role, True)]
        checks["roles_in_processes_of_their_own"] = Check(
            passed=len(pids) >= len(roles),
            detail=f"{len(pids)} processes held the {len(roles)} roles",
        )
    return checks


def _counted(stages: Sequence[Artifact]) -> str:
    """Names of the stages, with how many rounds have each where it is more than one."""
    counts = Counter(stage.stage for stage in stages)
    return ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items())


PPO_ROLES = ("policy", "critic", "reference", "reward_model", "generator")


def _versions(run: RunContext, stages: Sequence[Artifact]) -> Versions:
    loaded: dict[str, Any] = {}
    for stage in stages:
        loaded.update({name: v for name, v in stage.versions.items() if v is not None})
    loaded.update({name: v for name, v in code_versions().items() if v is not None})
    import prefect

    loaded["prefect"] = prefect.__version__
    engines = {name: loaded.pop(name, None) for name in (*TRAINING_ENGINES, "prefect", "gradio")}
    return Versions(
        **engines,
        other=loaded,
        not_loaded={
            name: why_not_loaded(run.config, name)
            for name, version in engines.items()
            if version is None
        },
    )
