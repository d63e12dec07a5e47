"""Rankings on their way out of the label database: response ids again, and a digest.

Names stay behind: a ranking carries the labeler's pseudonym.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from alignment.records import Ranking
from labeling_ui.candidates import canonical_json
from labeling_ui.schema import annotation, assignment, labeler, response, task


def read_rankings(connection: Connection, round_id: str) -> list[Ranking]:
    """The counted rankings of a round, by prompt in published order, then by pseudonym."""
    rows = connection.execute(
        select(
            task.c.id,
            task.c.position,
            task.c.prompt_id,
            labeler.c.pseudonym,
            assignment.c.display_order,
            annotation.c.id.label("annotation_id"),
            annotation.c.tiers,
        )
        .select_from(assignment.join(task).join(labeler))
        .join(annotation, annotation.c.id == assignment.c.current_annotation)
        .where(
            assignment.c.round_id == round_id,
            assignment.c.state == "done",
            task.c.kind == "main",
        )
    ).all()
    response_ids = _response_ids(connection, round_id)
    ordered = sorted(rows, key=lambda row: (row.position, row.pseudonym, row.annotation_id))
    return [_ranking(row, response_ids[row.id]) for row in ordered]


def _response_ids(connection: Connection, round_id: str) -> dict[str, list[str]]:
    rows = connection.execute(
        select(response.c.task_id, response.c.response_id)
        .join(task)
        .where(task.c.round_id == round_id)
        .order_by(task.c.position, response.c.position)
    )
    by_task: dict[str, list[str]] = defaultdict(list)
    for task_id, response_id in rows:
        by_task[task_id].append(response_id)
    return by_task


def _ranking(row: Any, response_ids: Sequence[str]) -> Ranking:
    tiers = [0] * len(response_ids)
    for positions, tier in zip(row.display_order, row.tiers, strict=True):
        for position in positions:
            tiers[position] = tier
    return Ranking(
        annotation_id=row.annotation_id,
        prompt_id=row.prompt_id,
        labeler=row.pseudonym,
        response_ids=tuple(response_ids),
        tiers=tuple(tiers),
    )


def rankings_digest(round_id: str, rankings: Sequence[Ranking]) -> str:
    """SHA-256 (hexadecimal) of the rankings in canonical JSON, in the order given."""
    content = {
        "round": round_id,
        "rankings": [
            [r.annotation_id, r.prompt_id, r.labeler, list(r.response_ids), list(r.tiers)]
            for r in rankings
        ],
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()
