"""A DeepSpeed engine around one of our modules, with gradients that DeepSpeed does not rescale.

DeepSpeed divides gradients by the accumulation steps and averages them over ranks. The
gradient here is the plain sum over ranks and microbatches: accumulation is unmanaged
(`step()` alone ends it, the divisor is 1), and the loss is multiplied by the number of ranks
before the average takes it back.

Weights, gradients and optimiser state are float32 at every ZeRO stage; `bfloat16` is torch
autocast around the forward pass.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from alignment.config import Precision
from alignment.models.modules import LanguageModel
from alignment.models.optimizer import build_optimizer, build_schedule
from alignment.models.passes import Module, arithmetic
from alignment.role_specs import TrainableSpec
from alignment.training.roles import LogprobOutputs, ValueOutputs


class TupleOutputs(nn.Module):
    """Our module as DeepSpeed sees it: outputs as a tuple, autocast inside.

    DeepSpeed's backward hooks look into tuples but not into dataclasses, and its `forward`
    switches off an autocast that was entered outside of it.
    """

    def __init__(self, module: Module, precision: Precision) -> None:
        super().__init__()
        self.module = module
        self.precision = precision
        self._frozen = {
            f"module.{name}"
            for name, parameter in module.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad
        }
        self.register_state_dict_post_hook(_leave_out_frozen)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The fields of the module's outputs, in order."""
        with arithmetic(self.precision, inputs[0].device):
            outputs = self.module.forward(*inputs)
        return tuple(getattr(outputs, field.name) for field in fields(outputs))


def _leave_out_frozen(
    wrapper: TupleOutputs, state: dict[str, Tensor], prefix: str, _metadata: object
) -> None:
    """Frozen weights are in the model folder; DeepSpeed itself would still write a tied head."""
    for name in wrapper._frozen:
        state.pop(prefix + name, None)


class EngineModule(nn.Module):
    """The engine as our passes see it: `module` is ours, outputs are records again."""

    def __init__(self, engine: Any, module: Module) -> None:
        super().__init__()
        self.engine = engine
        self.module = module
        self._record: type[LogprobOutputs] | type[ValueOutputs] = (
            LogprobOutputs if isinstance(module, LanguageModel) else ValueOutputs
        )

    def forward(self, *inputs: Tensor) -> LogprobOutputs | ValueOutputs:
        """A forward pass through the engine's hooks."""
        names = [field.name for field in fields(self._record)]
        return self._record(**dict(zip(names, self.engine(*inputs), strict=True)))


class ClipAndReport:
    """Clips the gradient right before the optimiser uses it, and keeps its norm.

    Only for ZeRO stage 0, where DeepSpeed clips but does not tell the norm. A non-finite norm
    leaves the weights as they are.
    """

    def __init__(self, module: nn.Module, max_norm: float) -> None:
        self._parameters = list(module.parameters())
        self._max_norm = max_norm
        self.norm = 0.0

    def __call__(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Hook of `torch.optim.Optimizer.register_step_pre_hook`."""
        self.norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm))
        if not math.isfinite(self.norm):
            optimizer.zero_grad(set_to_none=True)  # a step without gradients changes nothing


def engine_config(spec: TrainableSpec) -> dict[str, Any]:
    """DeepSpeed's settings for a role; nothing is left to `auto`."""
    stage = spec.training.zero_stage
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": spec.optimizer.max_gradient_norm if stage else 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def start_engine(module: Module, spec: TrainableSpec) -> tuple[Any, ClipAndReport | None]:
    """The engine, and at ZeRO stage 0 what clips for it."""
    import deepspeed

    optimizer = build_optimizer(module, spec.optimizer)
    schedule = build_schedule(optimizer, spec.optimizer, spec.total_steps)
    clip = None
    if spec.training.zero_stage == 0:
        clip = ClipAndReport(module, spec.optimizer.max_gradient_norm)
        optimizer.register_step_pre_hook(clip)
    engine, *_ = deepspeed.initialize(
        model=TupleOutputs(module, spec.training.precision),
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=engine_config(spec),
        dist_init_required=False,
    )
    if spec.resources.ranks == 1 and spec.training.zero_stage == 0:
        # With nobody to average with, DeepSpeed would still copy all gradients there and back.
        engine.enable_backward_allreduce = False
    return engine, clip


@contextmanager
def gathered_parameters(parameters: list[Tensor]) -> Iterator[None]:
    """Make parameters whole that ZeRO 3 has sharded; a collective then, free otherwise."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


@contextmanager
def other_arithmetic(
    engine: Any, policy: LanguageModel, *, precision: Precision, temperature: float
) -> Iterator[None]:
    """Another precision and temperature for a while than the role's own."""
    wrapper: TupleOutputs = engine.module
    own = wrapper.precision, policy.temperature
    wrapper.precision, policy.temperature = precision, temperature
    try:
        yield
    finally:
        wrapper.precision, policy.temperature = own
