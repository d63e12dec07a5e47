"""Lineage: from a policy back to the rankings and files behind it."""

import json
import shutil

import pytest

from alignment.config import PipelineConfig, RunConfig
from alignment.errors import StoreError
from flows.lineage import lineage, render_text, run_lineage
from flows.manifest import InputReference, StageRequest
from flows.run_record import RunOptions, open_run
from flows.store import ArtifactStore


def make_stage(store, stage, inputs, text, **metrics):
    request = StageRequest(stage=stage, stage_version=1, inputs=inputs)
    with store.open_stage(request, run="one") as workspace:
        workspace.output("out").write_text(text)
        return workspace.commit(outputs=["out"], metrics=metrics)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def stages(store):
    """data -> sft -> (rankings) preferences -> ppo, where ppo also reads sft and data."""
    raw = InputReference(digest="a" * 64, source="file pairs.jsonl.gz")
    round_ = InputReference(digest="b" * 64, source="round r1")
    data = make_stage(store, "data", {"file": raw}, "data", demonstrations=24)
    sft = make_stage(store, "sft", {"data": data.reference()}, "sft", loss=1.25)
    ranked = make_stage(
        store, "preferences", {"sft": sft.reference("out"), "rankings": round_}, "ranked"
    )
    ppo = make_stage(
        store,
        "ppo",
        {"start": sft.reference(), "prompts": data.reference(), "preferences": ranked.reference()},
        "ppo",
    )
    return {"data": data, "sft": sft, "preferences": ranked, "ppo": ppo}


def test_policy_leads_to_rankings_and_files(store, stages):
    tree = lineage(store, stages["ppo"])
    inputs = {node.name: node for node in tree.inputs}
    assert set(inputs) == {"start", "prompts", "preferences"}
    rankings = {node.name: node for node in inputs["preferences"].inputs}["rankings"]
    assert rankings.reference.source == "round r1"
    assert rankings.artifact is None
    assert not rankings.missing
    assert inputs["prompts"].inputs[0].reference.digest == "a" * 64
    assert inputs["start"].reference.digest == stages["sft"].digest_all


def test_text_shows_each_stage_once(store, stages):
    text = render_text((lineage(store, stages["ppo"]),))
    lines = text.splitlines()
    assert lines[0].startswith(f"ppo {stages['ppo'].key[:12]}, made 20")
    assert sum("file pairs.jsonl.gz" in line for line in lines) == 1
    assert sum("rankings: round r1, sha256 bbbbbbbbbbbb" in line for line in lines) == 1
    assert sum("demonstrations 24" in line for line in lines) == 1
    assert sum(line.endswith("(above)") for line in lines) == 2
    assert any("start: sft" in line for line in lines)


def test_json_holds_the_whole_tree(store, stages):
    tree = json.loads(json.dumps(lineage(store, stages["ppo"]).as_json()))
    start = next(node for node in tree["inputs"] if node["name"] == "start")
    assert start["stage"] == "sft"
    assert start["metrics"] == {"loss": 1.25}
    assert start["inputs"][0]["inputs"][0]["source"] == "file pairs.jsonl.gz"


def test_stage_that_was_removed_is_told(store, stages):
    shutil.rmtree(stages["sft"].folder)
    tree = lineage(store, stages["ppo"])
    start = next(node for node in tree.inputs if node.name == "start")
    assert start.missing
    assert "no longer in the store" in render_text((tree,))


def test_run_ends_are_what_no_other_stage_read(store, stages, tmp_path):
    config = PipelineConfig(run=RunConfig(name="one", store=store.root, runs=tmp_path / "runs"))
    with open_run(config, RunOptions()) as record:
        for artifact in stages.values():
            record.finish_stage(artifact, reused=False)
        record.begin_stage("evaluation", "f" * 64, "never run")
    nodes = run_lineage(store, record.folder)
    assert [node.name for node in nodes] == ["ppo"]


def test_unknown_run_names_the_known_ones(store, tmp_path):
    config = PipelineConfig(run=RunConfig(name="one", store=store.root, runs=tmp_path / "runs"))
    with open_run(config, RunOptions()):
        pass
    with pytest.raises(StoreError, match=r"no run 'two' in .*; runs there: one"):
        run_lineage(store, tmp_path / "runs" / "two")
