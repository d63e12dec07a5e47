"""The moving average of trained weights: its recursion, its checkpoint, and what is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from alignment.errors import CheckpointError
from alignment.models.weight_average import AVERAGE_FILE, WeightAverage

DECAY = 0.8


def module() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def move(model: nn.Linear, step: int) -> torch.Tensor:
    with torch.no_grad():
        model.weight.add_(float(step))
    return model.weight.detach().double().clone()


def test_average_follows_its_recursion_and_the_module_keeps_its_weights() -> None:
    model = module()
    average, expected = WeightAverage(model, DECAY), model.weight.detach().double().clone()
    for step in range(1, 5):
        expected = DECAY * expected + (1 - DECAY) * move(model, step)
        average.update()
    own = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight.double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(model.weight, own)
    assert not torch.allclose(own.double(), expected, atol=0.1)


def test_without_a_decay_nothing_is_kept_or_written(tmp_path: Path) -> None:
    model = module()
    average = WeightAverage(model, None)
    own = move(model, 1)
    average.update()
    average.save(tmp_path)
    average.load(tmp_path)
    with average.in_place():
        assert torch.equal(model.weight.double(), own)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_the_average_or_of_another_model_is_refused(tmp_path: Path) -> None:
    average = WeightAverage(module(), DECAY)
    with pytest.raises(CheckpointError, match=r"has no average\.pt, which `ppo\.ema_decay` needs"):
        average.load(tmp_path)
    WeightAverage(nn.Linear(3, 2, bias=False), DECAY).save(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{AVERAGE_FILE} is of another model \(bias"):
        average.load(tmp_path)
