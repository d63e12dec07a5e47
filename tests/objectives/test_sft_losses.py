import math

import pytest
import torch
from gradient_check import assert_gradient
from plain_reference import log_softmax
from torch import Tensor

from alignment.objectives.logprobs import scatter_to_grid, token_logprobs
from alignment.objectives.sft_losses import perplexity, sft_loss

MASK = torch.tensor([[False, True, True], [False, False, True]])


def test_is_cross_entropy_of_the_response_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 11, dtype=torch.float64, generator=generator)
    targets = torch.tensor([4, 0, 10])

    def losses(logits):
        logprobs, _ = token_logprobs(logits, Tensor.clone, targets)
        return sft_loss(scatter_to_grid(logprobs, MASK), MASK)

    expected = [
        -log_softmax(row.tolist(), 1.0)[target]
        for row, target in zip(logits, targets.tolist(), strict=True)
    ]
    assert losses(logits)[MASK].tolist() == pytest.approx(expected, rel=1e-12)
    assert (losses(logits)[~MASK] == 0).all()
    assert_gradient(lambda x: losses(x).sum(), logits)


def test_nan_outside_the_mask_changes_neither_loss_nor_gradient():
    logprobs = torch.full((2, 3), -1.0).masked_fill(~MASK, math.nan).requires_grad_(True)
    losses = sft_loss(logprobs, MASK)
    losses.sum().backward()
    assert losses.tolist() == [[0, 1, 1], [0, 0, 1]]
    assert logprobs.grad.tolist() == [[0, -1, -1], [0, 0, -1]]


def test_perplexity_of_a_certain_and_a_uniform_model():
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(7)) == pytest.approx(7.0)
