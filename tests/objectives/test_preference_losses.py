import itertools
import math

import pytest
import torch
from gradient_check import assert_gradient
from plain_reference import bradley_terry, plackett_luce, plackett_luce_order

from alignment.errors import DataError
from alignment.objectives.preference_losses import (
    MAX_RANKED,
    bradley_terry_loss,
    plackett_luce_loss,
    preference_group_loss,
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def scores_of(count, seed=0):
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preference", [0.0, 1 / 3, 0.5, 1.0])
@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_bradley_terry_equals_the_plain_reference(preference, margin):
    differences = numbers(-3.0, -0.5, 0.0, 0.2, 4.0)
    losses = bradley_terry_loss(differences, preference=preference, margin=margin, weight=2.5)
    expected = [
        bradley_terry(d, preference=preference, margin=margin, weight=2.5)
        for d in differences.tolist()
    ]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)


def test_bradley_terry_without_margin_is_binary_cross_entropy_with_logits():
    differences, preferences = scores_of(20), torch.sigmoid(scores_of(20, seed=1))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        differences, preferences, reduction="none"
    )
    losses = bradley_terry_loss(differences, preference=preferences)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)


def test_swapping_the_two_responses_changes_nothing():
    differences, preferences = scores_of(20), torch.sigmoid(scores_of(20, seed=1))
    torch.testing.assert_close(
        bradley_terry_loss(differences, preference=preferences, margin=0.4),
        bradley_terry_loss(-differences, preference=1 - preferences, margin=0.4),
    )


def test_a_tie_pulls_together_and_a_win_apart():
    difference = numbers(1.0).requires_grad_(True)
    for preference, sign in [(1.0, -1), (0.5, 1), (0.0, 1)]:
        loss = bradley_terry_loss(difference, preference=preference).sum()
        (gradient,) = torch.autograd.grad(loss, difference)
        assert math.copysign(1, float(gradient)) == sign
    tied = numbers(0.0).requires_grad_(True)
    bradley_terry_loss(tied, preference=0.5).sum().backward()
    assert float(tied.grad) == 0.0


def test_bradley_terry_gradient_and_extremes():
    preferences, margins = torch.sigmoid(scores_of(8, seed=1)), scores_of(8, seed=2).abs()
    assert_gradient(
        lambda d: bradley_terry_loss(d, preference=preferences, margin=margins, weight=1.5).sum(),
        scores_of(8),
    )
    far = numbers(1e4, -1e4).requires_grad_(True)
    losses = bradley_terry_loss(far)
    losses.sum().backward()
    assert losses.tolist() == [0.0, 1e4]
    assert far.grad.tolist() == [0.0, -1.0]


# Two groups of 3 and 2 responses, rows shuffled; group 7 also has a tie and one pair not compared.
GROUP = torch.tensor([7, 3, 7, 3, 7])
MEMBER = torch.tensor([2, 0, 0, 1, 1])
PAIRS = [  # (row, other row, preference for row, weight)
    (2, 4, 1.0, 2.0),
    (0, 4, 0.5, 1.0),
    (3, 1, 0.25, 3.0),
]


def comparison_grids(pairs=PAIRS, dtype=torch.float64):
    preference, weight = torch.zeros(5, 3, dtype=dtype), torch.zeros(5, 3, dtype=dtype)
    for row, other, share, strength in pairs:
        preference[row, MEMBER[other]] = share
        weight[row, MEMBER[other]] = strength
    return preference, weight


def group_loss(scores, pairs=PAIRS, **options):
    preference, weight = comparison_grids(pairs)
    return preference_group_loss(
        scores, group=GROUP, member=MEMBER, preference=preference, pair_weight=weight, **options
    )


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_group_loss_is_the_sum_over_its_pairs(margin):
    scores = scores_of(5)
    result = group_loss(scores, margin=margin)
    expected = sum(
        bradley_terry(
            float(scores[row] - scores[other]), preference=share, margin=margin, weight=strength
        )
        for row, other, share, strength in PAIRS
    )
    assert float(result.loss) == pytest.approx(expected, rel=1e-12)
    assert float(result.weight) == 6.0
    assert int(result.decided) == 2
    assert_gradient(lambda s: group_loss(s, margin=margin).loss, scores)


@pytest.mark.parametrize(
    ("scores", "correct"),
    [
        # Wanted: row 2 above row 4, row 1 above row 3.
        ((0.0, 1.0, 1.0, 0.0, 0.0), 2.0),
        ((0.0, 0.0, 1.0, 1.0, 0.0), 1.0),
        ((9.0, 0.0, 0.0, 1.0, 1.0), 0.0),
        ((0.0, 0.0, 1.0, 0.0, 0.0), 1.5),  # rows 1 and 3 equal: half
    ],
)
def test_agreement_counts_decided_pairs_and_half_of_equal_scores(scores, correct):
    assert float(group_loss(numbers(*scores)).correct) == correct


def test_a_pair_may_be_given_from_either_side():
    swapped = [(other, row, 1 - share, strength) for row, other, share, strength in PAIRS]
    one, two = group_loss(scores_of(5)), group_loss(scores_of(5), pairs=swapped)
    assert float(one.loss) == pytest.approx(float(two.loss), rel=1e-12)
    assert float(one.correct) == float(two.correct)


def test_groups_may_be_cut_into_microbatches_and_ordered_at_will():
    scores = scores_of(5)
    preference, weight = comparison_grids()
    parts = [
        preference_group_loss(
            scores[rows],
            group=GROUP[rows],
            member=MEMBER[rows],
            preference=preference[rows],
            pair_weight=weight[rows],
        )
        for rows in ([4, 0, 2], [3, 1])
    ]
    whole = group_loss(scores)
    for name in ("loss", "weight", "correct", "decided"):
        total = sum(float(getattr(part, name)) for part in parts)
        assert total == pytest.approx(float(getattr(whole, name)), rel=1e-12)


def test_a_group_torn_apart_is_refused():
    preference, weight = comparison_grids()
    rows = [0, 1, 2, 3]  # row 4 is missing, rows 0 and 2 are compared with it
    with pytest.raises(DataError, match="row 0 of group 7 is compared with member 1"):
        preference_group_loss(
            scores_of(4),
            group=GROUP[rows],
            member=MEMBER[rows],
            preference=preference[rows],
            pair_weight=weight[rows],
        )


def test_a_member_twice_is_refused():
    preference, weight = comparison_grids()
    with pytest.raises(DataError, match="two rows of the batch are the same member"):
        preference_group_loss(
            scores_of(5),
            group=GROUP,
            member=torch.tensor([2, 0, 0, 1, 2]),
            preference=preference,
            pair_weight=weight,
        )


TIERS = [
    (0, 1, 2, 3),
    (3, 0, 2, 1),
    (0, 0, 1, 2),
    (1, 0, 0, 0),
    (0, 0, 0, 0),
    (1, 1, 0, 0),
    (2, -1, 0, 1),
    (0, -1, -1, 0),
    (1, 0, -1, 0),
]


@pytest.mark.parametrize("tiers", TIERS)
def test_plackett_luce_is_the_mean_over_every_order_of_the_ties(tiers):
    scores = scores_of(4)
    loss = plackett_luce_loss(scores[None], torch.tensor([tiers]))
    assert float(loss) == pytest.approx(plackett_luce(scores.tolist(), tiers), rel=1e-12)
    assert_gradient(lambda s: plackett_luce_loss(s[None], torch.tensor([tiers])).sum(), scores)


def test_plackett_luce_probabilities_of_all_orders_sum_to_one():
    scores = scores_of(5)
    orders = list(itertools.permutations(range(5)))
    tiers = torch.tensor([[order.index(k) for k in range(5)] for order in orders])
    probabilities = torch.exp(-plackett_luce_loss(scores.expand(len(orders), 5), tiers))
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)
    for order, probability in zip(orders, probabilities.tolist(), strict=True):
        expected = plackett_luce_order(scores.tolist(), order)
        assert probability == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("tiers", "preference"), [((0, 1), 1.0), ((1, 0), 0.0), ((0, 0), 0.5)])
def test_plackett_luce_of_two_is_bradley_terry(tiers, preference):
    scores = scores_of(2)
    expected = bradley_terry_loss(scores[0] - scores[1], preference=preference)
    loss = plackett_luce_loss(scores[None], torch.tensor([tiers]))
    torch.testing.assert_close(loss[0], expected, rtol=1e-12, atol=1e-12)


def test_plackett_luce_ignores_a_shift_of_all_scores_and_large_ones_stay_finite():
    tiers = torch.tensor([[0, 1, 1, 2]])
    scores = scores_of(4)[None]
    torch.testing.assert_close(
        plackett_luce_loss(scores, tiers),
        plackett_luce_loss(scores + 1e3, tiers),
        rtol=1e-9,
        atol=0,
    )
    assert torch.isfinite(plackett_luce_loss(numbers(1e4, -1e4, 0.0, 0.0)[None], tiers)).all()


def test_a_response_that_was_not_ranked_has_no_part_in_the_loss():
    scores = numbers(0.3, math.nan, -0.2).requires_grad_(True)
    loss = plackett_luce_loss(scores[None], torch.tensor([[1, -1, 0]])).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(bradley_terry(-0.5, preference=1.0), rel=1e-12)
    assert float(scores.grad[1]) == 0.0


def test_lists_of_different_length_share_a_batch():
    scores = torch.stack([scores_of(4), scores_of(4, seed=1)])
    tiers = torch.tensor([[0, 1, 1, 2], [1, 0, -1, -1]])
    losses = plackett_luce_loss(scores, tiers)
    for row in range(2):
        torch.testing.assert_close(
            losses[row : row + 1], plackett_luce_loss(scores[row : row + 1], tiers[row : row + 1])
        )


def test_too_long_a_list_is_refused():
    with pytest.raises(DataError, match=f"at most {MAX_RANKED}"):
        plackett_luce_loss(torch.zeros(1, MAX_RANKED + 1), torch.zeros(1, MAX_RANKED + 1).long())
