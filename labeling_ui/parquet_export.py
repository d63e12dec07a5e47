"""A round as Parquet files: annotations, comparisons, consensus, labelers, and a manifest.

The same rankings and the same filter give the same bytes: rows have a fixed order, the writer
fixed options, and nothing says when or where it was written. Names stay behind; people are
pseudonyms. Gold, attention and repeat items are in `annotations` only, never where training
reads.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select

from alignment.errors import LabelError
from alignment.records import CandidateSet, FinishReason, Message, Prompt, Ranking, Response
from labeling_ui.judgement import RoundSettings
from labeling_ui.labelers import WITHOUT_TEXTS
from labeling_ui.opinions import Opinion, read_opinions
from labeling_ui.quality import passes_gold
from labeling_ui.rounds import find_round
from labeling_ui.schema import response, task
from labeling_ui.store import LabelStore

SCHEMA = "alignflow-labels-1"
"""Named in every manifest; rises when a column changes its meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFilter:
    """Whose rankings leave: all but those of `without` (pseudonyms)."""

    without: tuple[str, ...] = ()
    heldout_share: float = 0.1
    seed: int = 0


def split_of(prompt_id: str, chosen: ExportFilter) -> str:
    """`train` or `heldout`: by a hash of the prompt, so a prompt is never in both."""
    digest = hashlib.sha256(f"{chosen.seed}|{prompt_id}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "heldout" if share < chosen.heldout_share else "train"


def export_round(
    store: LabelStore, round_id: str, folder: Path, chosen: ExportFilter
) -> dict[str, Any]:
    """Writes the files into a new folder and returns the manifest, which is written last.

    Raises:
        LabelError: the folder has something in it, or no ranking is left by the filter.
    """
    if folder.exists() and any(folder.iterdir()):
        raise LabelError(f"{folder} is not empty; name a new folder for the export")
    opinions = [o for o in read_opinions(store, round_id) if o.labeler not in chosen.without]
    main = [opinion for opinion in opinions if opinion.kind == "main"]
    if not main:
        raise LabelError(f"round {round_id} has no rankings by anyone but {chosen.without}")
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "annotations": [_annotation_row(opinion, chosen) for opinion in opinions],
        "comparisons": [row for opinion in main for row in _comparison_rows(opinion, chosen)],
        "consensus": _consensus_rows(main, chosen),
        "labelers": _labeler_rows(opinions),
    }
    files = {name: _write(folder / f"{name}.parquet", rows) for name, rows in tables.items()}
    with store.read() as connection:
        row = find_round(connection, round_id)
    manifest = {
        "schema": SCHEMA,
        "round": round_id,
        "name": row.name,
        "panel": row.panel,
        "frozen_digest": row.frozen_digest,
        "settings": RoundSettings.from_json(row.settings).to_json(),
        "filter": asdict(chosen) | {"without": sorted(chosen.without)},
        "pyarrow": pa.__version__,
        "files": files,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return manifest


def _annotation_row(opinion: Opinion, chosen: ExportFilter) -> dict[str, Any]:
    return {
        "annotation_id": opinion.annotation_id,
        "revision": opinion.revision,
        "prompt_id": opinion.prompt_id,
        "kind": opinion.kind,
        "split": split_of(opinion.prompt_id, chosen) if opinion.kind == "main" else "",
        "labeler": opinion.labeler,
        "response_ids": list(opinion.response_ids),
        "tiers": list(opinion.tiers),
        "shown_at": list(opinion.shown),
        "gaps": list(opinion.judgement.gaps),
        "rejected": list(opinion.rejected),
        "unsafe": list(opinion.unsafe),
        "rationale": opinion.judgement.rationale,
        "passed": passes_gold(opinion) if opinion.gold_pairs else None,
        "active_seconds": opinion.active_seconds,
        "wall_seconds": opinion.wall_seconds,
        "guideline_version": opinion.guideline_version,
        "created_ms": opinion.created_ms,
    }


def _comparison_rows(opinion: Opinion, chosen: ExportFilter) -> list[dict[str, Any]]:
    pairs = opinion.pairs()
    rows = []
    for first, second in pairs:
        strength = opinion.strengths[first][second]
        better, worse = (first, second) if strength >= 0 else (second, first)
        rows.append(
            {
                "group_id": opinion.prompt_id,
                "split": split_of(opinion.prompt_id, chosen),
                "labeler": opinion.labeler,
                "chosen_id": opinion.response_ids[better],
                "rejected_id": opinion.response_ids[worse],
                "strength": abs(strength),
                "tie": strength == 0,
                "weight": 1 / len(pairs),
                "annotation_id": opinion.annotation_id,
            }
        )
    return rows


def _consensus_rows(main: Sequence[Opinion], chosen: ExportFilter) -> list[dict[str, Any]]:
    by_prompt: dict[str, list[Opinion]] = {}
    for opinion in main:
        by_prompt.setdefault(opinion.prompt_id, []).append(opinion)
    rows = []
    for prompt_id, ranked in by_prompt.items():
        ids = ranked[0].response_ids
        for first, second in ranked[0].pairs():
            strengths = [opinion.strengths[first][second] for opinion in ranked]
            wins = sum((s > 0) + 0.5 * (s == 0) for s in strengths)
            rows.append(
                {
                    "group_id": prompt_id,
                    "split": split_of(prompt_id, chosen),
                    "first_id": ids[first],
                    "second_id": ids[second],
                    "preference": wins / len(ranked),
                    "mean_strength": sum(strengths) / len(ranked),
                    "labelers": len(ranked),
                }
            )
    return rows


def _labeler_rows(opinions: Sequence[Opinion]) -> list[dict[str, Any]]:
    rows = []
    for name in sorted({opinion.labeler for opinion in opinions}):
        mine = [opinion for opinion in opinions if opinion.labeler == name]
        checks = [passes_gold(opinion) for opinion in mine if opinion.gold_pairs]
        rows.append(
            {
                "labeler": name,
                "rankings": sum(opinion.kind == "main" for opinion in mine),
                "checks": len(checks),
                "checks_passed": sum(checks),
                "active_seconds": float(sum(opinion.active_seconds for opinion in mine)),
            }
        )
    return rows


_TYPES: Mapping[str, pa.DataType] = {
    "revision": pa.int32(),
    "response_ids": pa.list_(pa.string()),
    "tiers": pa.list_(pa.int8()),
    "shown_at": pa.list_(pa.int8()),
    "gaps": pa.list_(pa.int8()),
    "rejected": pa.list_(pa.bool_()),
    "unsafe": pa.list_(pa.string()),
    "passed": pa.bool_(),
    "active_seconds": pa.float64(),
    "wall_seconds": pa.float64(),
    "guideline_version": pa.int32(),
    "created_ms": pa.int64(),
    "strength": pa.int8(),
    "tie": pa.bool_(),
    "weight": pa.float64(),
    "preference": pa.float64(),
    "mean_strength": pa.float64(),
    "labelers": pa.int32(),
    "rankings": pa.int32(),
    "checks": pa.int32(),
    "checks_passed": pa.int32(),
}


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = list(rows[0])
    schema = pa.schema([(name, _TYPES.get(name, pa.string())) for name in names])
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    pq.write_table(table, path, compression="zstd", row_group_size=65_536, version="2.6")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"rows": len(rows), "sha256": digest}


def candidates_and_rankings(
    store: LabelStore, round_id: str, chosen: ExportFilter
) -> tuple[list[CandidateSet], list[Ranking]]:
    """The round's ranked candidates and its rankings, as reward-model training takes them.

    Texts come from the label database: token ids and origins are not in it.

    Raises:
        LabelError: an imported round whose responses have no texts.
    """
    rankings = [r for r in store.rankings(round_id) if r.labeler not in chosen.without]
    ranked = {ranking.prompt_id for ranking in rankings}
    with store.read() as connection:
        if find_round(connection, round_id).panel.endswith(WITHOUT_TEXTS):
            raise LabelError(
                f"round {round_id} was imported without the texts of its responses: there is "
                "nothing to train on; its rankings serve statistics only"
            )
        tasks = connection.execute(
            select(task)
            .where(task.c.round_id == round_id, task.c.kind == "main")
            .order_by(task.c.position)
        ).all()
        rows = connection.execute(
            select(response)
            .join(task)
            .where(task.c.round_id == round_id, task.c.kind == "main")
            .order_by(response.c.task_id, response.c.position)
        ).all()
    by_task: dict[str, list[Response]] = {}
    for row in rows:
        reason: FinishReason = "length" if row.cut_off else "stop"
        given = Response(id=row.response_id, text=row.text, finish_reason=reason, origin="round")
        by_task.setdefault(row.task_id, []).append(given)
    sets = [
        CandidateSet(
            prompt=Prompt(
                id=row.prompt_id,
                messages=tuple(Message(role=role, content=text) for role, text in row.messages),
                language=row.language,
                source=f"round {round_id}",
            ),
            responses=tuple(by_task[row.id]),
        )
        for row in tasks
        if row.prompt_id in ranked
    ]
    return sets, rankings
