"""How a deployed run waits for people: suspended, with a typed input, a quota and a deadline.

What the reconciler needs to know about the wait lies with the run itself, in Prefect's database,
under the key `wait_key` of the pause. Who resumes gives the digest of the frozen rankings; the
body checks it against the label store before anything is trained.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from prefect.artifacts import create_progress_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import create_flow_run_input
from pydantic import Field

from flows.run_notes import read_note
from flows.waiting import OpenRound

_ANSWER = "-response"
_PAUSE = "rankings-"


class FrozenLabels(RunInput):  # type: ignore[misc, unused-ignore]
    """What a suspended run is resumed with."""

    labels_digest: str = Field(
        pattern="^[0-9a-f]{64}$", description="SHA-256 of the round's frozen rankings"
    )
    rankings: int = Field(ge=1, description="how many rankings the frozen set holds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One suspension, as the reconciler finds it: the round, where it lies, quota and deadline."""

    round_id: str
    store: str
    """Absolute folder of the artifact store."""
    rankings_wanted: int
    deadline: str
    """UTC time, ISO 8601; Prefect fails the run then."""
    artifact_id: str
    """Progress artifact that shows how far the labelling is."""


def wait_key(pause_key: str) -> str:
    """Under which the run keeps the `Wait` of a pause."""
    return f"wait-{pause_key}"


def suspend(open_round: OpenRound, why: str) -> None:
    """Suspend the flow run at hand; called in its body, never returns while the round is open.

    A new key each time: a run that is resumed too early, or wrongly, must suspend again.
    """
    pause_key = f"{_PAUSE}{open_round.round_id}-{uuid4().hex[:12]}"
    deadline = datetime.now(UTC) + timedelta(seconds=open_round.deadline_s)
    artifact_id = create_progress_artifact(
        progress=share(open_round.rankings_done, open_round.rankings_wanted),
        key=artifact_key(open_round.round_id),
        description=progress_text(open_round, deadline.isoformat(timespec="seconds")),
    )
    wait = Wait(
        round_id=open_round.round_id,
        store=str(Path(open_round.store).absolute()),
        rankings_wanted=open_round.rankings_wanted,
        deadline=deadline.isoformat(timespec="seconds"),
        artifact_id=str(artifact_id),
    )
    create_flow_run_input(wait_key(pause_key), asdict(wait))
    suspend_flow_run(
        wait_for_input=FrozenLabels.with_initial_data(description=why),
        timeout=int(open_round.deadline_s),
        key=pause_key,
    )


def artifact_key(round_id: str) -> str:
    """Key of the artifact that shows a round's progress: lower-case letters, digits, dashes."""
    return f"labelling-{round_id[:12].lower()}"


def share(done: int, wanted: int) -> float:
    """Per cent of the quota, from 0 to 100."""
    return min(100.0, 100.0 * done / wanted) if wanted else 100.0


def progress_text(status: OpenRound, deadline: str) -> str:
    """What the labelling's progress artifact says beside its bar."""
    return (
        f"{status.rankings_done} of {status.rankings_wanted} rankings of round "
        f"{status.round_id}; the run waits until {deadline}"
    )


def read_wait(client: SyncPrefectClient, flow_run: Any) -> Wait | None:
    """What a suspended run waits for; None if it is suspended for another reason."""
    pause_key = flow_run.state.state_details.pause_key if flow_run.state else None
    if not pause_key or not pause_key.startswith(_PAUSE):
        return None
    note = read_note(client, flow_run.id, wait_key(pause_key))
    return Wait(**note) if note else None


def labels_resumed_with(client: SyncPrefectClient, flow_run_id: UUID) -> Mapping[str, str]:
    """Digest by round of everything this run was ever resumed with, the newest winning."""
    prefix = f"suspended-{_PAUSE}"
    inputs = client.filter_flow_run_input(
        flow_run_id=flow_run_id, key_prefix=prefix, limit=200, exclude_keys=set()
    )
    answers = [found for found in inputs if found.key.endswith(_ANSWER)]
    by_age = sorted(answers, key=lambda found: str(found.created))
    return {_round_of(a.key, prefix): str(a.decoded_value["labels_digest"]) for a in by_age}


def _round_of(key: str, prefix: str) -> str:
    """`suspended-rankings-ROUND-SUFFIX-response` to ROUND."""
    return key.removeprefix(prefix).removesuffix(_ANSWER).rpartition("-")[0]
