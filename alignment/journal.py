"""What was sampled at each step, synced to disk before it is used.

A resumed run replays the sampled tokens instead of drawing them again, so what it trains on does
not depend on the rollout engine's arithmetic.
"""

import io
from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError

import torch

from alignment.disk import require_space, sync_folder, write_synced
from alignment.errors import CheckpointError
from alignment.experience import Rollout


class RolloutJournal:
    """One file a step with the step's rollout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, step: int, rollout: Rollout) -> Rollout:
        """Write the rollout, sync it to disk, and hand it back for use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f"draft-{step:06d}.pt"
        content = io.BytesIO()
        torch.save({f.name: getattr(rollout, f.name) for f in fields(rollout)}, content)
        try:
            write_synced(draft, content.getvalue())
        except OSError:
            draft.unlink(missing_ok=True)
            size = len(content.getvalue())
            what, then = f"the journal of step {step}", "it goes on from the newest checkpoint"
            require_space(self.folder, size, what=what, then=then)
            raise
        draft.rename(self._path(step))
        sync_folder(self.folder)
        return rollout

    def replay(self, step: int) -> Rollout | None:
        """The rollout of a step that was sampled before; None where there is none."""
        path = self._path(step)
        if not path.is_file():
            return None
        try:
            return Rollout(**torch.load(path, weights_only=True))
        except (RuntimeError, TypeError, OSError, EOFError, UnpicklingError) as error:
            raise CheckpointError(
                f"journal {path} is damaged: {error}; delete it to sample the step again"
            ) from error

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.pt"
