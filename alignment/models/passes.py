"""Whole batches through a module, one microbatch at a time.

Used by the in-process roles and by the Ray actors alike, so that both compute the same thing.
Results come back in the batch's own row order.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.config import Precision
from alignment.data.batching import plan_microbatches, plan_packed
from alignment.experience import BatchT, PreferenceBatch, TokenBatch, select_rows
from alignment.models.modules import LanguageModel, ValueModel
from alignment.models.packing import packs
from alignment.training.roles import LogprobOutputs, Loss, ValueOutputs

Module = LanguageModel | ValueModel
Backward = Callable[[Tensor, bool], None]
"""`backward(loss, is_last_microbatch)`: adds gradients; the flag lets ranks synchronise once."""


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for `bfloat16`: weights, gradients and optimiser state stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def microbatches(module: torch.nn.Module, batch: BatchT, *, tokens: int) -> list[BatchT]:
    """The batch cut into pieces of at most `tokens` tokens each, groups kept whole.

    Padding counts as tokens, unless the module's rows are packed.
    """
    groups = batch.group.tolist() if isinstance(batch, PreferenceBatch) else None
    return [select_rows(batch, rows) for rows in _plan(module, batch, tokens, groups)]


@dataclass(frozen=True, slots=True)
class KeptPass:
    """A microbatch's forward pass, made for its answers, that its loss can start from.

    Good for one backward pass, at the weights it was made with.
    """

    piece: TokenBatch
    outputs: LogprobOutputs | ValueOutputs

    def is_of(self, piece: TokenBatch) -> bool:
        """Whether it read the tokens of this microbatch and speaks about the same ones."""
        names = ("token_ids", "attention_mask", "response_mask")
        return all(torch.equal(getattr(self.piece, n), getattr(piece, n)) for n in names)


def first_pass(
    module: torch.nn.Module, batch: TokenBatch, *, tokens: int, precision: Precision = "float32"
) -> KeptPass | None:
    """The forward pass of the batch's first microbatch, with all that its backward pass needs.

    None where training drops out inputs, for then its own pass is another one.
    """
    if _inner(module).adapters.have_dropout:
        return None
    piece = select_rows(batch, _plan(module, batch, tokens)[0])
    device = next(module.parameters()).device
    with arithmetic(precision, device):
        return KeptPass(piece, run(module, piece, device))


def accumulate_gradients(
    module: torch.nn.Module,
    pieces: Sequence[TokenBatch],
    loss: Loss,
    *,
    denominator: float,
    backward: Backward,
    precision: Precision = "float32",
    weights: Sequence[float] | None = None,
    kept: KeptPass | None = None,
) -> dict[str, float]:
    """Back-propagate `sum of loss / denominator` over all microbatches; return metrics likewise.

    `weights` scales single microbatches; a weight of 0 keeps ranks in step without changing the
    gradient, and such a microbatch is left out of the metrics. `kept` spares the first one its
    forward pass, if it is of that microbatch.
    """
    device = next(module.parameters()).device
    totals: dict[str, float] = {"loss": 0.0}
    if kept is not None and not kept.is_of(pieces[0]):
        kept = None
    for index, piece in enumerate(pieces):
        weight = 1.0 if weights is None else weights[index]
        with _inner(module).adapters.dropout():  # the backward pass may recompute the forward
            with arithmetic(precision, device):
                outputs = kept.outputs if kept is not None else run(module, piece, device)
                sums = loss(outputs, _to(piece, device))
            backward(sums.loss * (weight / denominator), index == len(pieces) - 1)
            kept = None
        if weight == 0.0:
            continue
        totals["loss"] += float(sums.loss.detach()) / denominator
        for name, value in sums.metrics.items():
            new = float(value.detach())
            totals[name] = merge_metric(name, totals[name], new) if name in totals else new
    return totals


def merge_metric(name: str, so_far: float, new: float) -> float:
    """Combine a metric over microbatches or ranks: `_max` names by maximum, others by sum."""
    return max(so_far, new) if name.endswith("_max") else so_far + new


def logprobs_of(
    module: LanguageModel | torch.nn.Module,
    batch: TokenBatch,
    *,
    tokens: int,
    precision: Precision = "float32",
    kept: KeptPass | None = None,
) -> Tensor:
    """Log-probability of each response token, float32 [B, T] on CPU, 0 elsewhere.

    `kept` is the first microbatch's pass, if it was made already.
    """
    grid = torch.zeros(batch.token_ids.shape)
    for rows, outputs in _answers(module, batch, tokens, precision, kept):
        assert isinstance(outputs, LogprobOutputs)
        _paste(grid, rows, outputs.new_logprobs)
    return grid


def values_of(
    module: ValueModel | torch.nn.Module,
    batch: TokenBatch,
    *,
    tokens: int,
    precision: Precision = "float32",
    kept: KeptPass | None = None,
) -> Tensor:
    """Value before each response token, float32 [B, T] on CPU, 0 elsewhere; `kept` as above."""
    grid = torch.zeros(batch.token_ids.shape)
    for rows, outputs in _answers(module, batch, tokens, precision, kept):
        assert isinstance(outputs, ValueOutputs)
        _paste(grid, rows, outputs.new_values)
    return grid


def scores_of(
    module: ValueModel | torch.nn.Module,
    batch: TokenBatch,
    *,
    tokens: int,
    precision: Precision = "float32",
) -> Tensor:
    """Score of each sequence, float32 [B] on CPU; [B, heads] of an ensemble."""
    scores = torch.zeros(0)
    for rows, outputs in _answers(module, batch, tokens, precision):
        assert isinstance(outputs, ValueOutputs)
        if not scores.numel():
            scores = torch.zeros(len(batch.token_ids), *outputs.scores.shape[1:])
        scores[rows] = outputs.scores.cpu()
    return scores


def run(
    module: torch.nn.Module, piece: TokenBatch, device: torch.device
) -> LogprobOutputs | ValueOutputs:
    """One forward pass. `module` may be a wrapper (a DeepSpeed engine) around one of ours."""
    token_ids, response_mask = piece.token_ids.to(device), piece.response_mask.to(device)
    if isinstance(_inner(module), ValueModel):
        values: ValueOutputs = module(token_ids, piece.attention_mask.to(device), response_mask)
        return values
    logprobs: LogprobOutputs = module(token_ids, response_mask)
    return logprobs


def _inner(module: torch.nn.Module) -> Module:
    """Our own module, within a wrapper or bare."""
    inner: Module = getattr(module, "module", module)
    return inner


def _plan(
    module: torch.nn.Module, batch: TokenBatch, tokens: int, groups: Sequence[int] | None = None
) -> list[list[int]]:
    lengths = batch.attention_mask.sum(1).tolist()
    plan = plan_packed if packs(_inner(module).backbone) else plan_microbatches
    return plan(lengths, tokens_per_microbatch=tokens, groups=groups)


def _answers(
    module: torch.nn.Module,
    batch: TokenBatch,
    tokens: int,
    precision: Precision,
    kept: KeptPass | None = None,
) -> Iterator[tuple[Tensor, LogprobOutputs | ValueOutputs]]:
    device = next(module.parameters()).device
    for index, rows in enumerate(_plan(module, batch, tokens)):
        if kept is not None and index == 0:
            yield torch.tensor(rows), kept.outputs
            continue
        with torch.no_grad(), arithmetic(precision, device):
            yield torch.tensor(rows), run(module, select_rows(batch, rows), device)


def _paste(grid: Tensor, rows: Tensor, piece: Tensor) -> None:
    grid[rows, : piece.shape[1]] = piece.detach().float().cpu()


def _to(batch: BatchT, device: torch.device) -> BatchT:
    if device.type == "cpu":
        return batch
    from dataclasses import fields, replace

    return replace(batch, **{f.name: getattr(batch, f.name).to(device) for f in fields(batch)})
