"""A flow that waits for rankings kept in a folder; loaded by Prefect in processes of its own."""

from dataclasses import dataclass
from pathlib import Path

from prefect import flow, task

from flows.waiting import suspended_while_people_rank, wait_for_rankings


@dataclass(frozen=True)
class FolderStatus:
    rankings_wanted: int
    rankings_done: int
    frozen_digest: str | None


@dataclass(frozen=True)
class FolderRounds:
    """One round that needs two rankings; file `done` counts them, file `frozen` ends it."""

    folder: Path

    def progress(self, round_id):
        frozen = self.folder / "frozen"
        return FolderStatus(
            rankings_wanted=2,
            rankings_done=int((self.folder / "done").read_text()),
            frozen_digest=frozen.read_text() if frozen.exists() else None,
        )

    def freeze(self, round_id):
        (self.folder / "frozen").write_text("digest")
        return "digest"


@task(persist_result=False)
def stage(folder):
    _log(folder, "stage")


@flow(persist_result=False)
def gated_flow(folder: str) -> str:
    with suspended_while_people_rank():
        stage(folder)
        digest = wait_for_rankings(FolderRounds(Path(folder)), "r1", store="store")
        _log(folder, digest)
        return digest


def _log(folder, line):
    with (Path(folder) / "log").open("a") as file:
        file.write(line + "\n")
