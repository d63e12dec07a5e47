"""The whole pipeline on the real engines: run, reuse, interruption, people, lineage.

One run of the tiny configuration is shared by the tests; it starts Ray, DeepSpeed and vLLM.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignment.metrics import check_names
from flows.metrics_log import read_metrics
from flows.summary import Summary, read_summary

pytestmark = pytest.mark.engines

PPO_ROLES = {"policy", "critic", "reference", "reward_model", "generator"}


@dataclass(frozen=True)
class Finished:
    """What a finished command left."""

    folder: Path
    code: int
    output: str
    seconds: float

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"


def alignflow(folder: Path, *arguments: str, timeout_s: float = 600) -> Finished:
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    seconds = time.monotonic() - started
    return Finished(folder, result.returncode, result.stdout + result.stderr, seconds)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    done = alignflow(tmp_path_factory.mktemp("pipeline"), "run", "tiny")
    assert done.code == 0, done.output
    return done


def why_not_real(summary: Summary, ppo_steps: Sequence[dict[str, float]]) -> list[str]:
    """Everything that shows PPO was not done by the real engines in processes of their own."""
    ppo = [actor for actor in summary.actors if actor.stage == "ppo"]
    by_role = {actor.role: actor for actor in ppo}
    problems = [f"no actor held {role}" for role in sorted(PPO_ROLES - by_role.keys())]
    for role in ("policy", "critic"):
        actor = by_role.get(role)
        if actor and ("DeepSpeed" not in actor.engine or actor.steps < 1):
            problems.append(f"{role} stepped {actor.steps} times in {actor.engine}")
    generator = by_role.get("generator")
    if generator and "LLM" not in generator.engine:
        problems.append(f"rollouts came from {generator.engine}")
    if generator and len(generator.policy_versions) < 2:
        problems.append("the generator sampled with fewer than two policy versions")
    if len({row["ppo/policy_version"] for row in ppo_steps}) < 2:
        problems.append("rollouts came from fewer than two policy versions")
    if len({actor.pid for actor in ppo}) < len(PPO_ROLES):
        problems.append("roles shared a process")
    for engine in ("ray", "vllm", "deepspeed", "prefect"):
        if getattr(summary.versions, engine) is None:
            problems.append(f"{engine} was not loaded")
    return problems


def test_ppo_ran_on_the_real_engines(finished: Finished) -> None:
    steps = read_metrics(finished.run / "metrics" / "ppo.jsonl")
    assert why_not_real(read_summary(finished.run), steps) == []


SEEN_EACH_STEP = (
    *("ppo/score_mean", "ppo/reward_mean", "ppo/kl_nats", "ppo/entropy_nats"),
    *("ppo/clip_fraction", "ppo/explained_variance", "ppo/first_ratio_max_deviation"),
    *("ppo/sampler_gap_mean", "ppo/sampler_gap_max", "ppo/sampler_gap_kl_nats"),
    *("ppo/response_tokens_mean", "ppo/eos_rate", "ppo/repetition_mean", "memory/rise_gib"),
    *(f"memory/gib_of_{role}-0" for role in sorted(PPO_ROLES)),
    *(
        name
        for phase in ("generate", "score", "old_logprobs", "reference_logprobs", "values")
        for name in (f"time/{phase}_s", f"ppo/{phase}_tokens_per_s")
    ),
    *("ppo/update_policy_tokens_per_s", "ppo/update_critic_tokens_per_s", "time/step_s"),
)


def test_each_step_says_what_there_is_to_watch(finished: Finished) -> None:
    steps = read_metrics(finished.run / "metrics" / "ppo.jsonl")
    assert len(steps) == 2
    for step in steps:
        check_names(set(step) - {"step", "wall_s"})
        missing = [name for name in SEEN_EACH_STEP if step.get(name) is None]
        assert missing == []
        slow = [name for name in SEEN_EACH_STEP if name.endswith("_per_s") and step[name] <= 0]
        assert slow == []
        assert step["memory/gib_of_policy-0"] > 0.1


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run on pairs that people ranked elsewhere, its roles held by the command's own process."""
    folder = tmp_path_factory.mktemp("imported")
    pairs = []
    for number in range(30):
        prompt = f"\n\nHuman: Question {number}: what is it?\n\nAssistant:"
        short, long = f"{prompt} It is.", f"{prompt} It is, it is, it is."
        chosen, rejected = (short, long) if number % 3 else (long, short)
        pairs.append(json.dumps({"chosen": chosen, "rejected": rejected}))
    (folder / "pairs.jsonl").write_text("\n".join(pairs) + "\n")
    settings = (
        *("data.source=hh-rlhf", "data.path=pairs.jsonl", "data.preference_groups=18"),
        *("data.heldout_prompts=6", "preferences.source=imported", "reward_model.folds=5"),
        "cluster.backend=local",
    )
    done = alignflow(folder, "run", "tiny", *(f"--set={setting}" for setting in settings))
    assert done.code == 0, done.output
    return done


def test_in_process_roles_are_told_from_the_real_engines(imported: Finished) -> None:
    steps = read_metrics(imported.run / "metrics" / "ppo.jsonl")
    summary = read_summary(imported.run)
    problems = " ".join(why_not_real(summary, steps))
    for expected in ("policy stepped 0 times", "rollouts came from torch", "shared a process"):
        assert expected in problems
    assert summary.versions.not_loaded.keys() == {"ray", "vllm", "deepspeed", "gradio"}


def test_imported_rankings_are_judged_without_gold(imported: Finished) -> None:
    summary = read_summary(imported.run)
    assert not summary.simulated_labels
    assert not any("gold" in name for name in summary.targets)
    assert summary.data["preference_groups"] == 18
    assert summary.data["preference_groups_available"] == 24
    accuracy = summary.targets["reward_model/cross_validated_accuracy"]
    baseline = summary.targets["reward_model/cross_validated_length_baseline"]
    over = summary.targets["reward_model/cross_validated_over_length"]
    assert accuracy.n == baseline.n == over.n == 18
    assert 0.5 < baseline.value < 0.9  # the shorter reply was chosen two times out of three
    assert over.value == pytest.approx(accuracy.value - baseline.value)
    assert over.low is not None
    stages = summary.checks["all_stages_done"].detail
    assert stages == "base_model, data, sft, reward_model, ppo, evaluation"
    page = (imported.run / "report.html").read_text(encoding="utf-8")
    assert "18 pairs of 18 prompts" in page
    assert "Question " in page
    for absent in ("gold", "SIMULATED", "Probes"):
        assert absent not in page


def test_every_check_of_the_gate_passed(finished: Finished) -> None:
    checks = read_summary(finished.run).checks
    assert checks
    assert all(check.passed for check in checks.values()), checks


def test_summary_names_every_target_with_its_interval(finished: Finished) -> None:
    summary = read_summary(finished.run)
    for name in ("ppo/gold", "gain/gold", "ppo/kl_nats", "win_rate/gold", "ppo/eos_rate"):
        target = summary.targets[name]
        assert target.low is not None
        assert target.n >= 2
        assert target.command
    assert summary.simulated_labels


def test_report_is_self_contained_and_says_simulated(finished: Finished) -> None:
    page = (finished.run / "report.html").read_text(encoding="utf-8")
    assert "simulated" in page.lower()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_second_run_reuses_every_stage_without_starting_an_engine(finished: Finished) -> None:
    before = (finished.run / "summary.json").read_text()
    again = alignflow(finished.folder, "run", "tiny")
    assert again.code == 0, again.output
    assert again.output.count("reused") >= 8
    assert "redone" not in again.output
    assert not list((finished.run / "logs").glob("ray/session_*/**/ppo*"))
    assert (finished.run / "summary.json").read_text() == before


def test_changed_setting_redoes_only_what_depends_on_it(finished: Finished) -> None:
    # In-process roles: where a stage runs is no part of what it is.
    settings = ("--set", "evaluation.samples_per_prompt=2", "--set", "cluster.backend=local")
    changed = alignflow(finished.folder, "run", "tiny", *settings)
    assert changed.code == 0, changed.output
    assert "setting samples_per_prompt 1 -> 2" in changed.output
    assert changed.output.count("redone:") == 1
    assert changed.output.count(" reused") >= 7


def test_lineage_walks_from_the_policy_to_the_rankings(finished: Finished) -> None:
    lineage = alignflow(finished.folder, "lineage", "tiny")
    assert lineage.code == 0
    for stage in ("ppo", "reward_model", "preferences", "candidates", "sft", "data", "base_model"):
        assert stage in lineage.output
    assert "round" in lineage.output


def killed_in_ppo(folder: Path, name: str, arguments: Sequence[str]) -> Path:
    """Start a run, kill it with -9 once two steps of PPO are recorded; the metrics file."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = folder / "runs" / name / "metrics" / "ppo.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (
        metrics.exists() and len(read_metrics(metrics)) >= 2
    ):
        assert process.poll() is None
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return metrics


@pytest.mark.slow
def test_killed_run_resumes_at_its_newest_checkpoint(finished: Finished) -> None:
    arguments = ["run", "tiny", "--set", "ppo.steps=6", "--set", "run.name=killed"]
    metrics = killed_in_ppo(finished.folder, "killed", arguments)

    resumed = alignflow(finished.folder, *arguments)
    assert resumed.code == 0, resumed.output
    assert "resumed: begun earlier and not finished" in resumed.output
    assert "ppo resumes after step" in resumed.output
    steps = [int(row["step"]) for row in read_metrics(metrics)]
    assert steps[-1] == 6
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_ensemble_evaluation_average_and_sampling_ahead_survive_a_kill(finished: Finished) -> None:
    """All of them at once through the command itself, on the real engines."""
    settings = (
        *("run.name=ahead", "ppo.steps=5", "ppo.overlap=true", "ppo.ema_decay=0.9"),
        *("reward_model.heads=3", "reward.trained.disagreement_penalty=0.5"),
        *("monitors.heldout.every_steps=1", "monitors.heldout.prompts=4"),
    )
    arguments = ["run", "tiny", *(f"--set={setting}" for setting in settings)]
    metrics = killed_in_ppo(finished.folder, "ahead", arguments)
    resumed = alignflow(finished.folder, *arguments)
    assert resumed.code == 0, resumed.output
    assert "ppo resumes after step" in resumed.output
    steps = read_metrics(metrics)
    assert [step["ppo/policy_version"] for step in steps] == [0, 0, 1, 2, 3]
    assert all(step["ppo/disagreement_mean"] > 0 for step in steps)
    assert all(step["ppo/heldout_score_mean"] is not None for step in steps)
    assert all(step["ppo/first_ratio_max_deviation"] == 0 for step in steps)
    assert why_not_real(read_summary(resumed.folder / "runs" / "ahead"), steps) == []


def test_run_waits_for_people_and_the_same_command_goes_on(
    finished: Finished,
) -> None:
    from labeling_ui.store import LabelStore

    arguments = [
        *("run", "tiny", "--set", "preferences.source=people", "--set", "run.name=people"),
        *("--set", "preferences.rankings_per_prompt=1", "--set", "cluster.backend=local"),
    ]
    waiting = alignflow(finished.folder, *arguments)
    assert waiting.code == 75, waiting.output
    assert "0 of 8 rankings" in waiting.output

    with LabelStore.open(finished.folder / "store" / "labels" / "labels.sqlite") as labels:
        (round_id,) = [r.round_id for r in labels.rounds() if r.name == "people"]
        while card := labels.claim(round_id, "ada"):
            labels.submit(
                card.assignment_id,
                "ada",
                submission_id=card.assignment_id,
                tiers=list(range(len(card.responses))),
            )
    done = alignflow(finished.folder, *arguments)
    assert done.code == 0, done.output
    summary = json.loads((finished.folder / "runs" / "people" / "summary.json").read_text())
    assert summary["simulated_labels"] is False
