"""PPO's resume points: whole checkpoints, beside the journal of what was sampled.

A checkpoint is a folder `step-000004` holding both engines' states and `loop.json`. It is
written under another name and renamed when complete, so a folder with the right name is whole.
What the last bit depends on besides settings and inputs is in `loop.json` too (see
`alignment.exactness`): a resume with any of it changed is refused, or goes on with the change
on record.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from alignment.disk import bytes_below, require_space, sync_folder, write_synced
from alignment.errors import CheckpointError
from alignment.exactness import Exactness, exactness_of
from alignment.journal import RolloutJournal as RolloutJournal
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
    """The checkpoints of one stage; the newest is kept, and one before it.

    `exact` refuses to resume where `alignment.exactness` sees a change; otherwise `warn` is told
    and `changes` keeps it, also in the checkpoints that follow.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stage_version: int,
        keep: int = 2,
        exact: bool = True,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.folder = folder
        self.stage_version = stage_version
        self.keep = keep
        self.exact = exact
        self.changes: list[str] = []
        """What had changed at any resume of this training, oldest first."""
        self._warn = warn

    def write(self, roles: PPORoles, state: LoopState) -> None:
        """Save everything under a temporary name, rename it, then drop the oldest.

        Raises:
            CheckpointError: the disk is full; says how much is needed. What was half-written is
                removed and the newest whole checkpoint stays.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = trained_parts(roles)
        needed = checkpoint_bytes(parts)
        self._make_room(needed, state.step)
        final = self.folder / f"step-{state.step:06d}"
        draft = self.folder / f"draft-{state.step:06d}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        record = {
            **asdict(state),
            "stage_version": self.stage_version,
            "parts": list(parts),
            "exactness": dict(_exactness(roles).facts),
            "changes": self.changes,
        }
        try:
            for name, role in parts.items():
                role.save_checkpoint(draft / name)
            write_synced(draft / LOOP_FILE, json.dumps(record, indent=1).encode())
        except Exception:
            try:
                self._require_space(needed - bytes_below(draft), state.step)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            raise
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        sync_folder(self.folder)
        for old in self._complete()[: -self.keep]:
            shutil.rmtree(old)

    def restore(self, roles: PPORoles) -> LoopState | None:
        """Load the newest checkpoint into the roles; None where there is none.

        Raises:
            CheckpointError: a part is missing, another stage version wrote it, or something that
                the last bit depends on has changed and `exact` is on; named with old and new value.
        """
        self.check()
        newest = self._newest()
        if newest is None:
            return None
        record = self._read_record(newest)
        parts = trained_parts(roles)
        for part in parts:
            _require_part(newest, part)
        self._compare(newest, Exactness(record["exactness"]), _exactness(roles))
        self.changes = [*record["changes"], *self.changes]
        for name, role in parts.items():
            role.load_checkpoint(newest / name)
        return LoopState(
            step=int(record["step"]),
            kl_coefficient=float(record["kl_coefficient"]),
            score_moments=RunningMoments(**record["score_moments"]),
        )

    def check(self) -> None:
        """Look at the newest checkpoint before any engine starts, and drop half-written ones.

        Raises:
            CheckpointError: a part is missing, or another stage version wrote it.
        """
        for draft in self.folder.glob("draft-*"):
            shutil.rmtree(draft)
        newest = self._newest()
        if newest is not None:
            for part in self._read_record(newest)["parts"]:
                _require_part(newest, part)

    def newest_step(self) -> int | None:
        """Steps done by the newest checkpoint; None where there is none."""
        newest = self._newest()
        return int(newest.name.removeprefix("step-")) if newest else None

    def _newest(self) -> Path | None:
        complete = self._complete()
        return complete[-1] if complete else None

    def _complete(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("step-*") if p.is_dir())

    def _read_record(self, checkpoint: Path) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads((checkpoint / LOOP_FILE).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise CheckpointError(
                f"checkpoint {checkpoint} has no readable {LOOP_FILE}: {error}; delete that folder"
            ) from error
        if record.get("stage_version") != self.stage_version:
            raise CheckpointError(
                f"checkpoint {checkpoint} was written by version {record.get('stage_version')} of "
                f"its stage, this is version {self.stage_version}; delete it to start the stage "
                "anew"
            )
        wanted = [f.name for f in fields(LoopState)] + ["parts", "exactness", "changes"]
        missing = [name for name in wanted if name not in record]
        if missing:
            raise CheckpointError(
                f"checkpoint {checkpoint}: {LOOP_FILE} lacks {', '.join(missing)}; delete that "
                "folder to resume from the one before it"
            )
        return record

    def _compare(self, checkpoint: Path, before: Exactness, now: Exactness) -> None:
        changes = before.changes(now)
        if not changes:
            return
        said = "; ".join(changes)
        if self.exact:
            raise CheckpointError(
                f"checkpoint {checkpoint} cannot be continued to the bit, because this changed: "
                f"{said}. Put it back, or set `ppo.exact = false` to go on with other rounding"
            )
        self.changes = [f"resumed after step {self.newest_step()} with {c}" for c in changes]
        self._warn(f"not exact any more after step {self.newest_step()}: {said}")

    def _make_room(self, needed: int, step: int) -> None:
        """Drop all but the newest where the next one would not fit beside them."""
        for old in self._complete()[:-1]:
            if shutil.disk_usage(self.folder).free < needed:
                shutil.rmtree(old)
        self._require_space(needed, step)

    def _require_space(self, needed: int, step: int) -> None:
        done = self.newest_step()
        then = "it goes on " + (f"after step {done}" if done is not None else "from the start")
        require_space(self.folder, needed, what=f"the checkpoint of step {step}", then=then)


def _exactness(roles: PPORoles) -> Exactness:
    named = {f.name: getattr(roles, f.name) for f in fields(roles)}
    return exactness_of({name: role for name, role in named.items() if role is not None})


def _require_part(checkpoint: Path, part: str) -> None:
    if not (checkpoint / part).is_dir():
        raise CheckpointError(
            f"checkpoint {checkpoint} lacks its part `{part}`; delete that folder to resume "
            "from the one before it"
        )


def checkpoint_bytes(parts: dict[str, Trainable]) -> int:
    """What a checkpoint of these roles takes on disk, as far as they can tell; else 0."""
    described = [role.describe()[0] for role in parts.values() if hasattr(role, "describe")]
    return sum(int(facts.get("checkpoint_bytes", 0)) for facts in described)


def trained_parts(roles: PPORoles) -> dict[str, Trainable]:
    """The roles that a checkpoint holds: the policy, and the critic of a method that has one."""
    parts: dict[str, Trainable] = {"policy": roles.policy}
    return parts if roles.critic is None else parts | {"critic": roles.critic}
