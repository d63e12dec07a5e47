"""Drawing by inversion: exact shares, nothing impossible, whatever the vocabulary's size."""

import pytest
import torch

from alignment.cluster.vllm_sampling import BLOCK, invert, uniforms

LARGEST = 1.0 - 2.0**-53
"""The largest float64 below 1."""


def evenly(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("vocabulary", [3, BLOCK, BLOCK + 1, 3 * BLOCK, 1000])
def test_a_tokens_share_of_evenly_spaced_places_is_its_probability(vocabulary: int) -> None:
    """Of n places evenly apart, an interval of length p holds n p, less than one off."""
    count = 20_000
    logits = 3 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    probabilities = logits.softmax(-1)
    drawn = invert(probabilities.expand(count, -1), evenly(count))
    seen = drawn.bincount(minlength=vocabulary).double()
    wanted = count * logits.double().softmax(-1)
    assert (seen - wanted).abs().max() < 1.01


def test_places_go_up_with_the_tokens() -> None:
    probabilities = torch.tensor([0.25, 0.0, 0.5, 0.25])
    places = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, LARGEST], dtype=torch.float64)
    assert invert(probabilities.expand(6, -1), places).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("place", [0.0, 0.5, LARGEST])
@pytest.mark.parametrize("only", [0, 63, 64, 129])
def test_the_only_possible_token_is_drawn_wherever_it_is(only: int, place: float) -> None:
    probabilities = torch.zeros(1, 130)
    probabilities[0, only] = 1e-30
    assert invert(probabilities, torch.tensor([place], dtype=torch.float64)).tolist() == [only]


def test_what_is_impossible_is_not_drawn_at_any_edge() -> None:
    """Edges of all tokens, and the float64 numbers around them."""
    draw = torch.Generator().manual_seed(0)
    probabilities = torch.rand(300, generator=draw) * (torch.rand(300, generator=draw) < 0.1)
    ends = probabilities.cumsum(-1, dtype=torch.float64) / probabilities.double().sum()
    zero, one = torch.zeros_like(ends), torch.ones_like(ends)
    places = torch.cat([ends.nextafter(zero), ends, ends.nextafter(one)]).clamp(0.0, LARGEST)
    drawn = invert(probabilities.expand(len(places), -1), places)
    assert (probabilities[drawn] > 0).all()


def test_a_place_that_rounding_made_1_is_that_of_the_last_possible_token() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.0, 0.0]])
    assert invert(probabilities, torch.tensor([1.0], dtype=torch.float64)).tolist() == [1]


def test_a_row_that_is_not_finite_breaks_nothing() -> None:
    probabilities = torch.full((1, 100), torch.nan)
    [token] = invert(probabilities, torch.tensor([0.3], dtype=torch.float64)).tolist()
    assert 0 <= token < 2 * BLOCK


def test_a_rows_number_is_its_own_generators() -> None:
    def generators() -> dict[int, torch.Generator]:
        return {row: torch.Generator().manual_seed(10 + row) for row in (0, 2)}

    torch.manual_seed(0)
    first = uniforms(3, generators())
    torch.manual_seed(1)
    second = uniforms(3, generators())
    assert [first[0], first[2]] == [second[0], second[2]]
    assert first[0] != first[2]
    assert first[1] != second[1]
    own = torch.rand((), generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    assert first[2] == own
