"""The whole pipeline, on one screen.

    base_model ─► data ─► sft ─► candidates ─► preferences ─► reward_model ─► ppo ─► evaluation
                                 ▲             (people rank)                              │
                                 └───────────── next round, from the new policy ◄─────────┘

Each stage is looked up in the store before any engine starts, and done or resumed only if it is
not there. Artifacts are small references; weights and tables stay in the store. Needs no Prefect
server; where one is named by PREFECT_API_URL, the same flow shows there. Stages with engines are
done in this process or, where `cluster.job_server` is set, as Ray jobs.
"""

from collections.abc import Sequence

from prefect import flow

from alignment.config import PipelineConfig
from flows.finish import finish_run
from flows.manifest import Artifact
from flows.rounds import Round
from flows.run_context import RunContext
from flows.run_record import RunOptions, RunOutcome
from flows.running import running
from flows.stage_tasks import engine_task, stage_task
from flows.stages import (
    base_model,
    candidates,
    data,
    evaluation,
    ppo,
    preferences,
    reward_model,
    sft,
)
from flows.waiting import suspended_while_people_rank

prepare_base_model = stage_task(base_model.prepare_base_model)
prepare_data = stage_task(data.prepare_data)
train_sft = engine_task(sft.train_sft)
sample_candidates = engine_task(candidates.sample_candidates)
train_reward_model = engine_task(reward_model.train_reward_model)
train_policy = engine_task(ppo.train_policy)
evaluate_policy = engine_task(evaluation.evaluate_policy)


@flow(name="alignment_pipeline", validate_parameters=False, persist_result=False, log_prints=False)
def alignment_pipeline(config: PipelineConfig, options: RunOptions | None = None) -> RunOutcome:
    """SFT, candidates, rankings, reward model, PPO and evaluation, each once per content."""
    with suspended_while_people_rank(), running(config, options or RunOptions()) as run:
        return _stages(run)


def _stages(run: RunContext) -> RunOutcome:
    base = prepare_base_model(run)
    tables = prepare_data(run, base)
    start = train_sft(run, base, tables)

    rounds: list[Round] = []
    for number in range(1, run.config.rounds.count + 1):
        rounds.append(_round(run.in_round(number), start, tables, rounds))
    return finish_run(run, (base, tables, start), rounds)


def _round(run: RunContext, start: Artifact, tables: Artifact, before: Sequence[Round]) -> Round:
    policies = [start, *(earlier.policy for earlier in before)]
    if run.config.preferences.source == "imported":
        ranked, rankings = None, tables
    else:
        ranked = sample_candidates(run, policies[-2:], tables)
        # In the parent's own body, not in a task: only here can a run be suspended for people.
        rankings = preferences.collect_rankings(run, ranked)

    judges, all_rankings = [r.judge for r in before], [*(r.rankings for r in before), rankings]
    judge = train_reward_model(run, judges[-1] if judges else start, all_rankings)
    policy = train_policy(run, policies[-1], judge, tables, start if before else None)
    verdict = evaluate_policy(run, start, policy, judge, rankings, ranked, tables)
    return Round(ranked=ranked, rankings=rankings, judge=judge, policy=policy, verdict=verdict)


def run(config: PipelineConfig, options: RunOptions) -> RunOutcome:
    """Run the flow in this process; what the command line calls."""
    outcome: RunOutcome = alignment_pipeline(config, options)
    return outcome
