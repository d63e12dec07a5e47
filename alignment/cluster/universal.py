"""Another number of ranks: what a checkpoint's ranks hold is put together and cut anew.

ZeRO 0 has the whole state on every rank, so any number of ranks reads it as it is. Above that
each rank holds a part of the optimiser, and DeepSpeed's universal checkpoint
(`deepspeed.checkpoint.ds_to_universal`) is made from the parts, once, and removed after loading.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from alignment.errors import CheckpointError

UNIVERSAL_TAG = "universal"
LINES_SHOWN = 5


def load_with_other_ranks(
    engine: Any, folder: Path, tag: str, *, converts: bool, strict: bool
) -> Any:
    """What `engine.load_checkpoint` returns, for a checkpoint of another number of ranks.

    A rank `converts` if it is to make the new checkpoint in `folder`: one of those that share it.

    Raises:
        CheckpointError: DeepSpeed cannot convert the checkpoint; on every rank, with its reason.
    """
    if engine.zero_optimization_stage() == 0:
        return engine.load_checkpoint(str(folder), tag=tag, load_module_strict=strict)
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, _convert(folder, tag) if converts else None)
    problem = next((told for told in problems if told is not None), None)
    if problem is not None:
        raise CheckpointError(
            f"checkpoint {folder} cannot be cut for {len(problems)} ranks: {problem}; "
            "set `ranks` back"
        )
    # DeepSpeed asks its configuration at the moment of loading, not before.
    engine._config.load_universal_checkpoint = True
    try:
        with _own_optimizer_groups(engine.optimizer.optimizer):
            return engine.load_checkpoint(str(folder), tag=UNIVERSAL_TAG, load_module_strict=strict)
    finally:
        engine._config.load_universal_checkpoint = False
        dist.barrier()
        if converts:
            shutil.rmtree(folder / UNIVERSAL_TAG, ignore_errors=True)
            (folder / f"latest_{UNIVERSAL_TAG}").unlink(missing_ok=True)


@contextmanager
def _own_optimizer_groups(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put right what DeepSpeed 0.19.8 mixes up at ZeRO 3 where there are several groups.

    It gives all groups the first one's weight decay, and one and the same counter of steps, which
    each group then advances.
    """
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    yield
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = deepcopy(state["step"])


def _convert(folder: Path, tag: str) -> str | None:
    """Make the universal checkpoint beside the tag's own; the reason if that fails."""
    shutil.rmtree(folder / UNIVERSAL_TAG, ignore_errors=True)
    arguments = {"--input_folder": folder / tag, "--output_folder": folder / UNIVERSAL_TAG}
    workers = {"--num_extract_workers": 1, "--num_merge_workers": 1}
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"),
            *(str(part) for pair in (arguments | workers).items() for part in pair),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode == 0:
        return None
    return "\n".join(ended.stdout.strip().splitlines()[-LINES_SHOWN:])
