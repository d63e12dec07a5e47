"""What the user sees when an actor fails: its own error, or who died doing what."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from ray.exceptions import RayError, RayTaskError

from alignment.cluster.process_identity import STATES
from alignment.errors import AbsentClusterError, AlignmentError, ClusterError, LostActorError

LOG_LINES = 20


@contextmanager
def lost_ray_named(doing: str) -> Iterator[None]:
    """Turn what Ray raises when its head ended or was replaced into an AbsentClusterError."""
    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        raise AbsentClusterError(
            f"Ray was lost while {doing} ({type(error).__name__}): its head ended, or another one "
            "took its place. A stage that was interrupted goes on from its newest checkpoint when "
            "the same command is run again"
        ) from error


def explain_failures(
    role: str,
    operation: str,
    failures: Mapping[int, Exception],
    *,
    pids: Mapping[int, int],
    hosts: Mapping[int, str],
    logs: Path,
) -> AlignmentError:
    """The error to raise for the failed ranks of one call; `hosts` are those other than this one.

    When a rank is lost, its peers fail too, with a broken connection. So a rank's own
    AlignmentError comes first, then a death, then anything else.
    """
    rank, error = min(failures.items(), key=lambda item: (_severity(item[1]), item[0]))
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, AlignmentError):
            return cause
        who = f"{role} rank {rank}{_on(hosts.get(rank))}"
        if isinstance(cause, torch.OutOfMemoryError):
            return ClusterError(_full_gpu(who, operation, cause))
        return ClusterError(
            f"{who} failed in {operation}: {type(cause).__name__}: {cause}\n{_own_traceback(error)}"
        )
    pid, host = pids.get(rank), hosts.get(rank)
    who = f"{role} rank {rank}" + (f" (process {pid}{_on(host)})" if pid else "")
    return LostActorError(
        f"{who} died in {operation}: {_reason(error)}\n{log_tail(logs, pid, host)}"
        "A stage that was interrupted goes on from its newest checkpoint when run again."
    )


def explain_timeout(
    role: str,
    operation: str,
    waiting: list[int],
    *,
    limit_s: float,
    setting: str,
    pids: Mapping[int, int],
    hosts: Mapping[int, str],
    states: Mapping[int, str | None],
    logs: Path,
) -> ClusterError:
    """The error for a call that some ranks did not answer in time.

    `hosts` are those other than this one. `states` are the letters of `process_identity.STATES`,
    of ranks on this host: the ranks of a role wait for each other, so the one that does something
    else comes first.
    """
    ranks = ", ".join(f"rank {rank}{_on(hosts.get(rank))}" for rank in waiting)
    told = {rank: states.get(rank) for rank in waiting}
    suspects = sorted(waiting, key=lambda rank: told[rank] in ("S", None))
    seen = ", ".join(
        f"rank {rank} (process {pids.get(rank)}) {STATES.get(letter, letter)}"
        for rank in suspects
        if (letter := told[rank])
    )
    return ClusterError(
        f"{role} {ranks} did not answer {operation} within {limit_s:g} s\n"
        f"{seen + chr(10) if seen else ''}"
        f"{log_tail(logs, pids.get(suspects[0]), hosts.get(suspects[0]))}"
        f"{_reach(hosts, waiting)}Raise `cluster.{setting}` if the work really takes longer."
    )


def _on(host: str | None) -> str:
    return f" on {host}" if host else ""


def _reach(hosts: Mapping[int, str], waiting: list[int]) -> str:
    names = sorted({hosts[rank] for rank in waiting if rank in hosts})
    return f"See that {', '.join(names)} can be reached from here. " if names else ""


def log_tail(logs: Path, pid: int | None, host: str | None = None) -> str:
    """The end of a process's output if this host has it, else where it is; empty if unknown."""
    if pid is None:
        return ""
    if host is not None:
        return f"its log is on {host}: {logs}/worker-*-{pid}.err\n"
    lines = []
    for file in sorted(logs.glob(f"worker-*-{pid}.err")) + sorted(logs.glob(f"worker-*-{pid}.out")):
        text = file.read_text(encoding="utf-8", errors="replace")
        lines += [line for line in text.splitlines() if line and not line.startswith(":")]
    if not lines:
        return ""
    return f"its log in {logs} ends with:\n" + "\n".join(lines[-LOG_LINES:]) + "\n"


def _full_gpu(who: str, operation: str, error: torch.OutOfMemoryError) -> str:
    """What torch says of the device, without its advice on fragments, and what helps here."""
    told = str(error).partition(" Of the allocated memory")[0]
    return (
        f"{who} has no GPU memory left in {operation}: {told} Lower the stage's "
        "`tokens_per_microbatch`, which changes no result, or switch on `gradient_checkpointing`; "
        "where weights and optimiser fill the GPU, raise `zero_stage` and `ranks`. `alignflow "
        "plan` shows the parts"
    )


def _severity(error: Exception) -> int:
    if isinstance(error, RayTaskError):
        return 0 if isinstance(error.cause, AlignmentError) else 2
    return 1 if isinstance(error, RayError) else 2


def _own_traceback(error: RayTaskError) -> str:
    return "\n".join(str(error).strip().splitlines()[-LOG_LINES:])


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "creation task" in lines[0]:
        return lines[-1]
    if "unexpectedly" in lines[0]:
        return "its process ended: out of memory, killed from outside, or crashed in native code"
    return lines[0]
