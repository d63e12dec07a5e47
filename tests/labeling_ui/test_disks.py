"""A disk that is really full, and one that may only be read: told in words, and no label lost."""

import subprocess
import sys
from pathlib import Path

import pytest

# In a mount namespace of its own, so that the small disk is seen by this process alone.
APART = ("unshare", "--map-root-user", "--mount")
PROGRAM = """
import contextlib
import subprocess
import sys
from pathlib import Path

from rounds_for_tests import make_candidates, submission

from alignment.errors import StoreError
from labeling_ui.store import LabelStore

disk = Path(sys.argv[1])


def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)


def told(work):
    try:
        work()
    except StoreError as error:
        return str(error)
    raise SystemExit("no error")


mount("size=1m")
filler = disk / "filler"
with LabelStore.open(disk / "labels.sqlite") as store:
    round_id = store.publish_round(make_candidates(100), rankings_per_prompt=1).round_id
    with filler.open("wb", buffering=0) as other, contextlib.suppress(OSError):
        while True:  # something else takes what is left
            other.write(b"x" * 1024)
    acknowledged, failed = [], None
    while failed is None:
        number = len(acknowledged)
        try:
            card = store.claim(round_id, "Ada")
            receipt = submission(store, card, "Ada", f"submission-{number}")
        except StoreError as error:
            failed = str(error)
        else:
            acknowledged.append(receipt.submission_id)
    print("full:", failed)
    print("kept while full:", [r.annotation_id for r in store.rankings(round_id)] == acknowledged)
    filler.unlink()
    card = store.claim(round_id, "Ada")
    again = submission(store, card, "Ada", f"submission-{len(acknowledged)}")
    acknowledged.append(again.submission_id)
    kept = [r.annotation_id for r in store.rankings(round_id)] == acknowledged
    print("after:", again.counted, kept)

mount("remount,ro")
print("read-only:", told(lambda: LabelStore.open(disk / "labels.sqlite")))
print("no place:", told(lambda: LabelStore.open(disk / "folder" / "labels.sqlite")))
mount("remount,rw")
with LabelStore.open(disk / "labels.sqlite") as store:
    print("at the end:", [r.annotation_id for r in store.rankings(round_id)] == acknowledged)
"""


def can_mount():
    """True where a process may have mounts of its own; containers often forbid it."""
    try:
        asked = [*APART, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(asked, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_mount(), reason="needs `unshare --mount`: may not mount a small disk")
def test_a_full_disk_and_a_read_only_one(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    disk = tmp_path / "disk"
    disk.mkdir()
    ran = subprocess.run(
        [*APART, sys.executable, str(program), str(disk)],
        env={"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    said = dict(line.split(": ", 1) for line in ran.stdout.splitlines())
    assert "labels.sqlite cannot be used: database or disk is full" in said["full"]
    assert "local disk with free space" in said["full"]
    assert said["kept while full"] == "True"
    assert said["after"] == "True True"
    assert "labels.sqlite cannot be used: unable to open database file" in said["read-only"]
    assert "It must be a readable and writable SQLite file" in said["read-only"]
    assert "Read-only file system" in said["no place"]
    assert said["at the end"] == "True"
