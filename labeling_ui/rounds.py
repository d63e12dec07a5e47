"""Rounds in the database: how they are written, found and counted."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from alignment.errors import LabelError
from alignment.records import CandidateSet
from labeling_ui.candidates import identical_groups
from labeling_ui.cards import RoundStatus
from labeling_ui.checks import CheckItem
from labeling_ui.judgement import RoundSettings
from labeling_ui.schema import gold, participation, response, round_, round_count, task

EVERYONE = 1_000_000
"""Rankings wanted of a gold or attention task: one of each labeler."""

_SELF_NAMING = re.compile(
    r"\b(?:as an? (?:ai )?(?:language )?model|(?:chat)?gpt(?:-?\d)?|openai|anthropic|claude|"
    r"gemini|llama|mistral|qwen|deepseek|vicuna|smollm\w*|i(?:'| a)m an ai)\b|"
    "作为(?:一个)?(?:人工智能|AI)",
    re.IGNORECASE,
)


def find_round(connection: Connection, round_id: str, *, lock: str = "") -> Row[Any]:
    """The round's row, or a LabelError that lists what there is.

    `lock` is `shared` for work in the round, `turn` for a claim, one at a time beside such work,
    and `alone` for what ends the round; SQLite's write transactions are alone anyway.
    """
    query = select(round_).where(round_.c.id == round_id)
    if lock:
        query = query.with_for_update(read=lock == "shared", key_share=lock != "alone")
    row = connection.execute(query).one_or_none()
    if row is None:
        known = connection.scalars(
            select(round_.c.id).order_by(round_.c.created_ms.desc()).limit(5)
        ).all()
        raise LabelError(
            f"there is no round {round_id!r} in this label database; "
            f"newest rounds: {', '.join(known) or 'none'}"
        )
    return row


def insert_round(
    connection: Connection,
    round_id: str,
    candidates: Sequence[CandidateSet],
    *,
    rankings_per_prompt: int,
    name: str,
    panel: str,
    now_ms: int,
    settings: RoundSettings,
    checks: Sequence[CheckItem],
) -> None:
    """Writes a round with its tasks and responses; one with nothing to rank is left out."""
    connection.execute(
        round_.insert().values(
            id=round_id,
            name=name,
            panel=panel,
            rankings_per_prompt=rankings_per_prompt,
            created_ms=now_ms,
            settings=settings.to_json(),
        )
    )
    tasks, responses = [], []
    for position, candidate_set in enumerate(candidates):
        row = _task_row(round_id, position, candidate_set, rankings_per_prompt)
        tasks.append(row)
        responses += response_rows(row["id"], candidate_set)
    for position, check in enumerate(checks):
        row = _task_row(round_id, position, check.candidates, EVERYONE) | {
            "id": f"{round_id}-{check.kind}-{position:06d}",
            "kind": check.kind,
        }
        tasks.append(row)
        responses += response_rows(row["id"], check.candidates)
    connection.execute(task.insert(), tasks)
    connection.execute(response.insert(), responses)
    pairs = [
        {"task_id": f"{round_id}-{check.kind}-{n:06d}", "pairs": [list(p) for p in check.pairs]}
        for n, check in enumerate(checks)
    ]
    if pairs:
        connection.execute(gold.insert(), pairs)
    open_tasks = [t for t in tasks if t["kind"] == "main" and t["state"] == "open"]
    connection.execute(
        round_count.insert().values(
            round_id=round_id,
            tasks=len(candidates),
            left_out=len(candidates) - len(open_tasks),
            wanted=len(open_tasks) * rankings_per_prompt,
            done=0,
        )
    )


def _task_row(
    round_id: str, position: int, candidate_set: CandidateSet, wanted: int
) -> dict[str, Any]:
    shown = [(r.text, r.finish_reason == "length") for r in candidate_set.responses]
    return {
        "id": f"{round_id}-{position:06d}",
        "round_id": round_id,
        "position": position,
        "prompt_id": candidate_set.prompt.id,
        "messages": [[m.role, m.content] for m in candidate_set.prompt.messages],
        "language": candidate_set.prompt.language,
        "state": "open" if len(identical_groups(shown)) > 1 else "left_out",
        "wanted": wanted,
        "kind": "main",
    }


def response_rows(task_id: str, candidate_set: CandidateSet) -> list[dict[str, Any]]:
    """Rows of a task's responses; `leak` keeps a phrase in which one says what wrote it."""
    rows = []
    for position, given in enumerate(candidate_set.responses):
        leak = _SELF_NAMING.search(given.text)
        rows.append(
            {
                "task_id": task_id,
                "position": position,
                "response_id": given.id,
                "text": given.text,
                "cut_off": given.finish_reason == "length",
                "leak": leak.group()[:80] if leak else "",
            }
        )
    return rows


def move_counts(connection: Connection, round_id: str, changes: Mapping[str, int]) -> None:
    """Adds to the round's counters; the last lock that a transaction takes."""
    values = {name: round_count.c[name] + change for name, change in changes.items() if change}
    if values:
        connection.execute(
            update(round_count).where(round_count.c.round_id == round_id).values(values)
        )


def is_complete(connection: Connection, round_id: str) -> bool:
    """Whether every wanted ranking is there; costs the same however many tasks there are."""
    of_round = round_count.c.round_id == round_id
    counts = connection.execute(select(round_count).where(of_round)).one()
    complete: bool = counts.done >= counts.wanted
    return complete


def round_status(connection: Connection, row: Row[Any]) -> RoundStatus:
    """The round's counters; costs the same however many tasks it has."""
    counts = connection.execute(select(round_count).where(round_count.c.round_id == row.id)).one()
    labelers = connection.scalar(
        select(func.count())
        .select_from(participation)
        .where(participation.c.round_id == row.id, participation.c.done > 0)
    )
    return RoundStatus(
        round_id=row.id,
        name=row.name,
        panel=row.panel,
        state="frozen" if row.frozen_digest is not None else row.state,
        tasks=counts.tasks,
        tasks_left_out=counts.left_out,
        rankings_wanted=counts.wanted,
        rankings_done=counts.done,
        labelers=labelers or 0,
        frozen_digest=row.frozen_digest,
    )
