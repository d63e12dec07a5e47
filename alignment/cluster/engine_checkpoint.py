"""Checkpoints of a DeepSpeed engine, complete or refused."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from alignment.errors import CheckpointError

TAG = "engine"
CONTENTS = "contents.json"


def save_engine_checkpoint(engine: Any, folder: Path, *, rank: int, num_ranks: int) -> None:
    """Write weights, optimiser, schedule and this rank's random states to `folder`.

    Every rank calls it. Rank 0 writes `contents.json` last, so a folder without it is not a
    checkpoint.
    """
    from deepspeed.checkpoint.constants import (
        UNIVERSAL_CHECKPOINT_INFO,
        UNIVERSAL_CHECKPOINT_VERSION_KEY,
        UNIVERSAL_CHECKPOINT_VERSION_VALUE,
    )

    folder.mkdir(parents=True, exist_ok=True)
    # Lets DeepSpeed's ds_to_universal change the number of ranks of ZeRO 1 and 2 later.
    universal = {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE}
    engine.save_checkpoint(
        str(folder), tag=TAG, client_state={UNIVERSAL_CHECKPOINT_INFO: universal}
    )
    torch.save(_random_states(), folder / _random_file(rank))
    dist.barrier()
    if rank == 0:
        _write_contents(engine, folder, num_ranks)
    dist.barrier()


def load_engine_checkpoint(engine: Any, folder: Path, *, rank: int, num_ranks: int) -> None:
    """Restore what `save_engine_checkpoint` wrote.

    Raises:
        CheckpointError: a part is missing or cut short, or the checkpoint was written by another
            number of ranks or ZeRO stage; named before anything is loaded.
    """
    _check_contents(engine, folder, num_ranks)
    loaded, _ = engine.load_checkpoint(str(folder), tag=TAG)
    if loaded is None:
        raise CheckpointError(f"checkpoint {folder} holds no DeepSpeed state; delete it")
    _restore_random_states(torch.load(folder / _random_file(rank), weights_only=False))


def _write_contents(engine: Any, folder: Path, num_ranks: int) -> None:
    import deepspeed

    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != CONTENTS]
    contents = {
        "ranks": num_ranks,
        "zero_stage": int(engine.zero_optimization_stage()),
        "steps": engine.global_steps,
        "deepspeed": deepspeed.__version__,
        "files": {str(file.relative_to(folder)): file.stat().st_size for file in files},
    }
    (folder / CONTENTS).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


def _check_contents(engine: Any, folder: Path, num_ranks: int) -> None:
    if not (folder / CONTENTS).is_file():
        raise CheckpointError(
            f"checkpoint {folder} has no {CONTENTS}: it was never finished; delete it"
        )
    contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    for name, size in contents["files"].items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise CheckpointError(f"checkpoint {folder}: {name} {state}; delete the checkpoint")
    for key, now in (("ranks", num_ranks), ("zero_stage", int(engine.zero_optimization_stage()))):
        if contents[key] != now:
            raise CheckpointError(
                f"checkpoint {folder} was written with {key} {contents[key]}, this role has {now}; "
                f"set it back to {contents[key]}, or convert the checkpoint with DeepSpeed's "
                "ds_to_universal"
            )


def _random_file(rank: int) -> str:
    return f"random_states_rank{rank}.pt"


def _random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
