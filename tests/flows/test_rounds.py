"""Several rounds in one run: fresh prompts, both policies ranked, everything goes on, all is told.

One run of two rounds, roles in process, is shared; the stages are the pipeline's own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.config import load_config
from alignment.data.tables import read_records
from alignment.errors import ConfigError
from alignment.models.modules import read_value_head, write_normalisation
from alignment.records import CandidateSet
from flows.lineage import rankings_of, run_lineage
from flows.run_record import name_in_round, read_run, stage_of
from flows.shipped_configs import config_path
from flows.stages.reward_model import normalise
from flows.store import ArtifactStore
from flows.summary import read_summary

TWO_ROUNDS = ("rounds.count=2", "cluster.backend=local", "candidates.responses_per_prompt=3")


def run_command(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    sets = [f"--set={setting}" for setting in (*TWO_ROUNDS, *settings)]
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", "tiny", *sets],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    done = run_command(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def artifact_of(folder: Path, name: str):
    record = read_run(folder / "runs" / "tiny").stages[name]
    artifact = ArtifactStore(folder / "store").get(stage_of(name), record.finished_key)
    assert artifact is not None
    return artifact


@pytest.mark.engines
def test_a_round_ranks_fresh_prompts_answered_by_the_newest_policy_and_its_parent(finished):
    first, second = (
        read_records(artifact_of(finished, name).path("candidates.parquet"), CandidateSet)
        for name in ("candidates", "candidates-2")
    )
    assert {s.prompt.id for s in first}.isdisjoint(s.prompt.id for s in second)
    assert len(first) == len(second) == 4
    for candidates, origins in ((first, ["policy"] * 3), (second, ["policy", "policy", "parent"])):
        for ranked in candidates:
            assert [r.origin for r in ranked.responses][:3] == origins
            assert len({r.id for r in ranked.responses}) == len(ranked.responses)
    inputs = artifact_of(finished, "candidates-2").inputs
    assert (inputs["policy"].stage, inputs["parent"].stage) == ("ppo", "sft")


@pytest.mark.engines
def test_policy_and_reward_model_go_on_and_kl_is_measured_from_sft(finished):
    policy, judge = (artifact_of(finished, name) for name in ("ppo-2", "reward_model-2"))
    assert policy.inputs["sft"].key == artifact_of(finished, "ppo").key
    assert policy.inputs["reference"].stage == "sft"
    assert judge.inputs["reward_model"].key == artifact_of(finished, "reward_model").key
    ranked = [judge.inputs[name].key for name in ("comparisons", "comparisons-2")]
    assert ranked == [artifact_of(finished, n).key for n in ("preferences", "preferences-2")]
    assert artifact_of(finished, "ppo-2").seed != artifact_of(finished, "ppo").seed


@pytest.mark.engines
def test_lineage_of_the_last_policy_reaches_the_rankings_of_both_rounds(finished):
    found = run_lineage(ArtifactStore(finished / "store"), finished / "runs" / "tiny")
    preferences = [a for (stage, _), a in found.artifacts.items() if stage == "preferences"]
    assert len(preferences) == 2
    assert all(len(rankings_of(artifact)) == 12 for artifact in preferences)
    assert [artifact.stage for artifact in found.ends] == ["evaluation"] * 2


@pytest.mark.engines
def test_one_run_shows_both_rounds_and_is_reused_whole(finished):
    run = finished / "runs" / "tiny"
    summary = read_summary(run)
    assert all(check.passed for check in summary.checks.values()), summary.checks
    assert "2 x ppo" in summary.checks["all_stages_done"].detail
    for number in (1, 2):
        evaluation = artifact_of(finished, name_in_round("evaluation", number))
        result = json.loads(evaluation.path("evaluation.json").read_text())
        gain = result["headline"]["difference"]["gold"]["value"]
        assert summary.targets[f"round_{number}/gain/gold"].value == gain
    assert summary.targets["gain/gold"].value == summary.targets["round_2/gain/gold"].value
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="rounds"' in page
    assert "PPO, round 2" in page
    assert (run / "metrics" / "ppo-2.jsonl").exists()

    again = run_command(finished)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("reused") >= 13


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("preferences.source=imported", "imported comparisons are ranked once"),
        ("candidates.prompts=5", "`candidates.prompts` is 5, but `rounds.count` 2 leaves each"),
        ("ppo.prompts_per_step=6", "`ppo.prompts_per_step` is 6, but `rounds.count` 2 leaves"),
    ],
)
def test_rounds_that_cannot_be_are_refused(setting, message):
    settings = ["rounds.count=2", setting]
    if "imported" in setting:
        settings += ["data.source=hh-rlhf", "data.path=pairs.jsonl"]
    with pytest.raises(ConfigError, match=message):
        load_config([config_path("tiny")], settings)


def test_a_reward_model_that_went_on_is_normalised_once(tmp_path):
    """((raw - m) s - M) / S with the values worked by hand."""
    from safetensors.torch import save_file
    from torch import ones, zeros

    save_file({"weight": ones(1, 4), "bias": zeros(1)}, tmp_path / "value_head.safetensors")
    write_normalisation(tmp_path, mean=2.0, scale=0.5)  # gave (raw - 2) / 2
    normalise(tmp_path, means=[3.0], spreads=[4.0])  # wants ((raw - 2) / 2 - 3) / 4
    _, mean, scale = read_value_head(tmp_path)
    assert (mean, scale) == (8.0, 0.125)  # (raw - 8) / 8


def test_heads_that_went_on_keep_numbers_of_their_own(tmp_path):
    from safetensors.torch import save_file
    from torch import ones, zeros

    save_file({"weight": ones(2, 4), "bias": zeros(2)}, tmp_path / "value_head.safetensors")
    write_normalisation(tmp_path, mean=[2.0, 0.0], scale=[0.5, 1.0])
    normalise(tmp_path, means=[3.0, 1.0], spreads=[4.0, 2.0])
    _, mean, scale = read_value_head(tmp_path)
    assert (mean, scale) == ([8.0, 1.0], [0.125, 0.5])
