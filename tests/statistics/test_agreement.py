import json
import os
from pathlib import Path

import numpy as np
import pytest

from alignment.errors import DataError
from alignment.statistics.agreement import (
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    krippendorff_alpha_interval,
)

DATA = os.environ.get("ALIGNFLOW_TEST_DATA")

# Krippendorff 2011, section C: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def table(rows):
    return np.array([[np.nan if v is None else v for v in row] for row in rows])


@pytest.mark.parametrize(
    ("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_of_the_published_example(level, published):
    assert krippendorff_alpha(table(OBSERVERS), level=level) == pytest.approx(published, abs=5e-4)


@pytest.mark.skipif(DATA is None, reason="ALIGNFLOW_TEST_DATA is not set")
def test_alpha_of_the_reference_cases():
    cases = json.loads((Path(DATA) / "reference" / "krippendorff_published.json").read_text())
    assert len(cases) == 2
    for case in cases:
        for level, alpha in case["alpha"].items():
            found = krippendorff_alpha(table(case["rows_are_coders"]), level=level)
            assert found == pytest.approx(alpha, abs=5e-4), case["name"]


def test_alpha_by_its_definition():
    """Mean disagreement within units over mean disagreement of any two pairable ratings."""
    draw = np.random.default_rng(0)
    ratings = draw.integers(0, 4, (3, 40)).astype(float)
    ratings[draw.random((3, 40)) < 0.3] = np.nan
    units = [u[np.isfinite(u)] for u in ratings.T if np.isfinite(u).sum() >= 2]
    everything = np.concatenate(units)
    n = len(everything)
    observed = sum(((u[:, None] - u[None, :]) ** 2).sum() / (len(u) - 1) for u in units) / n
    expected = ((everything[:, None] - everything[None, :]) ** 2).sum() / (n * (n - 1))
    found = krippendorff_alpha(ratings, level="interval")
    assert found == pytest.approx(1 - observed / expected, abs=1e-12)


def test_interval_resamples_whole_clusters():
    draw = np.random.default_rng(1)
    truth = np.repeat(draw.integers(-3, 4, 30), 6)
    ratings = truth + draw.integers(-1, 2, (3, truth.size))
    clusters = np.repeat(np.arange(30), 6).tolist()
    by_prompt = krippendorff_alpha_interval(ratings, clusters, level="interval", seed=0)
    by_unit = krippendorff_alpha_interval(
        ratings, list(range(truth.size)), level="interval", seed=0
    )
    assert by_prompt.value == pytest.approx(krippendorff_alpha(ratings, level="interval"))
    assert by_prompt.low < by_prompt.value < by_prompt.high
    assert by_prompt.high - by_prompt.low > 1.5 * (by_unit.high - by_unit.low)
    assert (by_prompt.n, by_prompt.clusters) == (180, 30)


def test_cohen_kappa_by_hand():
    # 50 units: 20 both yes, 15 both no, 5 and 10 apart: 0.7 observed, 0.5 expected.
    first = ["yes"] * 20 + ["yes"] * 5 + ["no"] * 10 + ["no"] * 15
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_fleiss_kappa_of_the_published_example():
    counts = [  # Fleiss 1971: 10 of the units, 14 raters, 5 categories, in the form of textbooks
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


def test_what_says_nothing_is_refused():
    with pytest.raises(DataError, match="no unit has two ratings"):
        krippendorff_alpha([[1.0, np.nan], [np.nan, 2.0]], level="nominal")
    with pytest.raises(DataError, match="same number of raters"):
        fleiss_kappa([[1, 1], [2, 1]])
    with pytest.raises(DataError, match="need as many"):
        cohen_kappa(["a"], [])
    assert np.isnan(krippendorff_alpha([[1, 1], [1, 1]], level="nominal"))
