"""Weights that a policy on a CPU lends: rollout engines of its host read them where it trains them.

They lie in one file in memory that has no name, so it is gone with the last process that has it
open, however that ends. An engine finds it through the policy's process, maps it once, and reads
from it in every weight update; nothing is copied in between. Whether an engine can (it is on
another host, or may not look into that process) is tried out, and weights are copied if not.
"""

import mmap
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.models.lora import PublishedWeight

HEAD = 64
"""Bytes before the first weight: what only this file holds. Weights, too, begin at multiples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LentWeights:
    """Where a policy's float32 weights are: `{name: (first byte, shape)}` of a process's file."""

    pid: int
    descriptor: int
    size: int
    secret: bytes
    places: Mapping[str, tuple[int, tuple[int, ...]]]


class Lender:
    """Keeps weights of this process in a file in memory."""

    def __init__(self, weights: Sequence[PublishedWeight]) -> None:
        """Move the weights there, in place: whoever holds a parameter sees it move."""
        self._parameters = {weight.name: weight.parameters[0] for weight in weights}
        places: dict[str, tuple[int, tuple[int, ...]]] = {}
        end = HEAD
        for name, parameter in self._parameters.items():
            places[name] = (end, tuple(parameter.shape))
            end += -(-parameter.nbytes // HEAD) * HEAD
        descriptor = os.memfd_create("alignflow-weights")
        os.ftruncate(descriptor, end)
        self._memory = mmap.mmap(descriptor, end)
        secret = secrets.token_bytes(HEAD)
        self._memory[:HEAD] = secret
        self._lent = LentWeights(
            pid=os.getpid(), descriptor=descriptor, size=end, secret=secret, places=places
        )
        self._views = dict(_views(self._memory, places))
        for name, parameter in self._parameters.items():
            parameter.data = self._views[name].copy_(parameter.data)

    def lent(self) -> LentWeights | None:
        """Where they are; None if something has moved one of them away since."""
        stayed = (p.data_ptr() == self._views[n].data_ptr() for n, p in self._parameters.items())
        return self._lent if all(stayed) else None


class Borrower:
    """Reads lent weights; keeps the last file mapped, so that its pages are found once."""

    def __init__(self) -> None:
        self._secret: bytes | None = None
        self._memory: mmap.mmap | None = None

    def can_read(self, lent: LentWeights) -> bool:
        """Whether this process sees the lender's file."""
        try:
            return self._mapped(lent)[:HEAD] == lent.secret
        except (OSError, ValueError):  # no such process here, not ours, or a shorter file
            return False

    def read(self, lent: LentWeights) -> Iterator[tuple[str, Tensor]]:
        """The weights as they are now. They are the lender's own: read them, never write."""
        return _views(self._mapped(lent), lent.places)

    def _mapped(self, lent: LentWeights) -> mmap.mmap:
        if self._memory is None or self._secret != lent.secret:
            path = f"/proc/{lent.pid}/fd/{lent.descriptor}"
            opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # of another process: maybe a pipe
            try:
                self._memory = mmap.mmap(opened, lent.size, prot=mmap.PROT_READ)
            finally:
                os.close(opened)
            self._secret = lent.secret
        return self._memory


def can_lend(weights: Sequence[PublishedWeight]) -> bool:
    """Whether weights can be read as they lie: float32 on a CPU, with no adapter to merge in."""
    return all(
        weight.layer is None
        and weight.parameters[0].dtype == torch.float32
        and weight.parameters[0].device.type == "cpu"
        for weight in weights
    )


def _views(
    memory: mmap.mmap, places: Mapping[str, tuple[int, tuple[int, ...]]]
) -> Iterator[tuple[str, Tensor]]:
    for name, (start, shape) in places.items():
        count = torch.Size(shape).numel()
        with warnings.catch_warnings():  # a borrower's mapping is read-only
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(memory, dtype=torch.float32, count=count, offset=start)
        yield name, flat.view(shape)
