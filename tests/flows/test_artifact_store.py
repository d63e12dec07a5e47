"""The artifact store: keys, reuse, damage, leases, kills and full disks."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from alignment.config import OptimizerConfig, SFTConfig
from alignment.errors import StoreError
from flows.manifest import InputReference, StageRequest, digest_file, stage_key
from flows.reuse import reason_to_reuse, reason_to_work
from flows.store import ArtifactStore
from flows.workspace import StageWorkspace

DATA = InputReference(digest="d" * 64, source="pairs.jsonl")


def make_request(**overrides):
    values = {
        "stage": "sft",
        "stage_version": 1,
        "settings": SFTConfig(),
        "inputs": {"data": DATA},
        "seed": 0,
    }
    return StageRequest(**(values | overrides))


def finish(store, request, run="one", folder="model", weights="weights.bin"):
    with store.open_stage(request, run=run) as workspace:
        model = workspace.output(folder)
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / weights).write_bytes(bytes(range(256)))
        workspace.output("report.txt").write_text("fine")
        return workspace.commit(outputs=[folder, "report.txt"], metrics={"loss": 1.5})


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def test_key_ignores_spelling_but_not_values():
    settings = {"rate": 1.0, "betas": (0.9, 0.95), "path": Path("a//b/")}
    same = {"path": "a/b", "betas": [0.9, 0.95], "rate": 1}
    key = stage_key("sft", 1, settings, {"data": "d"}, 0)
    assert key == stage_key("sft", 1, same, {"data": "d"}, 0)
    assert len(key) == 64
    others = [
        stage_key("ppo", 1, settings, {"data": "d"}, 0),
        stage_key("sft", 2, settings, {"data": "d"}, 0),
        stage_key("sft", 1, settings | {"rate": 1.0000001}, {"data": "d"}, 0),
        stage_key("sft", 1, settings | {"rate": True}, {"data": "d"}, 0),
        stage_key("sft", 1, settings, {"data": "e"}, 0),
        stage_key("sft", 1, settings, {"date": "d"}, 0),
        stage_key("sft", 1, settings, {"data": "d"}, 1),
    ]
    assert len({key, *others}) == len(others) + 1


def test_key_is_the_digest_of_json_anyone_can_write():
    # A change of spelling would orphan every store there is.
    spelled = (
        '{"inputs":{"data":"d"},"seed":3,"settings":{"name":"é","rate":4e-05},'
        '"stage":"sft","stage_version":1}'
    )
    expected = hashlib.sha256(spelled.encode()).hexdigest()
    assert stage_key("sft", 1, {"rate": 4e-5, "name": "é"}, {"data": "d"}, 3) == expected


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), {1: "a"}])
def test_key_refuses_what_has_no_one_spelling(value):
    with pytest.raises(TypeError):
        stage_key("sft", 1, {"value": value}, {}, 0)


def test_where_an_input_was_found_does_not_change_the_key():
    moved = replace(DATA, source="elsewhere/pairs.jsonl")
    assert make_request().key == make_request(inputs={"data": moved}).key


def test_finished_stage_is_found_again_with_everything(store):
    request = make_request()
    assert store.lookup(request) is None
    artifact = finish(store, request)
    found = ArtifactStore(store.root).lookup(request, verify=True)
    assert found == artifact
    assert found.path("model").is_dir()
    assert found.path("report.txt").read_text() == "fine"
    assert found.digest("report.txt") == digest_file(found.path("report.txt"))
    assert found.settings["optimizer"]["learning_rate"] == 4e-5
    assert found.inputs["data"].source == "pairs.jsonl"
    assert found.metrics == {"loss": 1.5}
    assert found.run == "one"
    assert found.versions["python"]


def test_store_may_be_moved(store, tmp_path):
    request = make_request()
    finish(store, request)
    moved = ArtifactStore(shutil.move(store.root, tmp_path / "moved"))
    assert moved.lookup(request, verify=True).path("model").is_relative_to(moved.root)


def test_digest_of_a_folder_depends_on_names_and_contents_alone(store):
    first = finish(store, make_request())
    second = finish(store, make_request(seed=1))
    assert first.digest("model") == second.digest("model")
    assert first.digest_all == second.digest_all
    assert first.digest("model") != first.digest_all
    renamed = finish(store, make_request(seed=2), folder="policy")
    assert renamed.digest("policy") == first.digest("model")
    assert renamed.digest_all != first.digest_all
    other_file = finish(store, make_request(seed=3), weights="other.bin")
    assert other_file.digest("model") != first.digest("model")


def test_unknown_output_names_those_there_are(store):
    artifact = finish(store, make_request())
    with pytest.raises(StoreError, match=r"no output 'mode'; it has model, report\.txt"):
        artifact.path("mode")


def test_metrics_that_are_not_finite_become_null(store):
    with store.open_stage(make_request()) as workspace:
        workspace.output("a").write_text("a")
        artifact = workspace.commit(outputs=["a"], metrics={"x": float("nan"), "y": [1.0]})
    assert artifact.metrics == {"x": None, "y": [1.0]}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b"short"), "has 5 bytes, the manifest says 256"),
    ],
)
def test_missing_or_cut_file_is_named(store, damage, words):
    request = make_request()
    path = finish(store, request).path("model") / "weights.bin"
    damage(path)
    with pytest.raises(StoreError, match=words) as error:
        store.lookup(request)
    assert str(path) in str(error.value)
    assert "delete the folder" in str(error.value)


def test_changed_byte_is_found_by_verify_only(store):
    request = make_request()
    path = finish(store, request).path("model") / "weights.bin"
    path.write_bytes(bytes(256))
    assert store.lookup(request) is not None
    with pytest.raises(StoreError, match="another digest"):
        store.lookup(request, verify=True)


def test_half_a_manifest_is_refused_by_name(store):
    request = make_request()
    manifest = finish(store, request).folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read"):
        store.lookup(request)


def test_another_stage_in_the_folder_is_refused(store):
    artifact = finish(store, make_request())
    other = make_request(seed=1)
    artifact.folder.rename(store.folder("sft", other.key))
    with pytest.raises(StoreError, match="not sft"):
        store.lookup(other)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (["model"], "undeclared outputs: report.txt"),
        (["model", "report.txt", "extra"], "did not write its output extra"),
    ],
)
def test_outputs_are_those_declared(store, outputs, words):
    request = make_request()
    with store.open_stage(request) as workspace:
        workspace.output("model").mkdir()
        (workspace.output("model") / "a").write_text("a")
        workspace.output("report.txt").write_text("fine")
        with pytest.raises(StoreError, match=words):
            workspace.commit(outputs=outputs)
    assert store.lookup(request) is None


def test_link_out_of_the_store_is_refused(store, tmp_path):
    (tmp_path / "elsewhere").write_text("a")
    with store.open_stage(make_request()) as workspace:
        workspace.output("a").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="links"):
            workspace.commit(outputs=["a"])


def test_interrupted_work_keeps_checkpoints_and_journal_but_no_outputs(store):
    request = make_request()
    with pytest.raises(ZeroDivisionError):
        _fail_half_way(store, request)
    assert store.lookup(request) is None
    assert store.is_interrupted(request)
    with store.open_stage(request) as workspace:
        assert (workspace.checkpoints / "step-3").read_text() == "state"
        assert (workspace.journal / "steps.jsonl").exists()
        assert not workspace.output("half").exists()
        workspace.output("whole").write_text("whole")
        artifact = workspace.commit(outputs=["whole"])
    assert not (artifact.folder / "checkpoints").exists()
    assert (artifact.folder / "journal" / "steps.jsonl").exists()
    assert not store.is_interrupted(request)


def _fail_half_way(store, request):
    with store.open_stage(request) as workspace:
        (workspace.checkpoints / "step-3").write_text("state")
        (workspace.journal / "steps.jsonl").write_text("{}\n")
        workspace.output("half").write_text("half")
        raise ZeroDivisionError


def test_finished_stage_is_not_opened_again(store):
    request = make_request()
    finish(store, request)
    with pytest.raises(StoreError, match="was finished by another process"):
        finish(store, request)


@pytest.mark.parametrize("schema", [0, 99])
def test_older_and_newer_schemas_are_refused(tmp_path, schema):
    root = tmp_path / "store"
    ArtifactStore(root)
    (root / "schema.json").write_text(f'{{"alignflow_store": {schema}}}')
    with pytest.raises(StoreError, match=f"schema {schema}, this version reads schema 1"):
        ArtifactStore(root)


def test_folder_of_stages_without_a_schema_is_refused(tmp_path):
    root = tmp_path / "store"
    ArtifactStore(root)
    (root / "schema.json").unlink()
    (root / "stages").mkdir()
    with pytest.raises(StoreError, match="schema missing"):
        ArtifactStore(root)


def test_file_in_place_of_the_store_is_named(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match=r"run\.store"):
        ArtifactStore(tmp_path / "store")


WORKER = """
    import sys, time
    from pathlib import Path
    from flows.manifest import InputReference, StageRequest
    from flows.store import ArtifactStore

    request = StageRequest(stage="sft", stage_version=1, seed=7)
    with ArtifactStore(Path(sys.argv[1])).open_stage(request) as workspace:
        (workspace.checkpoints / "step-1").write_text("state")
        workspace.output("model").write_text("half")
        print("working", flush=True)
        sys.stdin.readline()
        if sys.argv[2] == "commit":
            workspace.commit(outputs=["model"])
"""


@pytest.fixture
def worker(store):
    """Starts a real second process that holds a stage until it is told to go on or killed."""
    started = []

    def start(end):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER), str(store.root), end],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "working\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_second_process_is_refused_and_told_who_works(store, worker):
    process = worker("commit")
    request = StageRequest(stage="sft", stage_version=1, seed=7)
    with (
        pytest.raises(StoreError, match=f"process {process.pid} since 20") as error,
        store.open_stage(request),
    ):
        pass
    assert "run the same command again" in str(error.value)
    process.communicate("go on\n")
    assert process.returncode == 0
    assert store.lookup(request).path("model").read_text() == "half"


def test_killed_process_leaves_no_manifest_and_no_lease(store, worker):
    process = worker("commit")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    request = StageRequest(stage="sft", stage_version=1, seed=7)
    assert store.lookup(request) is None
    assert reason_to_work(store, request, None) == "resumed: begun earlier and not finished"
    with store.open_stage(request) as workspace:
        assert (workspace.checkpoints / "step-1").read_text() == "state"
        assert not workspace.output("model").exists()


def test_full_disk_is_told_and_loses_nothing_finished(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small file system can be mounted only by root with that capability")
    try:
        store = ArtifactStore(mount / "store")
        first, second = make_request(), make_request(seed=1)
        finish(store, first)
        with pytest.raises(StoreError, match="No space left") as error:
            _fill(store, second)
        assert "make room" in str(error.value)
        assert store.lookup(first, verify=True) is not None
        assert store.lookup(second) is None
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def _fill(store, request):
    with store.open_stage(request) as workspace:
        (workspace.checkpoints / "step-1").write_bytes(b"state")
        workspace.output("model").write_bytes(bytes(1 << 20))


def test_manifest_that_cannot_be_written_leaves_the_stage_unfinished(store, monkeypatch):
    request = make_request()
    with store.open_stage(request) as workspace:
        workspace.output("model").write_text("whole")
        monkeypatch.setattr("flows.durable.json.dump", _write_half_then_fail)
        with pytest.raises(StoreError, match="make room"):
            workspace.commit(outputs=["model"])
        monkeypatch.undo()
        assert store.lookup(request) is None
        assert not list(workspace.folder.glob(".*.json.*"))
        workspace.commit(outputs=["model"])
    assert store.lookup(request) is not None


def _write_half_then_fail(value, file, **options):
    file.write("{")
    raise OSError(28, "No space left on device")


def test_reasons(store):
    request = make_request()
    assert reason_to_work(store, request, None) == "never run"
    finish(store, request)
    changed = SFTConfig(optimizer=OptimizerConfig(learning_rate=1e-5), epochs=3)
    cases = {
        "redone: setting epochs 2 -> 3; setting optimizer.learning_rate 4e-05 -> 1e-05": (
            make_request(settings=changed)
        ),
        "redone: stage_version 1 -> 2": make_request(stage_version=2),
        "redone: seed 0 -> 5": make_request(seed=5),
        "redone: input data pairs.jsonl dddddddd -> eeeeeeee": make_request(
            inputs={"data": InputReference(digest="e" * 64)}
        ),
        "redone: input data removed, was pairs.jsonl dddddddd; "
        "input tables added: pairs.jsonl dddddddd": make_request(inputs={"tables": DATA}),
    }
    for reason, wanted in cases.items():
        assert reason_to_work(store, wanted, request.key) == reason
    shutil.rmtree(store.folder("sft", request.key))
    gone = "redone: the earlier result is no longer in the store"
    assert reason_to_work(store, request, request.key) == gone
    assert reason_to_work(store, make_request(seed=9), request.key) == gone


def test_reason_follows_a_changed_input_down_to_what_changed_first(store):
    def chain(rows, epochs, text):
        data = make_request(stage="data", settings={"rows": rows}, inputs={})
        with store.open_stage(data) as workspace:
            workspace.output("table").write_text(f"{rows} rows")
            made = workspace.commit(outputs=["table"])
        sft = make_request(settings={"epochs": epochs}, inputs={"data": made.reference()})
        with store.open_stage(sft) as workspace:
            workspace.output("model").write_text(text)
            trained = workspace.commit(outputs=["model"])
        return made, trained, make_request(stage="ppo", inputs={"sft": trained.reference()})

    old_data, old_sft, before = chain(10, 2, "old")
    finish(store, before)
    new_data, new_sft, after = chain(20, 3, "new")
    assert reason_to_work(store, after, before.key) == (
        f"redone: input sft {old_sft.digest_all[:8]} -> {new_sft.digest_all[:8]} "
        f"(its input data {old_data.digest_all[:8]} -> {new_data.digest_all[:8]} "
        "(its setting rows 10 -> 20) and 1 more)"
    )
    shutil.rmtree(old_sft.folder)
    assert reason_to_work(store, after, before.key) == (
        f"redone: input sft {old_sft.digest_all[:8]} -> {new_sft.digest_all[:8]}"
    )


def test_reason_to_reuse_says_what_is_equal_and_who_made_it(store):
    artifact = finish(store, make_request(stage_version=4), run="one")
    assert reason_to_reuse(artifact, "two") == (
        "reused: settings, inputs, seed and stage_version 4 equal those of run one, "
        f"made {artifact.created}"
    )
    assert "equal those of this run," in reason_to_reuse(artifact, "one")


def test_workspace_is_made_for_one_request(store):
    request = make_request()
    with store.open_stage(request, run="two") as workspace:
        assert isinstance(workspace, StageWorkspace)
        assert workspace.request is request
        assert workspace.folder == store.folder("sft", request.key)
