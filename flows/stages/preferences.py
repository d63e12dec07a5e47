"""preferences: candidates to rankings by people (or the simulated panel) to comparisons.

The label store is the truth. A round is named by the digest of its candidates, so runs with the
same candidates share people's work; its frozen digest is the input that pins this stage.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import StoreError
from alignment.records import CandidateSet, PreferenceGroup, Ranking
from flows.manifest import Artifact, InputReference
from flows.run_context import RunContext, StageResult
from flows.stages.candidates import CANDIDATES
from flows.stages.data import PREFERENCES
from flows.waiting import require_labels_resumed_with, wait_for_rankings
from flows.workspace import StageWorkspace

if TYPE_CHECKING:
    from labeling_ui.store import LabelStore

STAGE, VERSION = "preferences", 1
RANKINGS = "rankings.parquet"


def label_store_path(store: Path) -> Path:
    """Where the label store of an artifact store lies."""
    return store / "labels" / "labels.sqlite"


def collect_rankings(run: RunContext, candidates: Artifact) -> Artifact:
    """Publish the round, wait until it is ranked and frozen, and turn it into comparisons.

    Raises:
        WaitingForPeople: the round is not complete and this process is not to wait.
    """
    from labeling_ui.store import LabelStore

    path = label_store_path(run.store.root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with LabelStore.open(path) as labels:
        round_id = _publish(run, labels, candidates)
        digest = _frozen_digest(run, labels, round_id, path)
        store = str(run.config.run.store)
        require_labels_resumed_with(labels, round_id, digest, run.options.resumed_with, store=store)

        def work(workspace: StageWorkspace) -> StageResult:
            from alignment.data.tables import read_records, write_records
            from alignment.statistics.consensus import consensus

            sets = read_records(candidates.path(CANDIDATES), CandidateSet)
            rankings = labels.rankings(round_id)
            _require_unchanged(round_id, rankings, digest, store)
            groups = consensus(sets, rankings)
            write_records(workspace.output(RANKINGS), rankings, Ranking)
            write_records(workspace.output(PREFERENCES), groups, PreferenceGroup)
            return StageResult(outputs=(RANKINGS, PREFERENCES), metrics=_figures(rankings))

        request = run.request(
            STAGE,
            version=VERSION,
            settings={},
            inputs={
                "candidates": candidates.reference(CANDIDATES),
                "rankings": InputReference(digest=digest, source=f"round {round_id}"),
            },
        )
        artifact = run.stage(request, work)
        run.stop_if_only(artifact)
        return artifact


def _require_unchanged(round_id: str, rankings: Sequence[Ranking], digest: str, store: str) -> None:
    """Compare the rankings read now with the digest they were frozen under."""
    from labeling_ui.export import rankings_digest

    found = rankings_digest(round_id, rankings)
    if found != digest:
        raise StoreError(
            f"round {round_id} in {store} was frozen as {digest[:16]}, but its rankings now have "
            f"digest {found[:16]}: somebody changed the label database after the freeze. Put a "
            "backup of it back, then start the run again"
        )


def _publish(run: RunContext, labels: "LabelStore", candidates: Artifact) -> str:
    from alignment.data.tables import read_records
    from labeling_ui.simulated_panel import panel_identity

    config = run.config.preferences
    panel = ""
    if config.source == "panel" and config.panel is not None:
        panel = panel_identity(config.panel, run.seed(STAGE))
    status = labels.publish_round(
        read_records(candidates.path(CANDIDATES), CandidateSet),
        rankings_per_prompt=config.rankings_per_prompt,
        name=run.record.name
        if run.config.rounds.count == 1
        else f"{run.record.name}, round {run.round} of {run.config.rounds.count}",
        panel=panel,
    )
    return str(status.round_id)


def _frozen_digest(run: RunContext, labels: "LabelStore", round_id: str, path: Path) -> str:
    config = run.config.preferences
    frozen: str | None = labels.progress(round_id).frozen_digest
    if frozen is not None:
        return frozen
    if config.source == "panel":
        from labeling_ui.simulated_panel import rank_round

        assert config.panel is not None
        rank_round(labels, round_id, config.panel, seed=run.seed(STAGE))
        return str(labels.freeze(round_id))
    serve = partial(_serve, run, path, round_id) if run.options.serve_labels else None
    with run.clock.phase("waiting_for_people"):
        return wait_for_rankings(
            labels,
            round_id,
            store=str(run.config.run.store),
            server=serve,
            open_browser=run.options.open_browser,
            announce=run.progress.say,
            report=lambda done, wanted: run.progress.advance(done, wanted, "ranking"),
            deadline_s=config.deadline_days * 24 * 3600,
        )


@contextmanager
def _serve(run: RunContext, path: Path, round_id: str) -> Iterator[str]:
    """The ranking page in a process of its own; gives its address."""
    from labeling_ui.server import start_server_process

    config = run.config.preferences
    server = start_server_process(path, round_id, host=config.host, port=config.port)
    try:
        run.engines.versions["gradio"] = server.gradio_version
        yield server.url
    finally:
        server.stop()


def _figures(rankings: Sequence[Ranking]) -> dict[str, object]:
    labelers = sorted({ranking.labeler for ranking in rankings})
    return {
        "rankings": len(rankings),
        "labelers": ", ".join(labelers),
        "prompts": len({ranking.prompt_id for ranking in rankings}),
    }
