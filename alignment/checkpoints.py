"""PPO's resume points: whole checkpoints, and a journal of what was sampled.

A checkpoint is a folder `step-000004` holding both engines' states and `loop.json`. It is
written under another name and renamed when complete, so a folder with the right name is whole.
The journal keeps each step's rollout, synced to disk before it is used: a resumed run replays
the sampled tokens instead of drawing them again.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from alignment.errors import CheckpointError
from alignment.experience import Rollout
from alignment.objectives.running_moments import RunningMoments
from alignment.training.roles import PPORoles, Trainable

LOOP_FILE = "loop.json"


@dataclass(frozen=True, slots=True)
class LoopState:
    """What the loop itself must remember: steps done, KL coefficient of the next, score moments."""

    step: int
    kl_coefficient: float
    score_moments: RunningMoments = field(default_factory=RunningMoments)


class Checkpoints:
    """The checkpoints of one stage; the newest is kept, and one before it."""

    def __init__(self, folder: Path, *, stage_version: int, keep: int = 2) -> None:
        self.folder = folder
        self.stage_version = stage_version
        self.keep = keep

    def write(self, roles: PPORoles, state: LoopState) -> None:
        """Save everything under a temporary name, rename it, then drop the oldest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"step-{state.step:06d}"
        draft = self.folder / f"draft-{state.step:06d}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        parts = trained_parts(roles)
        for name, role in parts.items():
            role.save_checkpoint(draft / name)
        record = {**asdict(state), "stage_version": self.stage_version, "parts": list(parts)}
        _write_synced(draft / LOOP_FILE, json.dumps(record, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        _sync_folder(self.folder)
        for old in self._complete()[: -self.keep]:
            shutil.rmtree(old)

    def restore(self, roles: PPORoles) -> LoopState | None:
        """Load the newest checkpoint into the roles; None where there is none.

        Raises:
            CheckpointError: a part is missing, or another stage version wrote it.
        """
        complete = self._complete()
        if not complete:
            return None
        newest = complete[-1]
        record = self._read_record(newest)
        parts = trained_parts(roles)
        for part in parts:
            if not (newest / part).is_dir():
                raise CheckpointError(
                    f"checkpoint {newest} lacks its part `{part}`; delete that folder to resume "
                    "from the one before it"
                )
        for name, role in parts.items():
            role.load_checkpoint(newest / name)
        return LoopState(
            step=int(record["step"]),
            kl_coefficient=float(record["kl_coefficient"]),
            score_moments=RunningMoments(**record["score_moments"]),
        )

    def newest_step(self) -> int | None:
        """Steps done by the newest checkpoint; None where there is none."""
        complete = self._complete()
        return int(complete[-1].name.removeprefix("step-")) if complete else None

    def _complete(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("step-*") if p.is_dir())

    def _read_record(self, checkpoint: Path) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads((checkpoint / LOOP_FILE).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise CheckpointError(
                f"checkpoint {checkpoint} has no readable {LOOP_FILE}: {error}; delete that folder"
            ) from error
        if record["stage_version"] != self.stage_version:
            raise CheckpointError(
                f"checkpoint {checkpoint} was written by version {record['stage_version']} of its "
                f"stage, this is version {self.stage_version}; delete it to start the stage anew"
            )
        return record


def trained_parts(roles: PPORoles) -> dict[str, Trainable]:
    """The roles that a checkpoint holds: the policy, and the critic of a method that has one."""
    parts: dict[str, Trainable] = {"policy": roles.policy}
    return parts if roles.critic is None else parts | {"critic": roles.critic}


class RolloutJournal:
    """One file a step with the step's rollout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, step: int, rollout: Rollout) -> Rollout:
        """Write the rollout, sync it to disk, and hand it back for use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f"draft-{step:06d}.pt"
        tensors = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
        with draft.open("wb") as file:
            torch.save(tensors, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._path(step))
        _sync_folder(self.folder)
        return rollout

    def replay(self, step: int) -> Rollout | None:
        """The rollout of a step that was sampled before; None where there is none."""
        path = self._path(step)
        if not path.is_file():
            return None
        try:
            return Rollout(**torch.load(path, weights_only=True))
        except (RuntimeError, TypeError, OSError) as error:
            raise CheckpointError(
                f"journal {path} is damaged: {error}; delete it to sample the step again"
            ) from error

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.pt"


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
