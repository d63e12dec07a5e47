"""One check for every answer that comes from outside: a finite number for each response."""

import math
from typing import Any

import torch
from torch import Tensor

from alignment.errors import RewardError


def scores_from_answer(answer: Any, count: int, *, source: str) -> Tensor:
    """The answer as float32 [count].

    Args:
        answer: what came: a list, a tuple, or anything with `tolist()` (an array, a tensor).
        count: how many responses were asked about.
        source: who answered, for the message.

    Raises:
        RewardError: not a sequence of `count` finite numbers; says what came.
    """
    accepted = f"accepted: a list of {count} finite numbers, one a response in the order given"
    values = answer.tolist() if hasattr(answer, "tolist") else answer
    if not isinstance(values, list | tuple):
        raise RewardError(f"{source} gave {_short(values)}; {accepted}")
    if len(values) != count:
        raise RewardError(f"{source} gave {len(values)} scores for {count} responses; {accepted}")
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RewardError(f"{source} gave {_short(value)} for response {row}; {accepted}")
        if not math.isfinite(value) or abs(value) > torch.finfo(torch.float32).max:
            raise RewardError(f"{source} gave {value} for response {row}; {accepted}")
    return torch.tensor(values, dtype=torch.float32)


def _short(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 80 else shown[:80] + '…'}"
