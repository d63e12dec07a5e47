"""Lineage: from a policy back to the rankings and files behind it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from alignment.config import PipelineConfig, RunConfig
from alignment.data.tables import write_records
from alignment.errors import StoreError
from alignment.records import Ranking
from flows.cli import main
from flows.lineage import lineage, run_lineage
from flows.lineage_picture import render_picture
from flows.lineage_text import render_text
from flows.manifest import InputReference, StageRequest
from flows.run_record import RunOptions, open_run
from flows.store import ArtifactStore

SVG = "{http://www.w3.org/2000/svg}"


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
    graph = lineage(store, stages["ppo"])
    assert graph.ends == (stages["ppo"],)
    assert {stage: a for (stage, _), a in graph.artifacts.items()} == stages
    assert not graph.missing
    ranked = graph.behind(stages["ppo"].inputs["preferences"])
    assert ranked == stages["preferences"]
    assert ranked.inputs["rankings"].source == "round r1"
    assert graph.behind(ranked.inputs["rankings"]) is None


def test_text_shows_each_stage_once(store, stages):
    text = render_text(lineage(store, stages["ppo"]))
    lines = text.splitlines()
    assert lines[0].startswith(f"ppo {stages['ppo'].key[:12]}, made 20")
    assert sum("file pairs.jsonl.gz" in line for line in lines) == 1
    assert sum("rankings: round r1, sha256 bbbbbbbbbbbb" in line for line in lines) == 1
    assert sum("demonstrations 24" in line for line in lines) == 1
    assert sum(line.endswith("(above)") for line in lines) == 2
    assert any("start: sft" in line for line in lines)


def test_text_of_a_small_lineage_in_full(store, stages):
    sft, data = stages["sft"], stages["data"]
    assert render_text(lineage(store, sft)) == (
        f"sft {sft.key[:12]}, made {sft.created} by run one, sha256 {sft.digest_all[:12]}\n"
        "│  loss 1.25\n"
        f"└─ data {data.key[:12]}, made {data.created} by run one, "
        f"sha256 {data.digest_all[:12]}\n"
        "   │  demonstrations 24\n"
        "   └─ file: file pairs.jsonl.gz, sha256 aaaaaaaaaaaa"
    )


def test_json_holds_the_whole_graph(store, stages):
    graph = json.loads(json.dumps(lineage(store, stages["ppo"]).as_json()))
    (end,) = graph["ends"]
    assert end == f"ppo/{stages['ppo'].key}"
    start = graph["artifacts"][end]["inputs"]["start"]
    sft = graph["artifacts"][f"{start['stage']}/{start['key']}"]
    assert sft["metrics"] == {"loss": 1.25}
    assert sft["digest"] == start["digest"] == stages["sft"].digest_all
    data = graph["artifacts"][f"data/{sft['inputs']['data']['key']}"]
    assert data["inputs"] == {"file": {"digest": "a" * 64, "source": "file pairs.jsonl.gz"}}


def test_stage_that_was_removed_is_told(store, stages):
    shutil.rmtree(stages["sft"].folder)
    graph = lineage(store, stages["ppo"])
    assert graph.missing == {("sft", stages["sft"].key)}
    assert graph.as_json()["missing"] == [f"sft/{stages['sft'].key}"]
    assert "no longer in the store" in render_text(graph)
    assert "no longer in the store" in render_picture(graph)


@pytest.fixture
def ranked(store):
    """A preferences artifact with two rankings, one of them with a tie."""
    rankings = [
        Ranking(
            annotation_id=f"a{number}",
            prompt_id="p1",
            labeler=labeler,
            response_ids=("r1", "r2", "r3"),
            tiers=tiers,
        )
        for number, (labeler, tiers) in enumerate((("ada", (2, 0, 1)), ("bo", (0, 0, 1))))
    ]
    request = StageRequest(stage="preferences", stage_version=1)
    with store.open_stage(request, run="one") as workspace:
        write_records(workspace.output("rankings.parquet"), rankings, Ranking)
        return workspace.commit(outputs=["rankings.parquet"])


def test_each_ranking_behind_a_policy_is_listed(store, ranked):
    judge = make_stage(store, "reward_model", {"rankings": ranked.reference()}, "judge")
    graph = lineage(store, make_stage(store, "ppo", {"judge": judge.reference()}, "ppo"))
    lines = render_text(graph, rankings=True).splitlines()
    assert [line.strip(" │") for line in lines if "ranked" in line] == [
        "ada ranked p1: r2 > r3 > r1",
        "bo ranked p1: r1 = r2 > r3",
    ]
    assert "ranked" not in render_text(graph)
    (node,) = [n for n in graph.as_json(rankings=True)["artifacts"].values() if "rankings" in n]
    assert node["stage"] == "preferences"
    assert [r["annotation_id"] for r in node["rankings"]] == ["a0", "a1"]


def test_picture_is_whole_xml_and_hostile_names_stay_text(store, stages):
    hostile = InputReference(digest="c" * 64, source="file <script>alert(1)</script>&.jsonl")
    end = make_stage(
        store, "evaluation", {"policy": stages["ppo"].reference(), "extra": hostile}, "end"
    )
    root = ElementTree.fromstring(render_picture(lineage(store, end)))
    names = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "name"]
    assert sorted(names) == sorted([*stages, "evaluation", "file", "rankings", "extra"])
    arrows = [path.find(f"{SVG}title").text for path in root.iter(f"{SVG}path") if len(path)]
    assert sorted(arrows) == sorted(
        ["data", "file", "start", "prompts", "preferences", "sft", "rankings", "policy", "extra"]
    )
    assert not list(root.iter(f"{SVG}script"))


def test_picture_reads_from_left_to_right_and_boxes_do_not_overlap(store, stages):
    root = ElementTree.fromstring(render_picture(lineage(store, stages["ppo"])))
    corners = {}
    for group in root.iter(f"{SVG}g"):
        box = group.find(f"{SVG}rect")
        corners[group.find(f"{SVG}text").text] = (float(box.get("x")), float(box.get("y")))
    assert corners["data"] < corners["sft"] < corners["preferences"] < corners["ppo"]
    assert corners["rankings"][0] < corners["preferences"][0]
    assert len(set(corners.values())) == len(corners)


def test_run_ends_are_what_no_other_stage_read(store, stages, tmp_path):
    config = PipelineConfig(run=RunConfig(name="one", store=store.root, runs=tmp_path / "runs"))
    with open_run(config, RunOptions()) as record:
        for artifact in stages.values():
            record.finish_stage(artifact, reused=False)
        record.begin_stage("evaluation", "f" * 64, "never run")
    assert [end.stage for end in run_lineage(store, record.folder).ends] == ["ppo"]


def test_command_writes_text_json_and_picture(store, stages, tmp_path, capsys):
    runs = tmp_path / "runs"
    config = PipelineConfig(run=RunConfig(name="one", store=store.root, runs=runs))
    with open_run(config, RunOptions()) as record:
        for artifact in stages.values():
            record.finish_stage(artifact, reused=False)
    command = ["lineage", "one", "--runs", str(runs)]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("ppo ")
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ends"] == [f"ppo/{stages['ppo'].key}"]
    assert main([*command, "--picture", str(tmp_path / "lineage.svg")]) == 0
    assert capsys.readouterr().out.startswith("4 artifacts drawn in ")
    assert ElementTree.parse(tmp_path / "lineage.svg").getroot().tag == f"{SVG}svg"
    assert main([*command, "--picture", str(tmp_path / "absent" / "lineage.svg")]) == 1
    assert "in a folder that exists" in capsys.readouterr().err


def test_unknown_run_names_the_known_ones(store, tmp_path):
    config = PipelineConfig(run=RunConfig(name="one", store=store.root, runs=tmp_path / "runs"))
    with open_run(config, RunOptions()):
        pass
    with pytest.raises(StoreError, match=r"no run 'two' in .*; runs there: one"):
        run_lineage(store, tmp_path / "runs" / "two")


COUNTED = """
import json, sys
from pathlib import Path
from flows.lineage import lineage
from flows.store import ArtifactStore
from benchmarks.store import many_artifacts, requests

store = ArtifactStore(Path(sys.argv[1]))
made = many_artifacts(store, 1000)
opened, counting = [], False
sys.addaudithook(lambda e, a: counting and e == "open" and opened.append(str(a[0])))
counting = True
graph = lineage(store, made[-1])
walked = len(opened)
for request in requests(100, made):
    assert store.lookup(request) is not None
counting = False
print(json.dumps([len(graph.artifacts), walked, len(opened) - walked]))
"""


def test_a_thousand_artifacts_cost_one_open_each_and_a_look_up_one(tmp_path):
    """Each stage reads three earlier ones: by paths instead of stages, the walk would not end."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    artifacts, walked, looked_up = json.loads(done.stdout)
    assert artifacts == 1000
    assert walked == 999
    assert looked_up == 100
