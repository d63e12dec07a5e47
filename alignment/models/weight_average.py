"""A moving average of trained weights, which is what gets exported in their place.

    average <- decay * average + (1 - decay) * weights, after each optimiser step,

from the weights training began with (Polyak and Juditsky 1992; in RLHF: Yao et al. 2023,
DeepSpeed-Chat, arXiv 2308.01320, 4.2, decay 0.992). Sampling, gradients and checkpoints of the
training itself never see it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from alignment.errors import CheckpointError

AVERAGE_FILE = "average.pt"


class WeightAverage:
    """The average of a module's weights; with a decay of None there is none, and nothing happens.

    Every rank must hold whole weights (ZeRO 0 to 2): all ranks then hold the same average.
    """

    def __init__(self, module: nn.Module, decay: float | None) -> None:
        self._decay = decay or 0.0
        named = dict(module.named_parameters()) if decay else {}
        self._weights = list(named.values())
        self._averages = {name: weight.detach().clone() for name, weight in named.items()}

    def update(self) -> None:
        """Take the present weights into the average."""
        if self._weights:
            weights = [weight.detach() for weight in self._weights]
            torch._foreach_lerp_(list(self._averages.values()), weights, 1.0 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module has the averaged weights inside the block, and its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def save(self, folder: Path) -> None:
        """Write the average beside a checkpoint's other files, where there is one."""
        if self._averages:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self._averages, folder / AVERAGE_FILE)

    def load(self, folder: Path) -> None:
        """Go on from a saved average.

        Raises:
            CheckpointError: the checkpoint has none, or that of another model.
        """
        if not self._averages:
            return
        path = folder / AVERAGE_FILE
        if not path.is_file():
            raise CheckpointError(
                f"checkpoint {folder} has no {AVERAGE_FILE}, which `ppo.ema_decay` needs: delete "
                "that folder to resume from the one before it"
            )
        saved: dict[str, Tensor] = torch.load(path, weights_only=True)
        if saved.keys() != self._averages.keys():
            other = sorted(saved.keys() ^ self._averages.keys())
            raise CheckpointError(f"{path} is of another model ({other[0]}, ...); delete {folder}")
        for name, average in self._averages.items():
            average.copy_(saved[name])

    def _swap(self) -> None:
        for weight, average in zip(self._weights, self._averages.values(), strict=True):
            weight.data, average.data = average.data, weight.data
