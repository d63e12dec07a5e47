"""Checkpoints of a DeepSpeed engine, complete or refused."""

import json
import random
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from alignment.cluster.universal import load_with_other_ranks
from alignment.errors import CheckpointError

TAG = "engine"
CONTENTS = "contents.json"


def save_engine_checkpoint(
    engine: Any, folder: Path, *, rank: int, num_ranks: int, base_digest: str | None = None
) -> None:
    """Write weights, optimiser, schedule and this rank's random states to `folder`.

    Every rank calls it, with the same folder or each with one of its own, to be put together
    later. Rank 0 writes `contents.json` last, so a folder without it is not a checkpoint. Where
    only adapters are trained, `base_digest` says on what; the frozen weights are left out, and
    the digest is written instead.
    """
    from deepspeed.checkpoint.constants import (
        UNIVERSAL_CHECKPOINT_INFO,
        UNIVERSAL_CHECKPOINT_VERSION_KEY,
        UNIVERSAL_CHECKPOINT_VERSION_VALUE,
    )

    (folder / TAG).mkdir(parents=True, exist_ok=True)
    # Lets DeepSpeed's ds_to_universal change the number of ranks of ZeRO 1 and 2 later.
    universal = {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE}
    engine.save_checkpoint(
        str(folder),
        tag=TAG,
        client_state={UNIVERSAL_CHECKPOINT_INFO: universal},
        exclude_frozen_parameters=base_digest is not None,
    )
    torch.save(_random_states(), folder / _random_file(rank))
    dist.barrier()
    sizes: list[dict[str, int]] = [{} for _ in range(num_ranks)]
    dist.all_gather_object(sizes, _sizes_below(folder))
    if rank == 0:
        _write_contents(engine, folder, ChainMap(*sizes), num_ranks, base_digest)
    dist.barrier()


def load_engine_checkpoint(
    engine: Any,
    folder: Path,
    *,
    rank: int,
    num_ranks: int,
    base_digest: str | None = None,
    is_own_copy: bool = False,
) -> None:
    """Restore what `save_engine_checkpoint` wrote, also by another number of ranks.

    `is_own_copy` tells that no other rank sees this rank's `folder`.

    With the same ranks training continues to the bit. With others it continues with other
    rounding, and a rank that was not there before keeps the random states it started with.

    Raises:
        CheckpointError: a part is missing or cut short, or the checkpoint was written by another
            ZeRO stage, or rests on other frozen weights; named before anything is loaded.
    """
    contents = _checked_contents(engine, folder, base_digest)
    strict = base_digest is None
    if contents["ranks"] == num_ranks:
        loaded, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=strict)
    else:
        loaded, _ = load_with_other_ranks(
            engine, folder, TAG, converts=is_own_copy or rank == 0, strict=strict
        )
    if loaded is None:
        raise CheckpointError(f"checkpoint {folder} holds no DeepSpeed state; delete it")
    if (folder / _random_file(rank)).is_file():
        _restore_random_states(torch.load(folder / _random_file(rank), weights_only=False))


def _sizes_below(folder: Path) -> dict[str, int]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != CONTENTS]
    return {str(file.relative_to(folder)): file.stat().st_size for file in files}


def _write_contents(
    engine: Any,
    folder: Path,
    sizes: Mapping[str, int],
    num_ranks: int,
    base_digest: str | None,
) -> None:
    import deepspeed

    contents = {
        "ranks": num_ranks,
        "zero_stage": int(engine.zero_optimization_stage()),
        "steps": engine.global_steps,
        "base_digest": base_digest,
        "deepspeed": deepspeed.__version__,
        "files": dict(sorted(sizes.items())),
    }
    (folder / CONTENTS).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


def _checked_contents(engine: Any, folder: Path, base_digest: str | None) -> dict[str, Any]:
    if not (folder / CONTENTS).is_file():
        raise CheckpointError(
            f"checkpoint {folder} has no {CONTENTS}: it was never finished; delete it"
        )
    contents: dict[str, Any] = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    for name, size in contents["files"].items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise CheckpointError(f"checkpoint {folder}: {name} {state}; delete the checkpoint")
    before, now = contents["zero_stage"], int(engine.zero_optimization_stage())
    if before != now:
        raise CheckpointError(
            f"checkpoint {folder} was written with zero_stage {before}, this role has {now}; "
            f"set it back to {before}"
        )
    if contents.get("base_digest") != base_digest:
        raise CheckpointError(
            f"checkpoint {folder} rests on frozen weights {_short(contents.get('base_digest'))}, "
            f"this role has {_short(base_digest)}; set `lora` and the model folder back, or delete "
            "the checkpoint"
        )
    return contents


def _short(digest: str | None) -> str:
    return f"sha256:{digest[:12]}" if digest else "none (all are trained)"


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
