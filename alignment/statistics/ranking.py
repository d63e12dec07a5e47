"""How good items are, from comparisons and rankings of them, by maximum likelihood.

Both models draw a winner from a set with probability proportional to its worth exp(theta): once
for a pair (Bradley-Terry), and again and again without the winners for a ranking (Plackett-
Luce). So both are fitted by one minorisation-maximisation iteration on choices:
Hunter 2004, "MM algorithms for generalized Bradley-Terry models", Annals of Statistics 32,
384-406, sections 2 and 5.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignment.errors import DataError, NumericsError

TOLERANCE = 1e-10
"""The fit ends when no log-worth moves more than this in one iteration."""
MAX_ITERATIONS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorthFit:
    """Log-worths theta [items] with mean 0, the log-likelihood there, and iterations taken."""

    log_worths: NDArray[np.float64]
    log_likelihood: float
    iterations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """Choices from sets. winner: int [C]. candidates: bool [C, items], the winner among them.
    weight: float [C], how often the choice was seen.
    """

    winner: NDArray[np.int64]
    candidates: NDArray[np.bool_]
    weight: NDArray[np.float64]


def fit_bradley_terry(wins: ArrayLike) -> WorthFit:
    """Worths from a table of wins [items, items]: row i over column j; a tie adds 0.5 to both.

    P(i beats j) = 1 / (1 + exp(theta_j - theta_i)).

    Raises:
        DataError: the table is not square, negative, or the maximum does not exist.
    """
    table = np.asarray(wins, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or (table < 0).any():
        raise DataError(
            f"wins of shape {table.shape}: need a square table of numbers of at least 0"
        )
    table = table * ~np.eye(len(table), dtype=bool)
    winner, loser = np.nonzero(table)
    candidates = np.zeros((len(winner), len(table)), dtype=bool)
    candidates[np.arange(len(winner)), winner] = True
    candidates[np.arange(len(winner)), loser] = True
    return _fit(_Choices(winner=winner, candidates=candidates, weight=table[winner, loser]))


def fit_plackett_luce(
    rankings: Sequence[Sequence[int]], *, items: int, counts: ArrayLike | None = None
) -> WorthFit:
    """Worths from rankings, each a sequence of items 0..items-1, best first.

    A ranking may leave items out: it then speaks about those it names. `counts` says how often
    each ranking was seen, once if absent. No ties: break them in all orders, with shared counts.

    Raises:
        DataError: an item is out of range or twice in a ranking, counts do not match, or the
            maximum does not exist.
    """
    weights = np.ones(len(rankings)) if counts is None else np.asarray(counts, dtype=np.float64)
    if weights.shape != (len(rankings),) or (weights < 0).any():
        raise DataError(
            f"counts of shape {weights.shape} for {len(rankings)} rankings: need one number of "
            "at least 0 for each"
        )
    return fit_choices(
        [
            (ranking[place], ranking[place + 1 :], weight)
            for ranking, weight in zip(rankings, weights, strict=True)
            for place in range(len(ranking) - 1)
        ],
        items=items,
    )


def fit_choices(choices: Iterable[tuple[int, Sequence[int], float]], *, items: int) -> WorthFit:
    """Worths from choices (winner, the others in its set, how often seen).

    Raises:
        DataError: an item is out of range or twice in a set, or the maximum does not exist.
    """
    seen = [(winner, others, weight) for winner, others, weight in choices if weight > 0]
    candidates = np.zeros((len(seen), items), dtype=bool)
    for row, (winner, others, _) in enumerate(seen):
        members = [winner, *others]
        if len(set(members)) != len(members) or not all(0 <= m < items for m in members):
            raise DataError(f"items {members} are not different numbers from 0 to {items - 1}")
        candidates[row, members] = True
    return _fit(
        _Choices(
            winner=np.array([winner for winner, _, _ in seen], dtype=np.int64),
            candidates=candidates,
            weight=np.array([weight for _, _, weight in seen], dtype=np.float64),
        )
    )


def _fit(choices: _Choices) -> WorthFit:
    """Hunter's iteration: worth_i = wins_i / sum over sets with i of weight / worth of the set."""
    items = choices.candidates.shape[1]
    _require_maximum(choices, items)
    wins = np.bincount(choices.winner, weights=choices.weight, minlength=items)
    candidates = choices.candidates.astype(np.float64)
    log_worths = np.zeros(items)
    for iteration in range(1, MAX_ITERATIONS + 1):
        exposure = candidates.T @ (choices.weight / (candidates @ np.exp(log_worths)))
        updated = np.log(wins / exposure)
        updated -= updated.mean()
        moved = float(np.abs(updated - log_worths).max())
        log_worths = updated
        if moved < TOLERANCE:
            totals = np.log(candidates @ np.exp(log_worths))
            likelihood = float(choices.weight @ (log_worths[choices.winner] - totals))
            return WorthFit(log_worths=log_worths, log_likelihood=likelihood, iterations=iteration)
    raise NumericsError(
        f"worths still move by {moved:.1e} after {MAX_ITERATIONS} iterations: some item wins or "
        "loses almost always; leave it out"
    )


def _require_maximum(choices: _Choices, items: int) -> None:
    """Ford 1957: finite worths exist if, however the items are split, each side beats the other.

    That is: along "was chosen over", every item reaches every other.
    """
    beats = np.zeros((items, items), dtype=bool)
    for winner, candidates in zip(choices.winner, choices.candidates, strict=True):
        beats[winner] |= candidates
    reaches = beats | np.eye(items, dtype=bool)
    for through in range(items):
        reaches |= np.outer(reaches[:, through], reaches[through])
    unreached = [
        (i, j) for i, j in combinations(range(items), 2) if not reaches[i, j] & reaches[j, i]
    ]
    if unreached:
        i, j = unreached[0]
        better, worse = (j, i) if reaches[j, i] else (i, j)
        raise DataError(
            f"item {worse} was never chosen over item {better}, nor over one that leads to it: "
            "its worth has no finite maximum-likelihood estimate. Add comparisons or leave it out"
        )
