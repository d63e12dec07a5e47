import pytest
import torch
from gradient_check import assert_gradient
from plain_reference import entropy, log_softmax
from torch import Tensor, nn

from alignment.errors import DataError
from alignment.objectives.logprobs import (
    KEPT_CHUNKS,
    ROWS_ON_CPU,
    chunk_count,
    gather_before,
    positions_before,
    scatter_to_grid,
    token_logprobs,
)

HIDDEN, VOCABULARY, TOKENS = 6, 29, 10


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=dtype, generator=generator)
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=dtype, generator=generator)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden, weight, targets


class CountingHead(nn.Linear):
    """An lm head that remembers how many rows each call had."""

    def __init__(self, weight):
        super().__init__(weight.shape[1], weight.shape[0], bias=False)
        self.weight = nn.Parameter(weight.clone())
        self.rows = []

    def forward(self, hidden):
        self.rows.append(len(hidden))
        return super().forward(hidden)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 10, 1000])
def test_equals_the_plain_reference(temperature, chunk_tokens):
    hidden, weight, targets = inputs()
    logprobs, entropies = token_logprobs(
        hidden,
        lambda h: h @ weight.T,
        targets,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
    )
    for n, logits in enumerate((hidden @ weight.T).tolist()):
        expected = log_softmax(logits, temperature)[int(targets[n])]
        assert float(logprobs[n]) == pytest.approx(expected, rel=1e-10)
        assert float(entropies[n]) == pytest.approx(entropy(logits, temperature), rel=1e-10)


@pytest.mark.parametrize("chunk_tokens", [2, 10])
@pytest.mark.parametrize("with_entropy_gradient", [False, True])
def test_gradients(chunk_tokens, with_entropy_gradient):
    hidden, weight, targets = inputs()
    mix = torch.linspace(-1, 1, TOKENS, dtype=torch.float64)

    def total(hidden, weight):
        logprobs, entropies = token_logprobs(
            hidden,
            lambda h: h @ weight.T,
            targets,
            temperature=0.7,
            chunk_tokens=chunk_tokens,
            with_entropy_gradient=with_entropy_gradient,
        )
        return (mix * logprobs).sum() + (0.3 * entropies.sum() if with_entropy_gradient else 0.0)

    assert_gradient(lambda h: total(h, weight), hidden, tolerance=1e-6)
    assert_gradient(lambda w: total(hidden, w), weight, tolerance=1e-6)


def test_the_entropy_alone_has_its_gradient():
    hidden, weight, targets = inputs()
    assert TOKENS > ROWS_ON_CPU  # the last rows are taken apart

    def total(hidden):
        entropies = token_logprobs(
            hidden, lambda h: h @ weight.T, targets, temperature=2.0, with_entropy_gradient=True
        )[1]
        return (torch.linspace(-1, 1, TOKENS, dtype=torch.float64) * entropies).sum()

    assert_gradient(total, hidden, tolerance=1e-6)


def test_half_precision_logits_have_the_gradient_of_the_float32_ones_rounded_once():
    hidden, weight, targets = inputs(torch.bfloat16)
    logits = (hidden @ weight.T).requires_grad_(True)
    token_logprobs(logits, Tensor.clone, targets, temperature=0.7)[0].sum().backward()
    wide = logits.detach().float().requires_grad_(True)
    torch.log_softmax(wide / 0.7, -1)[torch.arange(TOKENS), targets].sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad, wide.grad.bfloat16(), rtol=2**-8, atol=0)


def test_entropy_is_a_metric_without_gradient_unless_asked_for():
    hidden, weight, targets = inputs()
    hidden.requires_grad_(True)
    for wanted in (False, True):
        _, entropies = token_logprobs(
            hidden,
            lambda h: h @ weight.T,
            targets,
            chunk_tokens=4,
            with_entropy_gradient=wanted,
        )
        assert entropies.requires_grad == wanted


def test_chunks_bound_what_is_projected_and_what_is_kept_for_backward():
    """Few chunks keep their logits and nothing else of that size; many keep none."""
    hidden, weight, targets = inputs()
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    sizes = {}
    for chunk_tokens in (TOKENS, 4, 2):
        head = CountingHead(weight)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logprobs, _ = token_logprobs(
                hidden.clone().requires_grad_(True), head, targets, chunk_tokens=chunk_tokens
            )
        sizes[chunk_tokens] = sum(kept)
        assert max(head.rows) <= chunk_tokens
        assert sum(head.rows) == TOKENS
        logprobs.sum().backward()
        is_recomputed = chunk_count(TOKENS, chunk_tokens) > KEPT_CHUNKS
        assert sum(head.rows) == TOKENS * (1 + is_recomputed)
    others = HIDDEN * VOCABULARY + TOKENS * HIDDEN + TOKENS  # weight, hidden, targets
    assert sizes[TOKENS] == TOKENS * VOCABULARY + others
    assert sizes[4] == sizes[TOKENS] + 2 * HIDDEN * VOCABULARY  # the weight, by each chunk
    assert sizes[2] < TOKENS * VOCABULARY / 2


def test_the_gradient_takes_the_place_of_the_logits():
    """So a second backward pass has nothing to go by, and is refused."""
    hidden, weight, targets = inputs()
    projected = []

    def project(h):
        projected.append(h @ weight.T)
        return projected[-1]

    logprobs, _ = token_logprobs(hidden.requires_grad_(True), project, targets)
    [logits] = projected
    p = logits.detach().softmax(-1)
    logprobs.sum().backward(retain_graph=True)
    wanted = torch.nn.functional.one_hot(targets, VOCABULARY) - p
    torch.testing.assert_close(logits.detach(), wanted.to(logits.dtype))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprobs.sum().backward()


def test_without_gradients_nothing_is_computed_twice():
    hidden, weight, targets = inputs()
    head = CountingHead(weight)
    with torch.no_grad():
        token_logprobs(hidden, head, targets, chunk_tokens=4)
    assert head.rows == [4, 3, 3]


def test_ranks_with_different_token_counts_can_project_equally_often():
    hidden, weight, targets = inputs()
    calls = []
    for count in (0, 3, TOKENS):
        head = CountingHead(weight)
        logprobs, entropies = token_logprobs(
            hidden[:count].clone().requires_grad_(True),
            head,
            targets[:count],
            chunk_tokens=2,
            min_chunks=chunk_count(TOKENS, 2),
        )
        assert len(logprobs) == len(entropies) == count
        logprobs.sum().backward()
        calls.append(len(head.rows))
    assert calls == [10, 10, 10]  # 5 in forward, 5 recomputed in backward


def test_a_batch_without_response_tokens_still_has_a_graph():
    hidden, weight, targets = inputs()
    head = CountingHead(weight)
    logprobs, _ = token_logprobs(hidden[:0].requires_grad_(True), head, targets[:0])
    logprobs.sum().backward()
    assert (head.weight.grad == 0).all()


def test_half_precision_logits_are_taken_to_float32_before_the_softmax():
    hidden, weight, targets = inputs(torch.bfloat16)
    logprobs, entropies = token_logprobs(hidden, lambda h: h @ weight.T, targets, temperature=0.7)
    assert logprobs.dtype == entropies.dtype == torch.float32
    exact = torch.log_softmax((hidden @ weight.T).double() / 0.7, -1)
    expected = exact[torch.arange(TOKENS), targets].float()
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)


def test_uniform_logits_have_entropy_log_v():
    _, entropies = token_logprobs(torch.zeros(2, 50), lambda h: h, torch.tensor([0, 1]))
    torch.testing.assert_close(entropies, torch.full((2,), 50.0).log())


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"chunk_tokens": 0}])
def test_settings_that_are_not_positive_are_refused(options):
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match="must be positive"):
        token_logprobs(hidden, lambda h: h @ weight.T, targets, **options)


# Prompt and response at the left, at the right (left padding), and with a gap of tool output.
MASK = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [0, 1, 1, 0, 0, 1]]) == 1


def test_each_response_token_is_spoken_about_by_its_left_neighbour():
    rows, columns = positions_before(MASK)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (1, 3),
        (1, 4),
        (2, 0),
        (2, 1),
        (2, 4),  # the last token of the gap
    ]


def test_gather_and_scatter_go_back_and_forth():
    """Output t - 1 holds the number t: what is scattered to place t must be t itself."""
    outputs = torch.arange(1.0, 7.0).expand(3, 6).clone()
    grid = scatter_to_grid(gather_before(outputs, MASK), MASK)
    expected = torch.where(MASK, torch.arange(6.0), 0.0)
    torch.testing.assert_close(grid, expected)


def test_gather_keeps_feature_axes_and_the_order_of_the_tokens():
    token_ids = torch.arange(18).reshape(3, 6)
    features = torch.stack([token_ids + 1, -(token_ids + 1)], -1)
    gathered = gather_before(features, MASK)
    assert gathered[:, 0].tolist() == token_ids[MASK].tolist()
    assert gathered[:, 1].tolist() == (-token_ids[MASK]).tolist()


def test_gather_and_scatter_are_differentiable():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    weights = torch.randn(3, 6, dtype=torch.float64, generator=generator)

    def total(outputs):
        return (weights * scatter_to_grid(gather_before(outputs, MASK).square(), MASK)).sum()

    assert_gradient(total, outputs)


def test_a_response_at_position_0_is_refused_by_row():
    mask = MASK.clone()
    mask[1, 0] = True
    with pytest.raises(DataError, match="position 0 of row 1"):
        gather_before(torch.zeros(3, 6), mask)
