"""A new round from a candidates artifact, with its checks of labelers."""

from datetime import datetime
from pathlib import Path
from typing import Any

import gradio as gr
import pyarrow.parquet as pq
from markupsafe import Markup

from alignment.data.tables import read_records
from alignment.errors import LabelError
from alignment.records import CandidateSet
from labeling_ui import lead
from labeling_ui.checks import CheckItem, attention_items
from labeling_ui.gold import gold_from_round
from labeling_ui.judgement import Asked, RoundSettings
from labeling_ui.lead_page.wiring import Visitor
from labeling_ui.store import LabelStore

FILE_NAME = "candidates.parquet"
MAX_FILES = 200


class PublishDesk:
    """Handlers, each for a lead who has been checked: `work(visitor, *values)`."""

    def __init__(self, store: LabelStore, artifacts: Path | None) -> None:
        self._store, self._artifacts = store, artifacts

    def sources(self, visitor: Visitor) -> list[Any]:
        """A note on where candidates come from, and the choices of candidates and gold."""
        t = visitor.t
        found = self._found()
        if self._artifacts is None:
            told = t(
                "This server was started without a folder of candidates; start it with "
                "--candidates FOLDER."
            )
        elif not found:
            told = t(
                "No candidates were found under {place}. A run writes them in its candidates "
                "stage.",
                place=self._artifacts,
            )
        else:
            told = t(
                "Candidates are found under {place}. The same candidates with the same settings "
                "are always the same round.",
                place=self._artifacts,
            )
        choices = [(_file_words(path, name, visitor), name) for name, path in found.items()]
        settled = [
            (f"{status.name or t('unnamed round')} · {status.round_id[:8]}", status.round_id)
            for status in self._store.rounds()
            if status.frozen_digest is not None
        ]
        return [
            str(Markup("<p>{}</p>").format(told)),
            gr.Dropdown(choices=choices, value=choices[0][1] if choices else None),
            gr.Dropdown(choices=settled, value=None),
        ]

    def _found(self) -> dict[str, Path]:
        """Candidates files by their path under the artifacts, newest first."""
        if self._artifacts is None:
            return {}
        paths = [path for path in self._artifacts.rglob(FILE_NAME) if path.is_file()]
        paths.sort(key=lambda path: (-path.stat().st_mtime, str(path)))
        return {str(path.relative_to(self._artifacts)): path for path in paths[:MAX_FILES]}

    def publish(
        self,
        visitor: Visitor,
        source: str | None,
        name: str,
        overlap: float,
        gold_share: float,
        attention_share: float,
        repeat_share: float,
        gold_round: str | None,
        strength: Asked,
        rationale: Asked,
        criteria: str,
        minutes: float,
    ) -> str:
        """Publishes the chosen candidates. What cannot be ranked is told with file and row."""
        path = self._found().get(source or "")
        if path is None:
            raise LabelError(f"choose a candidates file; {source!r} is none of those listed")
        candidates = read_records(path, CandidateSet)
        settings = RoundSettings(
            gold_share=gold_share,
            attention_share=attention_share,
            repeat_share=repeat_share,
            strength=strength,
            rationale=rationale,
            criteria=tuple(c.strip() for c in criteria.split(",") if c.strip()),
            lease_s=60 * float(minutes or 0),
        )
        checks = self._checks(candidates, settings, gold_round)
        known = {status.round_id for status in self._store.rounds()}
        status = lead.publish_round(
            self._store,
            candidates,
            rankings_per_prompt=int(overlap or 0),
            name=name.strip(),
            settings=settings,
            checks=checks,
            actor=visitor.name,
        )
        t = visitor.t
        told = t(
            "Published {name}: {wanted} rankings of {prompts} prompts, {checks} checks beside "
            "them.",
            name=status.name or status.round_id[:8],
            wanted=status.rankings_wanted,
            prompts=status.tasks,
            checks=len(checks),
        )
        if status.round_id in known:
            told = t("These candidates were a round already; nothing was added.")
        return str(Markup("<p class='good' role='status'>{}</p>").format(told))

    def _checks(
        self,
        candidates: tuple[CandidateSet, ...],
        settings: RoundSettings,
        gold_round: str | None,
    ) -> list[CheckItem]:
        checks: list[CheckItem] = []
        if settings.gold_share:
            if not gold_round:
                raise LabelError(
                    f"the share of gold cards is {settings.gold_share}, but no settled round is "
                    "chosen to take them from; choose a frozen round, or set the share to 0"
                )
            ids = {candidate_set.prompt.id for candidate_set in candidates}
            wanted = round(len(candidates) * settings.gold_share) + 1
            checks += gold_from_round(self._store, gold_round, wanted, without=ids)
        if settings.attention_share:
            wanted = round(len(candidates) * settings.attention_share) + 1
            checks += attention_items(candidates, wanted)
        return checks


def _file_words(path: Path, name: str, visitor: Visitor) -> str:
    try:
        rows: Any = pq.read_metadata(path).num_rows
    except Exception:  # a damaged file is listed as well: publishing it says what is wrong
        rows = "?"
    when = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    place = str(Path(name).parent)
    return visitor.t("{place}: {n} prompts, {when}", place=place, n=rows, when=when)
