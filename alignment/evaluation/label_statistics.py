"""Who ranked, how much, and how far the labelers agree: with each other and with gold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from alignment.errors import DataError
from alignment.evaluation.resampling import Resampling
from alignment.records import Ranking
from alignment.statistics.bootstrap import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerStatistics:
    """One labeler's work.

    `agreement` is with the other labelers of the same prompts, `gold_agreement` with the
    noise-free rubric; both are shares of response pairs. None: nobody else ranked those
    prompts, there is no rubric, or fewer than two prompts tell.
    """

    name: str
    rankings: int
    tie_share: float
    agreement: Interval | None
    gold_agreement: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatistics:
    """A round of rankings. `panel` names the simulated panel; empty where people ranked."""

    panel: str
    prompts: int
    responses: int
    rankings: int
    tie_share: float
    agreement: Interval | None
    labelers: tuple[LabelerStatistics, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """One labeler on one pair of responses: 1 the first is better, 0 the second, 0.5 a tie."""

    prompt_id: str
    labeler: str
    pair: tuple[str, str]
    value: float


def label_statistics(
    rankings: Sequence[Ranking],
    *,
    panel: str,
    gold: Mapping[str, float] | None,
    resampling: Resampling,
) -> LabelStatistics:
    """What can be said about a frozen round.

    Two verdicts on a pair agree fully if they are the same, half if one is a tie, else not.
    Pairs that gold does not tell apart are left out of `gold_agreement`.

    Args:
        rankings: one a labeler and prompt.
        panel: the simulated panel's identity, empty for people.
        gold: noise-free score by response id, or None where there is no rubric.
        resampling: for the intervals, by prompt.

    Raises:
        DataError: there is no ranking, or gold lacks a response.
    """
    if not rankings:
        raise DataError("the round has no ranking; freeze it after at least one is submitted")
    verdicts = [verdict for ranking in rankings for verdict in _verdicts(ranking)]
    by_item: dict[tuple[str, tuple[str, str]], list[_Verdict]] = {}
    for verdict in verdicts:
        by_item.setdefault((verdict.prompt_id, verdict.pair), []).append(verdict)
    meetings = [m for item in by_item.values() for m in combinations(item, 2)]
    names = sorted({ranking.labeler for ranking in rankings})
    return LabelStatistics(
        panel=panel,
        prompts=len({ranking.prompt_id for ranking in rankings}),
        responses=len({response for ranking in rankings for response in ranking.response_ids}),
        rankings=len(rankings),
        tie_share=_tie_share(verdicts),
        agreement=_agreement(meetings, resampling),
        labelers=tuple(
            LabelerStatistics(
                name=name,
                rankings=sum(ranking.labeler == name for ranking in rankings),
                tie_share=_tie_share([v for v in verdicts if v.labeler == name]),
                agreement=_agreement(
                    [m for m in meetings if name in (m[0].labeler, m[1].labeler)], resampling
                ),
                gold_agreement=_gold_agreement(
                    [v for v in verdicts if v.labeler == name], gold, resampling
                ),
            )
            for name in names
        ),
    )


def _verdicts(ranking: Ranking) -> list[_Verdict]:
    tiers = sorted(zip(ranking.response_ids, ranking.tiers, strict=True))
    return [
        _Verdict(
            prompt_id=ranking.prompt_id,
            labeler=ranking.labeler,
            pair=(first, second),
            value=0.5 + 0.5 * ((first_tier < second_tier) - (first_tier > second_tier)),
        )
        for (first, first_tier), (second, second_tier) in combinations(tiers, 2)
    ]


def _tie_share(verdicts: Sequence[_Verdict]) -> float:
    return sum(verdict.value == 0.5 for verdict in verdicts) / len(verdicts) if verdicts else 0.0


def _agreement(
    meetings: Sequence[tuple[_Verdict, _Verdict]], resampling: Resampling
) -> Interval | None:
    return _interval(
        [1 - abs(one.value - other.value) for one, other in meetings],
        [one.prompt_id for one, _ in meetings],
        resampling,
    )


def _gold_agreement(
    verdicts: Sequence[_Verdict], gold: Mapping[str, float] | None, resampling: Resampling
) -> Interval | None:
    if gold is None:
        return None
    lacking = sorted({r for verdict in verdicts for r in verdict.pair} - gold.keys())
    if lacking:
        raise DataError(
            f"{len(lacking)} ranked responses have no gold score, e.g. {lacking[0]!r}; score "
            "every response of the round or pass no gold"
        )
    told = [v for v in verdicts if gold[v.pair[0]] != gold[v.pair[1]]]
    return _interval(
        [1 - abs(v.value - (gold[v.pair[0]] > gold[v.pair[1]])) for v in told],
        [v.prompt_id for v in told],
        resampling,
    )


def _interval(
    values: Sequence[float], prompts: Sequence[str], resampling: Resampling
) -> Interval | None:
    return resampling.mean(values, prompts) if len(set(prompts)) > 1 else None
