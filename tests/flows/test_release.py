"""Release: a finished run's policy as a folder that transformers and vLLM load."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from summary_records import make_summary

from alignment.config import PipelineConfig, RunConfig
from alignment.errors import StoreError
from flows.cli import main
from flows.lineage import lineage
from flows.manifest import InputReference, StageRequest
from flows.model_card import model_card
from flows.release import release
from flows.run_record import RunOptions, open_run
from flows.store import ArtifactStore
from flows.summary import Check, write_summary


@pytest.fixture
def run(tmp_path, tiny_model):
    """A finished run whose policy is the tiny model, with rankings and a file behind it."""
    store = ArtifactStore(tmp_path / "store")
    config = PipelineConfig(run=RunConfig(name="one", store=store.root, runs=tmp_path / "runs"))

    def stage(record, name, inputs, metrics, model=False):
        request = StageRequest(
            stage=name, stage_version=1, inputs=inputs, settings={"path": "/secret/prompts.jsonl"}
        )
        with store.open_stage(request, run="one") as workspace:
            if model:
                shutil.copytree(tiny_model, workspace.output("model"))
            else:
                workspace.output("out").write_text(name)
            made = workspace.commit(outputs=["model" if model else "out"], metrics=metrics)
        record.finish_stage(made, reused=False)
        return made

    with open_run(config, RunOptions()) as record:
        facts = {"origin": "package tiny", "weights": "random", "licence": "Apache-2.0"}
        base = stage(record, "base_model", {}, facts)
        round_ = InputReference(digest="b" * 64, source="round r1")
        ranked = stage(record, "preferences", {"rankings": round_}, {"labelers": "Ada, Bo"})
        pairs = InputReference(digest="a" * 64, source="file /home/ada/pairs.jsonl")
        policy = stage(
            record,
            "ppo",
            {"sft": base.reference(), "rankings": ranked.reference(), "pairs": pairs},
            {"steps": 3, "actors": [{"host": "secret-host"}]},
            model=True,
        )
    write_summary(record.folder, make_summary())
    return record.folder, policy, tmp_path


def test_transformers_loads_what_was_trained(run, tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, policy, tmp_path = run
    released = release(folder, tmp_path / "out")
    assert released.policy == policy
    for path in tiny_model.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    trained = AutoModelForCausalLM.from_pretrained(tiny_model)
    for name, weight in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)


def test_card_and_lineage_tell_all_and_give_nobody_away(run):
    folder, policy, tmp_path = run
    release(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "Licence of the base model: Apache-2.0." in card
    assert "Ranked by a simulated panel, not by people." in card
    assert "| gain/gold | 0.1  | [0.03, 0.15] | 56 |" in card
    assert f"| ppo | {policy.key[:12]} |" in card
    told = (tmp_path / "out" / "lineage.json").read_text()
    graph = json.loads(told)
    assert graph["ends"] == [f"ppo/{policy.key}"]
    assert {a["stage"] for a in graph["artifacts"].values()} == {"base_model", "preferences", "ppo"}
    assert "file pairs.jsonl" in told
    picture = (tmp_path / "out" / "lineage.svg").read_text()
    for private in ("Ada", "/home", "/secret", "secret-host", str(tmp_path)):
        assert private not in card + told + picture


def test_card_says_who_ranked_and_what_failed(run):
    folder, policy, _ = run
    graph = lineage(ArtifactStore(folder.parents[1] / "store"), policy)
    summary = make_summary(
        simulated_labels=False, checks={"kl_under_budget": Check(passed=False, detail="9 nats")}
    )
    card = model_card(summary, policy, graph)
    assert "Ranked by people" in card
    assert "**Released although its run failed the check kl_under_budget.**" in card
    assert "- FAILED: kl_under_budget, 9 nats" in card


def test_run_whose_check_failed_is_released_only_on_demand(run):
    folder, _, tmp_path = run
    failed = {"kl_under_budget": Check(passed=False, detail="9 nats")}
    write_summary(folder, make_summary(checks=failed))
    with pytest.raises(StoreError, match=r"kl_under_budget \(9 nats\).*--despite-checks"):
        release(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    release(folder, tmp_path / "out", despite_checks=True)
    assert (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damaged_policy_is_refused_and_nothing_appears(run, damage):
    folder, policy, tmp_path = run
    weights = policy.path("model") / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    with pytest.raises(StoreError, match="the policy is damaged") as error:
        release(folder, tmp_path / "out")
    assert str(weights) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_released_is_refused(run):
    folder, policy, tmp_path = run
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreError, match="exists already"):
        release(folder, tmp_path / "taken")
    shutil.rmtree(policy.folder)
    with pytest.raises(StoreError, match="run its command again"):
        release(folder, tmp_path / "out")
    (folder / "summary.json").unlink()
    with pytest.raises(StoreError, match="has not finished"):
        release(folder, tmp_path / "out")


def test_command(run, capsys):
    folder, policy, tmp_path = run
    out = tmp_path / "out"
    assert main(["release", str(folder), "--out", str(out)]) == 0
    assert f"{out}: policy {policy.key[:12]} of run one" in capsys.readouterr().out
    assert main(["release", str(folder), "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err


GENERATE = """
import sys
from vllm import LLM, SamplingParams

llm = LLM(model=sys.argv[1], dtype="float32", max_model_len=128, enforce_eager=True)
asked = [{"role": "user", "content": "Hi"}]
(answer,) = llm.chat(asked, SamplingParams(max_tokens=8, temperature=0))
print("GENERATED", len(answer.outputs[0].token_ids))
"""


@pytest.mark.engines
@pytest.mark.slow
def test_vllm_loads_and_answers(run, monkeypatch):
    folder, _, tmp_path = run
    out = release(folder, tmp_path / "out").folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, str(out)], capture_output=True, text=True, timeout=300
    )
    assert "GENERATED 8" in done.stdout, done.stderr[-2000:]
