"""A trained role in this process: our DeepSpeed engine, or plain torch where that is missing."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alignment.config import OptimizerConfig, Precision, TrainingConfig
from alignment.experience import TokenBatch
from alignment.models.modules import LanguageModel
from alignment.models.passes import Module, accumulate_gradients, microbatches
from alignment.role_specs import TrainableSpec
from alignment.roles_local import LocalTrainable
from alignment.training.roles import Loss


class Trained:
    """A module with an optimiser, and how to take a step with it."""

    def __init__(self, module: Module, *, engine: str, tokens: int, precision: Precision) -> None:
        self.module = module
        self.spec = TrainableSpec(
            name="bench",
            kind="language" if isinstance(module, LanguageModel) else "value",
            model_folder=Path(),
            optimizer=OptimizerConfig(learning_rate=1e-6),
            training=TrainingConfig(precision=precision, tokens_per_microbatch=tokens),
            total_steps=1000,
            seed=0,
        )
        start = {"deepspeed": _deepspeed, "torch": _torch}[engine]
        self._accumulate, self._step, self._optimizer = start(module, self.spec)

    def step(self, batch: TokenBatch, loss: Loss, *, denominator: float) -> float:
        """One optimiser step on the whole batch; the loss."""
        told = self._accumulate(batch, loss, denominator)
        self._step()
        return told["loss"]

    def release(self) -> None:
        """Free the memory of weights, gradients and optimiser, whoever still refers to them."""
        self._optimizer.state.clear()
        for parameter in self.module.parameters():
            parameter.grad = None
            parameter.data = parameter.data.new_empty(0)


Accumulate = Callable[[TokenBatch, Loss, float], dict[str, float]]
Started = tuple[Accumulate, Callable[[], Any], torch.optim.Optimizer]


def _torch(module: Module, spec: TrainableSpec) -> Started:
    role = LocalTrainable(module, spec)

    def accumulate(batch: TokenBatch, loss: Loss, denominator: float) -> dict[str, float]:
        return role.forward_backward(batch, loss, denominator=denominator)

    return accumulate, role.step, role.optimizer


def _deepspeed(module: Module, spec: TrainableSpec) -> Started:
    from alignment.cluster.deepspeed_engine import EngineModule, start_engine

    _join_alone(next(module.parameters()).device)
    engine, _ = start_engine(module, spec)
    wrapped = EngineModule(engine, module)

    def accumulate(batch: TokenBatch, loss: Loss, denominator: float) -> dict[str, float]:
        return accumulate_gradients(
            wrapped,
            microbatches(module, batch, tokens=spec.training.tokens_per_microbatch),
            loss,
            denominator=denominator,
            backward=lambda total, _last: engine.backward(total),
        )

    return accumulate, engine.step, engine.optimizer


def _join_alone(device: torch.device) -> None:
    """A process group of one, once a process."""
    from alignment.cluster.process_group import open_store, start_process_group

    if torch.distributed.is_initialized():
        return
    store = open_store(socket.gethostbyname("localhost"), 1, timeout_s=60.0)
    start_process_group(store, rank=0, num_ranks=1, device=device, timeout_s=60.0)
