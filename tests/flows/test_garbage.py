"""Cleaning a store: what no run needs goes; lineages, unfinished work and labels stay."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from alignment.config import PipelineConfig, RunConfig
from alignment.errors import StoreError
from flows.cli import main
from flows.garbage import cleaning, look_through, remove
from flows.manifest import InputReference, StageRequest
from flows.run_record import RunOptions, open_run
from flows.store import ArtifactStore


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def run(store, tmp_path):
    """Does stages one after the other, each reading the one before it, as a named run."""

    def do(name, *texts, runs="runs", unfinished=False):
        folder = tmp_path / runs
        config = PipelineConfig(run=RunConfig(name=name, store=store.root, runs=folder))
        made = []
        with open_run(config, RunOptions()) as record:
            for stage, text in zip(("data", "sft", "ppo"), texts, strict=False):
                inputs = {"before": made[-1].reference()} if made else {}
                request = StageRequest(
                    stage=stage, stage_version=1, settings={"text": text}, inputs=inputs
                )
                artifact = store.lookup(request)
                reused = artifact is not None
                record.begin_stage(stage, request.key, "never run")
                if artifact is None:
                    with store.open_stage(request, run=name) as workspace:
                        workspace.output("out").write_text(text * 100)
                        if unfinished and text == texts[-1]:
                            (workspace.checkpoints / "step-1").write_text("state")
                            break
                        artifact = workspace.commit(outputs=["out"])
                record.finish_stage(artifact, reused=reused)
                made.append(artifact)
        return made

    return do


def clean(store, **options):
    return remove(store, look_through(store, **options))


def test_nothing_goes_while_every_run_exists(store, run):
    run("one", "a", "b", "c")
    run("two", "a", "B", "C")
    assert {item.why for item in look_through(store)} == {"needed"}
    assert clean(store) == []


def test_only_what_a_deleted_run_alone_needed_goes(store, run, tmp_path):
    kept = run("one", "a", "b", "c")
    gone = run("two", "a", "B", "C")
    shutil.rmtree(tmp_path / "runs" / "two")
    removed = clean(store)
    assert {item.folder for item in removed} == {a.folder for a in gone[1:]}
    assert all(item.run == "two" and item.bytes > 100 for item in removed)
    assert not any(artifact.folder.exists() for artifact in gone[1:])
    for artifact in kept:
        assert store.get(artifact.stage, artifact.key) == artifact
    assert clean(store) == []


def test_stages_that_a_run_reads_without_having_recorded_them_stay(store, run, tmp_path):
    """The lineage decides, not the list of a run's own stages."""
    first = run("one", "a", "b")
    request = StageRequest(
        stage="evaluation", stage_version=1, inputs={"policy": first[1].reference()}
    )
    config = PipelineConfig(run=RunConfig(name="two", store=store.root, runs=tmp_path / "runs"))
    with open_run(config, RunOptions()) as record, store.open_stage(request, run="two") as work:
        work.output("out").write_text("verdict")
        record.finish_stage(work.commit(outputs=["out"]), reused=False)
    shutil.rmtree(tmp_path / "runs" / "one")
    assert clean(store) == []


def test_unfinished_stages_and_their_inputs_stay_unless_asked_for(store, run, tmp_path):
    made = run("one", "a", "b", "c", unfinished=True)
    shutil.rmtree(tmp_path / "runs" / "one")
    whys = {item.stage: item.why for item in look_through(store)}
    assert whys == {"data": "needed", "sft": "needed", "ppo": "unfinished"}
    assert clean(store) == []
    assert len(clean(store, unfinished=True)) == len(made) + 1


def test_an_interrupted_stage_that_a_run_is_on_always_stays(store, run):
    run("one", "a", "b", "c", unfinished=True)
    assert clean(store, unfinished=True) == []


HOLDER = """
    import sys
    from pathlib import Path
    from flows.manifest import StageRequest
    from flows.store import ArtifactStore

    request = StageRequest(stage="sft", stage_version=1, seed=7)
    with ArtifactStore(Path(sys.argv[1])).open_stage(request):
        print("working", flush=True)
        sys.stdin.readline()
"""


def test_stage_held_by_a_process_stays(store):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "working\n"
        assert [item.removable for item in look_through(store, unfinished=True)] == [True]
        assert clean(store, unfinished=True) == []
    finally:
        process.communicate("end\n")
    assert len(clean(store, unfinished=True)) == 1


def test_run_at_work_and_cleaning_exclude_each_other(store, tmp_path):
    config = PipelineConfig(run=RunConfig(name="one", store=store.root, runs=tmp_path / "runs"))
    with (
        open_run(config, RunOptions()),
        pytest.raises(StoreError, match="a run is at work"),
        cleaning(store),
    ):
        pass
    with (
        cleaning(store),
        pytest.raises(StoreError, match="is being cleaned"),
        open_run(config, RunOptions()),
    ):
        pass
    with open_run(config, RunOptions()):
        pass


def test_stages_of_a_run_without_a_note_stay(store, run, tmp_path):
    run("one", "a", "b")
    shutil.rmtree(store.root / "runs")
    shutil.rmtree(tmp_path / "runs")
    assert {item.why for item in look_through(store)} == {"unknown run"}
    assert len(clean(store, forget=["one"])) == 2


def test_runs_elsewhere_are_known_from_the_store(store, run, tmp_path):
    run("one", "a", "b", runs="elsewhere")
    assert clean(store, runs=[tmp_path / "runs"]) == []


def test_run_whose_folder_is_out_of_sight_is_not_taken_for_deleted(store, run, tmp_path):
    run("one", "a", "b")
    os.rename(tmp_path / "runs", tmp_path / "not-mounted")
    with pytest.raises(StoreError, match=r"cannot be seen from here.*--forget one"):
        look_through(store)
    os.rename(tmp_path / "not-mounted", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "one")
    (note,) = (store.root / "runs").iterdir()
    note.write_text(json.dumps(json.loads(note.read_text()) | {"host": "another"}))
    with pytest.raises(StoreError, match="host another"):
        look_through(store)


def test_damaged_record_stops_the_cleaning(store, run, tmp_path):
    run("one", "a", "b")
    (tmp_path / "runs" / "one" / "run.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        look_through(store)


def test_what_a_killed_removal_left_goes_the_next_time(store, run):
    made = run("one", "a", "b")
    left = made[0].folder.with_name(".removed-0123")
    shutil.copytree(made[0].folder, left)
    assert [item.folder for item in clean(store)] == [left]
    assert not left.exists()


def test_command_says_what_and_how_many_bytes_and_leaves_labels(store, run, tmp_path, capsys):
    run("one", "a", "b")
    gone = run("two", "a", "B")[1]
    labels = store.root / "labels" / "labels.sqlite"
    labels.parent.mkdir()
    labels.write_text("rankings")
    shutil.rmtree(tmp_path / "runs" / "two")
    weight = sum(p.stat().st_size for p in gone.folder.rglob("*") if p.is_file())
    command = ["store", "gc", "--store", str(store.root)]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"would remove sft {gone.key[:16]}, {weight} bytes, made {gone.created}" in shown
    assert f"1 stages would be removed, {weight} bytes" in shown
    assert gone.folder.exists()
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"1 stages removed, {weight} bytes" in shown
    assert "2 in the lineage of a run that exists" in shown
    assert not gone.folder.exists()
    assert labels.read_text() == "rankings"
    assert main([*command[:3], str(tmp_path / "absent")]) == 1
    assert not (tmp_path / "absent").exists()


def test_input_that_no_stage_made_is_no_obstacle(store, tmp_path):
    request = StageRequest(
        stage="data", stage_version=1, inputs={"f": InputReference(digest="a" * 64, source="f")}
    )
    config = PipelineConfig(run=RunConfig(name="one", store=store.root, runs=tmp_path / "runs"))
    with open_run(config, RunOptions()) as record:
        record.begin_stage("data", request.key, "never run")
        with store.open_stage(request, run="one"):
            pass
    assert clean(store, unfinished=True) == []
