"""Rankings made elsewhere become a frozen round, in one transaction or not at all.

Statistics and exports then read them like any other. The round belongs to the import: nobody
can rank in it. The same file again gives the round there is.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update

from labeling_ui import audit
from labeling_ui.candidates import round_digest
from labeling_ui.cards import RoundStatus
from labeling_ui.database import exclusive
from labeling_ui.export import rankings_digest, read_rankings
from labeling_ui.judgement import Judgement, RoundSettings
from labeling_ui.labelers import (
    IMPORTED_PANEL,
    IMPORTED_PREFIX,
    WITHOUT_TEXTS,
    find_or_add_labeler,
)
from labeling_ui.ranking_files import ImportedCard, ImportedRanking, RankingFile
from labeling_ui.rounds import find_round, response_rows, round_status
from labeling_ui.schema import (
    annotation,
    assignment,
    participation,
    response,
    round_,
    round_count,
    task,
)
from labeling_ui.store import LabelStore


def import_rankings(store: LabelStore, file: RankingFile, *, name: str, actor: str) -> RoundStatus:
    """Writes the file's cards and rankings as a round that is frozen at once.

    Raises:
        LabelError: a labeler's name that nobody can have.
    """
    panel = f"{IMPORTED_PANEL}{file.form}" + ("" if file.texts else f" {WITHOUT_TEXTS}")
    said = [[_canonical(ranking) for ranking in card.rankings] for card in file.cards]
    round_id = round_digest(
        [card.candidates for card in file.cards], rankings_per_prompt=0, panel=panel, extra=said
    )
    with store.write() as connection:
        exclusive(connection)
        if connection.scalar(select(round_.c.id).where(round_.c.id == round_id)) is None:
            now_ms = store.now_ms()
            _write_round(connection, round_id, file.cards, name=name, panel=panel, now_ms=now_ms)
            _write_rankings(connection, round_id, file.cards, now_ms)
            digest = rankings_digest(round_id, read_rankings(connection, round_id))
            connection.execute(
                update(round_)
                .where(round_.c.id == round_id)
                .values(frozen_digest=digest, frozen_ms=now_ms)
            )
            audit.record(connection, now_ms, actor, "import rankings", round_id, form=file.form)
        return round_status(connection, find_round(connection, round_id))


def _canonical(ranking: ImportedRanking) -> list[Any]:
    content = ranking.judgement.content()
    return [ranking.labeler, content, list(ranking.shown), ranking.active_seconds]


def _write_round(
    connection: Connection,
    round_id: str,
    cards: Sequence[ImportedCard],
    *,
    name: str,
    panel: str,
    now_ms: int,
) -> None:
    rankings = sum(len(card.rankings) for card in cards)
    connection.execute(
        round_.insert().values(
            id=round_id,
            name=name,
            panel=panel,
            rankings_per_prompt=max(len(card.rankings) for card in cards),
            created_ms=now_ms,
            settings=RoundSettings().to_json(),
        )
    )
    connection.execute(
        insert(task),
        [
            {
                "id": f"{round_id}-{position:06d}",
                "round_id": round_id,
                "position": position,
                "prompt_id": card.candidates.prompt.id,
                "messages": [[m.role, m.content] for m in card.candidates.prompt.messages],
                "language": card.candidates.prompt.language,
                "state": "complete",
                "wanted": len(card.rankings),
                "done": len(card.rankings),
                "kind": "main",
            }
            for position, card in enumerate(cards)
        ],
    )
    connection.execute(
        insert(response),
        [
            row
            for position, card in enumerate(cards)
            for row in response_rows(f"{round_id}-{position:06d}", card.candidates)
        ],
    )
    counts = {"tasks": len(cards), "wanted": rankings, "done": rankings}
    connection.execute(round_count.insert().values(round_id=round_id, **counts))


def _write_rankings(
    connection: Connection, round_id: str, cards: Sequence[ImportedCard], now_ms: int
) -> None:
    done = Counter(ranking.labeler for card in cards for ranking in card.rankings)
    # Another import's `annotator1` is someone else: the round is part of the name.
    people = {
        name: find_or_add_labeler(connection, f"{IMPORTED_PREFIX}{round_id[:8]}-{name}", now_ms)
        for name in done
    }
    connection.execute(
        insert(participation),
        [
            {"round_id": round_id, "labeler_id": people[name], "claims": n, "done": n}
            for name, n in done.items()
        ],
    )
    assignments, annotations = [], []
    for position, card in enumerate(cards):
        for number, ranking in enumerate(card.rankings):
            key = f"{round_id}-{position:06d}-{number}"
            assignments.append(
                {
                    "id": key,
                    "task_id": f"{round_id}-{position:06d}",
                    "round_id": round_id,
                    "labeler_id": people[ranking.labeler],
                    "state": "done",
                    "display_order": [[place] for place in ranking.shown],
                    "leased_ms": now_ms,
                    "expires_ms": now_ms,
                    "finished_ms": now_ms,
                    "current_annotation": f"{key}-import",
                }
            )
            annotations.append(
                {
                    "id": f"{key}-import",
                    "assignment_id": key,
                    "revision": 1,
                    **_as_shown(ranking).content(),
                    "active_seconds": ranking.active_seconds,
                    "created_ms": now_ms,
                }
            )
    connection.execute(insert(assignment), assignments)
    connection.execute(insert(annotation), annotations)


def _as_shown(ranking: ImportedRanking) -> Judgement:
    """The judgement by place on the screen, as the database keeps it."""
    said = ranking.judgement
    return Judgement(
        tiers=tuple(said.tiers[response] for response in ranking.shown),
        gaps=said.gaps,
        bar=said.bar,
        rationale=said.rationale,
    )
