import itertools
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from alignment.errors import DataError
from alignment.statistics.ranking import fit_bradley_terry, fit_choices, fit_plackett_luce


@pytest.fixture
def reference():
    """The test data's reference/ folder; skips where there is no test data."""
    folder = os.environ.get("ALIGNFLOW_TEST_DATA")
    if not folder:
        pytest.skip("ALIGNFLOW_TEST_DATA is not set: reference cases are not available")
    return Path(folder) / "reference"


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_baseball_abilities_equal_the_published_ones(reference):
    case = load(reference / "bradley_terry_baseball.json")
    fit = fit_bradley_terry(case["wins_row_over_column"])
    relative = fit.log_worths - fit.log_worths[case["teams"].index("Baltimore")]
    expected = [case["log_abilities_relative_to_Baltimore"][team] for team in case["teams"]]
    assert relative.tolist() == pytest.approx(expected, abs=5e-5)


def test_netflix_rankings_equal_the_expected_fit(reference):
    names, rankings, counts = {}, [], []
    for line in (reference / "netflix.soc").read_text(encoding="utf-8").splitlines():
        if name := re.match(r"# ALTERNATIVE NAME (\d+): (.*)", line):
            names[f"{name[1]} {name[2]}"] = int(name[1]) - 1
        elif not line.startswith("#"):
            count, order = line.split(":")
            counts.append(int(count))
            rankings.append([int(item) - 1 for item in order.split(",")])
    assert (sum(counts), len(names)) == (588, 4)
    expected = load(reference / "plackett_luce_expected.json")["netflix.soc"]
    fit = fit_plackett_luce(rankings, items=4, counts=counts)
    assert fit.log_likelihood == pytest.approx(expected["log_likelihood"], abs=5e-5)
    for name, log_worth in expected["log_worth"].items():
        assert fit.log_worths[names[name]] == pytest.approx(log_worth, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "as_choices"),
    [
        ("pairwise-1", lambda data: [(winner, [loser], 1) for winner, loser in data]),
        ("pairwise-2", lambda data: [(winner, [loser], 1) for winner, loser in data]),
        ("top1-1", lambda data: [(winner, others, 1) for winner, others in data]),
        (
            "rankings-1",
            lambda data: [(r[i], r[i + 1 :], 1) for r in data for i in range(len(r) - 1)],
        ),
    ],
)
def test_published_maximum_likelihood_cases(reference, name, as_choices):
    case = load(reference / f"choix-testcase-{name}.json")
    fit = fit_choices(as_choices(case["data"]), items=case["n_items"])
    assert fit.log_worths.tolist() == pytest.approx(case["ml_est"], abs=1e-8)


def log_likelihood(theta, rankings):
    """Written out: each place of each ranking is a softmax over what is left."""
    total = 0.0
    for ranking in rankings:
        for place in range(len(ranking)):
            left = sum(math.exp(theta[item]) for item in ranking[place:])
            total += theta[ranking[place]] - math.log(left)
    return total


RANKINGS = [[0, 1, 2, 3], [3, 1, 0], [2, 0, 3, 1], [1, 3], [3, 2, 1, 0], [0, 2], [1, 0, 3, 2]]


def test_fit_of_partial_rankings_is_where_the_likelihood_is_flat_and_highest():
    fit = fit_plackett_luce(RANKINGS, items=4)
    assert fit.log_worths.mean() == pytest.approx(0.0, abs=1e-12)
    best = log_likelihood(fit.log_worths, RANKINGS)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-10)
    for item in range(4):
        nudge = np.eye(4)[item] * 1e-4
        above = log_likelihood(fit.log_worths + nudge, RANKINGS)
        below = log_likelihood(fit.log_worths - nudge, RANKINGS)
        assert (above - below) / 2e-4 == pytest.approx(0.0, abs=1e-6)
        assert max(above, below) < best


def test_counts_are_repetitions_and_names_of_items_do_not_matter():
    once = fit_plackett_luce([*RANKINGS, RANKINGS[0], RANKINGS[0]], items=4)
    counted = fit_plackett_luce(RANKINGS, items=4, counts=[3, 1, 1, 1, 1, 1, 1])
    assert counted.log_worths == pytest.approx(once.log_worths, abs=1e-9)
    assert counted.log_likelihood == pytest.approx(once.log_likelihood, abs=1e-9)
    renamed = [[3 - item for item in ranking] for ranking in RANKINGS]
    again = fit_plackett_luce(renamed, items=4).log_worths[::-1]
    assert again == pytest.approx(fit_plackett_luce(RANKINGS, items=4).log_worths, abs=1e-9)


def test_two_items_have_the_log_odds_of_their_wins():
    fit = fit_bradley_terry([[0, 3.5], [1.5, 0]])  # 3 wins, 1 loss, 1 tie
    half = 0.5 * math.log(3.5 / 1.5)
    assert fit.log_worths.tolist() == pytest.approx([half, -half])


def test_rankings_of_two_are_comparisons():
    wins = np.array([[0, 4, 2], [1, 0, 3], [3, 2, 0]])
    pairs = list(itertools.permutations(range(3), 2))
    as_rankings = fit_plackett_luce(pairs, items=3, counts=[wins[pair] for pair in pairs])
    assert as_rankings.log_worths == pytest.approx(fit_bradley_terry(wins).log_worths, abs=1e-9)


def test_known_worths_are_recovered_from_many_rankings():
    """Gumbel-max: sorting theta + Gumbel noise samples Plackett-Luce orders exactly."""
    theta = np.array([1.0, 0.2, 0.0, -0.5, -0.7])
    noise = np.random.default_rng(0).gumbel(size=(4000, 5))
    rankings = np.argsort(-(theta + noise), axis=1).tolist()
    fit = fit_plackett_luce(rankings, items=5)
    assert fit.log_worths == pytest.approx(theta, abs=0.06)


def test_an_item_that_never_wins_has_no_estimate():
    with pytest.raises(DataError, match="item 1 was never chosen over item 0"):
        fit_bradley_terry([[0, 2], [0, 0]])


def test_groups_that_were_never_compared_have_no_estimate():
    with pytest.raises(DataError, match="no finite maximum-likelihood estimate"):
        fit_plackett_luce([[0, 1], [1, 0], [2, 3], [3, 2]], items=4)


@pytest.mark.parametrize("ranking", [[0, 4], [0, 0], [-1, 0]])
def test_unknown_and_repeated_items_are_refused(ranking):
    with pytest.raises(DataError, match="not different numbers from 0 to 3"):
        fit_plackett_luce([[0, 1, 2, 3], ranking], items=4)


@pytest.mark.parametrize("wins", [[[0, 1, 2], [1, 0, 2]], [[0, -1], [1, 0]], [1, 2]])
def test_what_is_no_table_of_wins_is_refused(wins):
    with pytest.raises(DataError, match="need a square table"):
        fit_bradley_terry(wins)


def test_counts_must_match_the_rankings():
    with pytest.raises(DataError, match="counts of shape \\(1,\\) for 7 rankings"):
        fit_plackett_luce(RANKINGS, items=4, counts=[1])
