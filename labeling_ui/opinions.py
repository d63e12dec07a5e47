"""The rankings of a round as rows for statistics and export, with everything a card recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sqlalchemy import select

from labeling_ui.judgement import Judgement
from labeling_ui.schema import annotation, assignment, gold, labeler, response, task
from labeling_ui.store import LabelStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """One labeler's current judgement of one task, by response in published order.

    `tiers[k]`, `shown[k]` (place on the card), `lengths[k]` (characters) belong to response
    `response_ids[k]`; identical responses share their place. `strengths[k][m]` is how much
    response k is better than m: the sum of the graded gaps between them, at most 3 and at least
    1 where tiers differ, negative where it is worse.
    """

    annotation_id: str
    revision: int
    prompt_id: str
    task_id: str
    kind: str
    repeat_of: str | None
    labeler: str
    counted: bool
    response_ids: tuple[str, ...]
    tiers: tuple[int, ...]
    shown: tuple[int, ...]
    lengths: tuple[int, ...]
    strengths: tuple[tuple[int, ...], ...]
    judgement: Judgement
    rejected: tuple[bool | None, ...]
    unsafe: tuple[str, ...]
    active_seconds: float
    wall_seconds: float | None
    guideline_version: int | None
    created_ms: int
    gold_pairs: tuple[tuple[str, str], ...]

    def pairs(self) -> list[tuple[int, int]]:
        """Places of the responses of each pair, the first published first."""
        return list(combinations(range(len(self.response_ids)), 2))


def read_opinions(store: LabelStore, round_id: str, *, surplus: bool = False) -> list[Opinion]:
    """All current judgements of a round, by task and labeler; surplus work where asked for."""
    states = ["done", "surplus"] if surplus else ["done"]
    with store.read() as connection:
        rows = connection.execute(
            select(
                annotation,
                task.c.id.label("task_id"),
                task.c.prompt_id,
                task.c.position,
                task.c.kind,
                task.c.repeat_of,
                assignment.c.state,
                assignment.c.display_order,
                labeler.c.pseudonym,
                gold.c.pairs,
            )
            .select_from(assignment.join(task).join(labeler))
            .join(annotation, annotation.c.id == assignment.c.current_annotation)
            .join(gold, gold.c.task_id == task.c.id, isouter=True)
            .where(assignment.c.round_id == round_id, assignment.c.state.in_(states))
        ).all()
        responses: dict[str, list[tuple[str, int]]] = {}
        for task_id, response_id, text in connection.execute(
            select(response.c.task_id, response.c.response_id, response.c.text)
            .join(task)
            .where(task.c.round_id == round_id)
            .order_by(response.c.task_id, response.c.position)
        ):
            responses.setdefault(task_id, []).append((response_id, len(text)))
    ordered = sorted(rows, key=lambda r: (r.kind, r.position, r.task_id, r.pseudonym))
    return [_opinion(row, responses[row.task_id]) for row in ordered]


def _opinion(row: Any, responses: Sequence[tuple[str, int]]) -> Opinion:
    judgement = Judgement.from_row(row)
    place_of = {p: place for place, group in enumerate(row.display_order) for p in group}
    shown = tuple(place_of[position] for position in range(len(responses)))
    tiers = tuple(judgement.tiers[place] for place in shown)
    flags = dict(judgement.flags)
    return Opinion(
        annotation_id=row.id,
        revision=row.revision,
        prompt_id=row.prompt_id,
        task_id=row.task_id,
        kind=row.kind,
        repeat_of=row.repeat_of,
        labeler=row.pseudonym,
        counted=row.state == "done",
        response_ids=tuple(response_id for response_id, _ in responses),
        tiers=tiers,
        shown=shown,
        lengths=tuple(length for _, length in responses),
        strengths=tuple(
            tuple(signed_strength(judgement.gaps, above, below) for below in tiers)
            for above in tiers
        ),
        judgement=judgement,
        rejected=tuple(None if judgement.bar is None else t >= judgement.bar for t in tiers),
        unsafe=tuple(flags.get(place, "") for place in shown),
        active_seconds=row.active_seconds,
        wall_seconds=row.wall_seconds,
        guideline_version=row.guideline_version,
        created_ms=row.created_ms,
        gold_pairs=tuple((better, worse) for better, worse in row.pairs or ()),
    )


def signed_strength(gaps: Sequence[int | None], above: int, below: int) -> int:
    """How much tier `above` is better than tier `below`, from -3 to 3; 0 for the same tier.

    The graded gaps between them are summed, one that nobody graded counts 1; at most 3.
    """
    if above == below:
        return 0
    low, high = sorted((above, below))
    between = gaps[low:high] if gaps else [1] * (high - low)
    size = min(3, sum(gap or 1 for gap in between))
    return size if above < below else -size
