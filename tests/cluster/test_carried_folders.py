"""Folders that travel between hosts by way of S3: a real server, folders that play the hosts."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs
from s3_server import point_to, s3_server

from alignment.cluster import carried_folders
from alignment.cluster.carried_folders import (
    KEPT_MODELS,
    Carrier,
    PassingPlace,
    fetch_folder,
    kept_model,
    reading_from,
    send_folder,
    writing_to,
)
from alignment.errors import StoreError

URL = "s3://bucket/store"
WRITER = """
import sys
from alignment.cluster.carried_folders import PassingPlace, writing_to
with writing_to(PassingPlace(url="s3://bucket/store/passing/one")) as written:
    (written.folder / "state").write_text("half")
    print(written.folder, flush=True)
    sys.stdin.readline()
"""
KEEPER = """
import sys
from alignment.cluster.carried_folders import kept_model, send_folder
from pathlib import Path
print(kept_model(send_folder(Path(sys.argv[1]), "s3://bucket/store")), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> fs.FileSystem:
    """The bucket's file system, empty."""
    point_to(monkeypatch, address)
    files = fs.S3FileSystem(
        endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    files.create_dir("bucket")
    files.delete_dir_contents("bucket")
    return files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder_with(tmp_path / "model", {"weights": "w" * 1000, "config/a.json": "{}"})


def folder_with(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def objects(bucket: fs.FileSystem, below: str = "bucket") -> list[str]:
    found = bucket.get_file_info(fs.FileSelector(below, recursive=True))
    return sorted(file.path for file in found if file.is_file)


def own_scratch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    folder.mkdir()
    monkeypatch.setattr(carried_folders.tempfile, "tempdir", str(folder))
    return folder


def test_a_folder_arrives_as_it_was(bucket: fs.FileSystem, model: Path, tmp_path: Path) -> None:
    fetch_folder(send_folder(model, URL), tmp_path / "there")
    assert content(tmp_path / "there") == content(model)


@pytest.mark.parametrize(("damage", "words"), [("changed", "is not what"), ("gone", "is missing")])
def test_damaged_object_is_named(
    bucket: fs.FileSystem, model: Path, tmp_path: Path, damage: str, words: str
) -> None:
    carried = send_folder(model, URL)
    [weights] = [file for file in carried.files if file.path == "weights"]
    path = f"bucket/store/objects/{weights.sha256[:2]}/{weights.sha256}"
    if damage == "gone":
        bucket.delete_file(path)
    else:
        with bucket.open_output_stream(path) as stream:
            stream.write(b"v" * 1000)
    with pytest.raises(StoreError, match=f"{path}, weights of .*, {words}"):
        fetch_folder(carried, tmp_path / "there")


def test_a_model_is_sent_once(
    bucket: fs.FileSystem, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carrier = Carrier(URL)
    first = carrier.model(model)
    monkeypatch.setattr(carried_folders, "send_folder", None)
    assert carrier.model(model) == first


def test_what_passes_leaves_nothing(bucket: fs.FileSystem, tmp_path: Path) -> None:
    carrier = Carrier(URL)
    with carrier.passing_place() as place:
        with writing_to(place) as written:
            folder_with(written.folder, {"state": "of a rank"})
        assert written.sent is not None
        assert objects(bucket)
        with reading_from(written.sent) as folder:
            assert content(folder) == {"state": "of a rank"}
        assert not folder.exists()
        assert not written.folder.exists()
    assert objects(bucket) == []


def test_what_passes_leaves_nothing_after_an_error(bucket: fs.FileSystem, model: Path) -> None:
    def send_and_fail() -> None:
        with Carrier(URL).passing_place() as place:
            send_folder(model, place.url)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        send_and_fail()
    assert objects(bucket) == []


def test_what_a_killed_role_was_writing_goes_when_the_next_one_writes(
    bucket: fs.FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(own_scratch(monkeypatch, tmp_path / "scratch")))
    killed, alive = writer(), writer()
    left, in_use = (Path(first_line(process)) for process in (killed, alive))
    killed.kill()
    killed.wait(30)
    assert (left / "state").exists()
    with writing_to(PassingPlace(url=f"{URL}/passing/two")) as written:
        assert not left.exists()
        assert (in_use / "state").exists()
        assert written.folder not in (left, in_use)
    alive.communicate("end\n", timeout=30)
    assert alive.returncode == 0
    assert not in_use.exists()
    assert not written.folder.exists()


def writer() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_model_that_cannot_be_fetched_leaves_nothing(
    bucket: fs.FileSystem, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = own_scratch(monkeypatch, tmp_path / "scratch")
    carried = send_folder(model, URL)
    [weights] = [file for file in carried.files if file.path == "weights"]
    bucket.delete_file(f"bucket/store/objects/{weights.sha256[:2]}/{weights.sha256}")
    with pytest.raises(StoreError, match="is missing"):
        kept_model(carried)
    assert content(scratch) == {f"{KEPT_MODELS}/shelf.lock": ""}


def test_a_full_disk_is_told(bucket: fs.FileSystem, model: Path, tmp_path: Path) -> None:
    carried = send_folder(model, URL)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # longer files find no room
    try:
        with pytest.raises(StoreError, match=r"weights \(1000 bytes\) cannot be written .*TMPDIR"):
            fetch_folder(carried, tmp_path / "there")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_shared_disk_is_used_as_it_is(model: Path) -> None:
    with writing_to(model) as written, reading_from(model) as folder:
        assert written.folder == folder == kept_model(model) == model
    assert written.sent is None


def test_a_server_that_is_away_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(monkeypatch, "127.0.0.1:1")
    with pytest.raises(StoreError, match=r"sending config/a\.json of .*see that the server is up"):
        send_folder(model, PassingPlace(url=URL).url)


def test_a_host_fetches_a_model_once_and_drops_those_that_nobody_uses(
    bucket: fs.FileSystem, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = own_scratch(monkeypatch, tmp_path / "scratch")
    monkeypatch.setenv("TMPDIR", str(scratch))
    other = folder_with(tmp_path / "other", {"weights": "other"})
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(other)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert keeper.stdout is not None
    others = Path(keeper.stdout.readline().strip())
    assert content(others) == {"weights": "other"}

    kept = kept_model(send_folder(model, URL))
    assert kept.parent == scratch / KEPT_MODELS
    assert content(kept) == content(model)
    (kept / "weights").write_text("as it is here")
    assert kept_model(send_folder(model, URL)) == kept
    assert (kept / "weights").read_text() == "as it is here", "fetched a second time"
    assert others.is_dir(), "another process uses it"

    keeper.communicate("end\n", timeout=30)
    kept_model(send_folder(model, URL))
    assert not others.exists()
    assert kept.is_dir()
