"""Gold items: prompts of a settled round whose labelers agreed, to check new labelers with."""

from collections.abc import Collection, Sequence
from itertools import combinations

from alignment.errors import LabelError
from alignment.records import CandidateSet, Prompt, Ranking
from labeling_ui.checks import CheckItem
from labeling_ui.parquet_export import ExportFilter, candidates_and_rankings
from labeling_ui.store import LabelStore

MIN_LABELERS = 2


def gold_from_round(
    store: LabelStore, round_id: str, count: int, *, without: Collection[str] = ()
) -> list[CheckItem]:
    """Up to `count` gold items: prompts that two or more labelers ranked, in published order.

    What must hold are the pairs that all of them decided the same way. Prompts `without` are
    left out: nobody should meet one as a check that is in the new round as well.

    Raises:
        LabelError: the round has no such prompt.
    """
    candidates, rankings = candidates_and_rankings(store, round_id, ExportFilter())
    by_prompt: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        by_prompt.setdefault(ranking.prompt_id, []).append(ranking)
    items = []
    for candidate_set in candidates:
        prompt = candidate_set.prompt
        pairs = unanimous_pairs(by_prompt[prompt.id])
        if not pairs or prompt.id in without:
            continue
        told = Prompt(id=f"gold~{prompt.id}", messages=prompt.messages, language=prompt.language)
        kept = CandidateSet(prompt=told, responses=candidate_set.responses)
        items.append(CheckItem(kind="gold", candidates=kept, pairs=pairs))
    if not items:
        raise LabelError(
            f"round {round_id} has no prompt on which {MIN_LABELERS} or more labelers agree and "
            "that is not in the new round; choose another round for gold, or a share of 0"
        )
    return items[:count]


def unanimous_pairs(rankings: Sequence[Ranking]) -> tuple[tuple[str, str], ...]:
    """Pairs of response ids, better first, that every one of two or more rankings decided so."""
    if len(rankings) < MIN_LABELERS:
        return ()
    tiers = [dict(zip(r.response_ids, r.tiers, strict=True)) for r in rankings]
    pairs = []
    for one, other in combinations(rankings[0].response_ids, 2):
        if all(tier[one] < tier[other] for tier in tiers):
            pairs.append((one, other))
        elif all(tier[one] > tier[other] for tier in tiers):
            pairs.append((other, one))
    return tuple(pairs)
