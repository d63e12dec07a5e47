"""A store on S3: published with the manifest last, fetched whole, broken in every way.

The server is moto's, with real sockets on loopback; a proxy of the test's own cuts connections.
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

import pytest
from pyarrow import fs
from pydantic import ValidationError
from s3_server import point_to, s3_server

from alignment.config import ClusterConfig, RunConfig
from alignment.errors import StoreError
from flows.engines import why_no_several_machines
from flows.lineage import lineage
from flows.manifest import StageRequest
from flows.remote_store import RemoteStore
from flows.shared_store import SharedStore, open_store

URL = "s3://bucket/store"


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


def ask(server, path, body=b""):
    """Send moto's own interface an order."""
    url, headers = f"http://{server}/moto-api/{path}", {"Content-Type": "text/plain"}
    order = urllib.request.Request(url, data=body, headers=headers, method="POST")
    urllib.request.urlopen(order, timeout=10).read()


@pytest.fixture
def bucket(server, monkeypatch):
    """The bucket's file system, empty; what runs in this test finds it by the environment."""
    ask(server, "reset")
    point_to(monkeypatch, server)
    files = fs.S3FileSystem(
        endpoint_override=server, scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    files.create_dir("bucket")
    return files


def names(bucket):
    found = bucket.get_file_info(fs.FileSelector("bucket/store", recursive=True))
    return sorted(f.path.removeprefix("bucket/store/") for f in found if f.is_file)


def machine(tmp_path, name):
    """The store as a machine of its own sees it: its own folder, the same bucket."""
    return SharedStore(tmp_path / name / "store", RemoteStore(URL))


def request_for(text="weights", stage="sft", **inputs):
    return StageRequest(stage=stage, stage_version=1, settings={"text": text}, inputs=inputs)


def finish(store, request, text="weights", size=1000):
    with store.open_stage(request, run="one") as workspace:
        workspace.output("model").mkdir()
        (workspace.output("model") / "weights.bin").write_bytes(text.encode() * size)
        workspace.output("empty").write_bytes(b"")
        (workspace.checkpoints / "step-1").write_text("state")
        return workspace.commit(outputs=["model", "empty"])


def test_what_one_machine_finished_another_one_reuses(bucket, tmp_path):
    here, there = machine(tmp_path, "here"), machine(tmp_path, "there")
    assert there.lookup(request_for()) is None
    made = finish(here, request_for())
    assert names(bucket) == sorted(
        [
            "schema.json",
            f"stages/sft/{made.key[:16]}/manifest.json",
            *(f"objects/{o.sha256[:2]}/{o.sha256}" for o in made.outputs.values()),
        ]
    )
    found = there.lookup(request_for(), verify=True)
    assert found.folder == there.folder("sft", made.key)
    assert found.digest_all == made.digest_all
    assert (found.path("model") / "weights.bin").read_bytes() == b"weights" * 1000
    assert there.lookup(request_for(), verify=True) == found


def test_lineage_reaches_what_only_the_bucket_has(bucket, tmp_path):
    here, there = machine(tmp_path, "here"), machine(tmp_path, "there")
    data = finish(here, request_for("data", "data"), "data")
    finish(here, request_for("sft", "sft", data=data.reference()), "sft")
    sft = there.lookup(request_for("sft", "sft", data=data.reference()))
    graph = lineage(there, sft)
    assert not graph.missing
    assert {stage for stage, _ in graph.artifacts} == {"data", "sft"}
    assert not there.folder("data", data.key).exists()


def test_the_same_file_is_published_once(bucket, tmp_path, monkeypatch):
    store = machine(tmp_path, "here")
    finish(store, request_for())
    written = []
    write = RemoteStore._put_object
    monkeypatch.setattr(
        RemoteStore, "_put_object", lambda *a: (written.append(a[1].name), write(*a))
    )
    before = len(names(bucket))
    other = StageRequest(stage="sft", stage_version=2)
    finish(store, other)
    assert len(written) == 2
    assert len(names(bucket)) == before + 1  # its manifest


class CuttingProxy:
    """Passes bytes on to `target`, and breaks every connection after `limit` bytes of `cut`."""

    def __init__(self, target: str, *, cut: str, limit: int) -> None:
        host, port = target.split(":")
        self.target, self.cut, self.limit = (host, int(port)), cut, limit
        self.left = limit
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.target)
                for source, sink, name in (
                    (client, server, "requests"),
                    (server, client, "answers"),
                ):
                    threading.Thread(
                        target=self._pass, args=(source, sink, name), daemon=True
                    ).start()

    def _pass(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with suppress(OSError), closing(source), closing(sink):
            while block := source.recv(65536):
                if name == self.cut:
                    self.left -= len(block)
                    if self.left < 0:
                        for end in (source, sink):
                            end.shutdown(socket.SHUT_RDWR)
                        return
                sink.sendall(block)

    def close(self) -> None:
        self.listener.close()


def test_upload_that_is_cut_commits_nothing_and_the_next_look_up_publishes(
    bucket, server, tmp_path, monkeypatch
):
    proxy = CuttingProxy(server, cut="requests", limit=1 << 20)
    point_to(monkeypatch, proxy.address)
    store = machine(tmp_path, "here")
    with pytest.raises(StoreError, match=r"publishing sft, file model/weights\.bin failed") as told:
        finish(store, request_for(), size=1 << 19)
    proxy.close()
    assert "run the same command again" in str(told.value)
    assert not any("manifest" in name for name in names(bucket))
    point_to(monkeypatch, server)
    assert machine(tmp_path, "there").lookup(request_for()) is None
    again = machine(tmp_path, "here")
    assert again.lookup(request_for()) is not None
    assert machine(tmp_path, "there").lookup(request_for(), verify=True) is not None


def test_download_that_is_cut_leaves_no_stage_behind(bucket, server, tmp_path, monkeypatch):
    finish(machine(tmp_path, "here"), request_for(), size=1 << 19)
    proxy = CuttingProxy(server, cut="answers", limit=1 << 20)
    point_to(monkeypatch, proxy.address)
    there = machine(tmp_path, "there")
    with pytest.raises(StoreError, match=r"fetching sft, file model/weights\.bin failed"):
        there.lookup(request_for())
    proxy.close()
    assert not list((there.root / "stages").rglob("*.bin"))
    assert not list((there.root / "stages").rglob("manifest.json"))
    point_to(monkeypatch, server)
    assert machine(tmp_path, "there").lookup(request_for(), verify=True) is not None


def test_shorter_object_of_a_broken_upload_is_replaced(bucket, tmp_path):
    digest = hashlib.sha256(b"whole content").hexdigest()
    with bucket.open_output_stream(f"bucket/store/objects/{digest[:2]}/{digest}") as stream:
        stream.write(b"whole")
    with machine(tmp_path, "here").open_stage(request_for()) as workspace:
        workspace.output("a").write_bytes(b"whole content")
        workspace.commit(outputs=["a"])
    there = machine(tmp_path, "there").lookup(request_for(), verify=True)
    assert there.path("a").read_bytes() == b"whole content"


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damaged_object_is_named_and_nothing_is_kept(bucket, tmp_path, damage):
    made = finish(machine(tmp_path, "here"), request_for())
    digest = made.outputs["model/weights.bin"].sha256
    path = f"bucket/store/objects/{digest[:2]}/{digest}"
    if damage == "missing":
        bucket.delete_file(path)
    else:
        with bucket.open_output_stream(path) as stream:
            stream.write(b"WEIGHTS" * 1000)
    there = machine(tmp_path, "there")
    with pytest.raises(StoreError, match=rf"is damaged: {path}, file model/weights\.bin of sft"):
        there.lookup(request_for())
    assert not list((there.root / "stages").rglob("weights.bin"))


def test_two_machines_with_two_results_are_told(bucket, tmp_path):
    here, there = machine(tmp_path, "here"), machine(tmp_path, "there")
    folder = there.folder("sft", request_for().key)
    with pytest.raises(StoreError, match="two machines did the same work") as told:
        _finish_while_another_does(there, here)
    assert f"delete {folder} and run again" in str(told.value)
    shutil.rmtree(folder)
    found = there.lookup(request_for(), verify=True)
    assert (found.path("model") / "weights.bin").read_bytes() == b"one result" * 1000


def _finish_while_another_does(store, another):
    with store.open_stage(request_for(), run="two") as workspace:
        finish(another, request_for(), "one result")
        workspace.output("model").write_text("another result")
        workspace.commit(outputs=["model"])


def test_a_stage_that_is_being_fetched_is_waited_for_and_fetched_once(bucket, tmp_path):
    """Two jobs on one machine begin at the same time, on the same inputs."""
    finish(machine(tmp_path, "here"), request_for())
    one, two = machine(tmp_path, "there"), machine(tmp_path, "there")
    begun, go_on = threading.Event(), threading.Event()
    fetch, found = one.remote.fetch, []
    one.remote.fetch = lambda there: (begun.set(), go_on.wait(20), fetch(there))[2]
    fetching = threading.Thread(target=lambda: found.append(one.lookup(request_for())))
    fetching.start()
    assert begun.wait(20)
    threading.Timer(0.5, go_on.set).start()
    two.remote.fetch = None
    found.append(two.lookup(request_for(), verify=True))
    fetching.join(20)
    assert found[0] == found[1]


def test_server_that_is_away(bucket, server, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    point_to(monkeypatch, address)
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"opening it failed.*see that the server is up") as told:
        machine(tmp_path, "here")
    assert time.monotonic() - started < 30
    assert "AWS_ENDPOINT_URL" in str(told.value)


def test_wrong_credentials(bucket, server, tmp_path, monkeypatch):
    ask(server, "reset-auth", b"0")  # from now on each request needs a user that exists
    try:
        with pytest.raises(
            StoreError, match=r"opening it failed.*check the AWS credentials"
        ) as told:
            machine(tmp_path, "here")
        assert "secret" not in str(told.value)
    finally:
        ask(server, "reset-auth", b"inf")


def test_bucket_that_is_not_there(bucket, tmp_path):
    with pytest.raises(StoreError, match="there is no bucket elsewhere; make it"):
        RemoteStore("s3://elsewhere/store")


@pytest.mark.parametrize("content", [b'{"alignflow_shared_store": 0}', b"{"])
def test_another_schema_is_refused(bucket, tmp_path, content):
    machine(tmp_path, "here")
    with bucket.open_output_stream("bucket/store/schema.json") as stream:
        stream.write(content)
    with pytest.raises(StoreError, match=r"has schema (0|unreadable), this version reads schema 1"):
        machine(tmp_path, "here")


PUBLISHER = """
    import sys
    from pathlib import Path
    from flows.manifest import StageRequest
    from flows.remote_store import RemoteStore
    from flows.shared_store import SharedStore

    store = SharedStore(Path(sys.argv[1]), RemoteStore("s3://bucket/store"))
    put = RemoteStore._put_object
    def put_and_tell(*arguments):
        put(*arguments)
        print("put", flush=True)
        sys.stdin.readline()
    RemoteStore._put_object = put_and_tell
    request = StageRequest(stage="sft", stage_version=1, settings={"text": "weights"})
    with store.open_stage(request) as workspace:
        workspace.output("a").write_text("a")
        workspace.output("b").write_text("b")
        workspace.commit(outputs=["a", "b"])
"""


def test_process_killed_between_two_files_has_published_nothing(bucket, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PUBLISHER), str(tmp_path / "here" / "store")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout.readline() == "put\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert len(names(bucket)) == 2  # the schema and one file that nothing refers to
    assert machine(tmp_path, "there").lookup(request_for()) is None
    assert machine(tmp_path, "here").lookup(request_for()) is not None
    assert machine(tmp_path, "there").lookup(request_for(), verify=True) is not None


def test_setting_opens_it(bucket, tmp_path):
    config = RunConfig(store=tmp_path / "store", shared_store=URL)
    assert isinstance(open_store(config), SharedStore)
    assert not isinstance(open_store(RunConfig(store=tmp_path / "store")), SharedStore)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/store", "AWS_ACCESS_KEY_ID"),
        ("/data/store", "accepted: s3://bucket/prefix"),
        ("s3://", "accepted: s3://bucket/prefix"),
        ("s3://bucket/store?scheme=http", "accepted: s3://bucket/prefix"),
    ],
)
def test_address_that_cannot_be_used_is_refused(url, words):
    with pytest.raises(ValidationError, match=words):
        RunConfig(shared_store=url)


def test_several_machines_need_a_store_that_all_see():
    assert why_no_several_machines(ClusterConfig(), 1) is None
    assert "has 3 machines" in why_no_several_machines(ClusterConfig(), 3)
    assert why_no_several_machines(ClusterConfig(), 3, URL) is None
    assert why_no_several_machines(ClusterConfig(store_is_shared=True), 3) is None
