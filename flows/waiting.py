"""The wait for people: decide whether a round of rankings is complete, and if not, how to wait.

Called in the parent flow's body by a plain function: Prefect can suspend neither a subflow nor
a run without a deployment. The label store is the truth; it is read again at every call, so a
run that was stopped, suspended or killed during the wait goes on with the same command.
"""

import os
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from alignment.errors import AlignmentError


class RoundStatus(Protocol):
    """How far a round is."""

    @property
    def rankings_wanted(self) -> int:
        """Rankings the round needs."""
        ...

    @property
    def rankings_done(self) -> int:
        """Rankings submitted so far that count towards the need."""
        ...

    @property
    def frozen_digest(self) -> str | None:
        """Digest of the frozen rankings; None while the round is open."""
        ...


class Rounds(Protocol):
    """What the wait needs of the label store."""

    def progress(self, round_id: str) -> RoundStatus:
        """How far a round is now."""
        ...

    def freeze(self, round_id: str) -> str:
        """Close a round for good and return the digest of its rankings."""
        ...


@dataclass(frozen=True, kw_only=True)
class OpenRound:
    """A round that people are still to rank, how far it is, and the store it lies in."""

    round_id: str
    rankings_wanted: int
    rankings_done: int
    store: str
    deadline_s: float = 30 * 24 * 3600
    """How long a suspended run waits; Prefect fails it then."""


class WaitingForPeople(AlignmentError):  # noqa: N818 - nothing went wrong
    """The run stops here until people have ranked; the same command goes on. Exit code 75."""

    open_round: OpenRound | None = None
    """What the run waits for, where the wait is one for a round."""

    @classmethod
    def for_round(cls, message: str, open_round: OpenRound) -> "WaitingForPeople":
        """The wait for `open_round`, told by `message`."""
        waiting = cls(message)
        waiting.open_round = open_round
        return waiting


LabelServer = Callable[[], AbstractContextManager[str]]
"""Starts the ranking page in a process of its own and gives its URL; stops it on leaving."""

ReportRankings = Callable[[int, int], None]
"""`report(done, wanted)`, e.g. to show progress."""


def wait_for_rankings(
    rounds: Rounds,
    round_id: str,
    *,
    store: str,
    server: LabelServer | None = None,
    open_browser: bool = True,
    announce: Callable[[str], None] = print,
    report: ReportRankings = lambda done, wanted: None,
    poll_s: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
    deadline_s: float = OpenRound.deadline_s,
) -> str:
    """The digest of a round's frozen rankings, once people have ranked enough.

    A complete round is frozen and returned at once. Otherwise, with `server`, the ranking page
    is served and this process waits; without it, the run stops here. `store` is the artifact
    store as the user would type it; `deadline_s` is how long a suspended run will wait.

    Raises:
        WaitingForPeople: the round is not complete and this process is not to wait; says how
            many are ranked, where to rank, and that the same command goes on.
    """
    digest = _digest_if_complete(rounds, round_id)
    if digest is not None:
        return digest
    if server is not None:
        with server() as url:
            _invite(url, rounds.progress(round_id), announce, open_browser)
            for status in _statuses(rounds, round_id, poll_s, sleep):
                report(status.rankings_done, status.rankings_wanted)
        return rounds.progress(round_id).frozen_digest or rounds.freeze(round_id)
    status = rounds.progress(round_id)
    raise WaitingForPeople.for_round(
        f"waiting for people: {status.rankings_done} of {status.rankings_wanted} rankings of round "
        f"{round_id} are in {store}. Rank them with `alignflow label serve --store {store}`, then "
        "run the same command again: it goes on from here. With --serve-labels it serves the page "
        "itself and waits",
        OpenRound(
            round_id=round_id,
            rankings_wanted=status.rankings_wanted,
            rankings_done=status.rankings_done,
            store=store,
            deadline_s=deadline_s,
        ),
    )


def _digest_if_complete(rounds: Rounds, round_id: str) -> str | None:
    status = rounds.progress(round_id)
    if status.frozen_digest is not None:
        return status.frozen_digest
    return rounds.freeze(round_id) if _is_complete(status) else None


def _is_complete(status: RoundStatus) -> bool:
    return status.frozen_digest is not None or status.rankings_done >= status.rankings_wanted


def _statuses(
    rounds: Rounds, round_id: str, poll_s: float, sleep: Callable[[float], None]
) -> Iterator[RoundStatus]:
    """The round's status every `poll_s` seconds, the complete one last."""
    while True:
        status = rounds.progress(round_id)
        yield status
        if _is_complete(status):
            return
        sleep(poll_s)


def _invite(
    url: str, status: RoundStatus, announce: Callable[[str], None], open_browser: bool
) -> None:
    """Say what a person is to do, where, and how much is left; open the page where possible."""
    left = status.rankings_wanted - status.rankings_done
    announce(f"Your turn: {left} of {status.rankings_wanted} rankings are left.")
    announce(f"Rank the responses at {url}")
    announce(
        "Sign in with any name, give each response a rank (keys 1 to 9, equal ones tie) and press "
        "Enter. After the last ranking the run goes on by itself. Ctrl-C loses nothing: the same "
        "command asks for the rest."
    )
    if open_browser and not (can_show_a_browser() and webbrowser.open(url)):
        announce("No browser could be opened here: open the address yourself.")


def can_show_a_browser(
    environ: Mapping[str, str] = os.environ, platform: str = sys.platform
) -> bool:
    """True where a browser would get a window.

    Without a display Python would start a text browser in the very terminal that shows the run.
    """
    if platform in ("darwin", "win32"):
        return True
    return any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


@contextmanager
def suspended_while_people_rank() -> Iterator[None]:
    """Around the parent flow's whole body: suspend the run where Prefect can start it again.

    A run of a deployment becomes Suspended and its process ends; resuming it runs the body from
    the top, which reuses every finished stage. Any other run ends with WaitingForPeople.
    Outermost, so that leases, engines and the run's record are closed before the process ends.
    """
    try:
        yield
    except WaitingForPeople as waiting:
        import prefect.runtime.deployment

        if prefect.runtime.deployment.id is not None and waiting.open_round is not None:
            from flows.suspension import suspend

            suspend(waiting.open_round, str(waiting))
        raise


def require_labels_resumed_with(
    rounds: Rounds, round_id: str, digest: str, resumed_with: Mapping[str, str], *, store: str
) -> None:
    """Refuse rankings other than those that a run was resumed with.

    Args:
        rounds: the label store.
        round_id: the round at hand.
        digest: of its frozen rankings.
        resumed_with: digest of frozen rankings by round, as the run's resumptions gave them.
        store: the artifact store as the user would type it.

    Raises:
        WaitingForPeople: they differ; the run is suspended again, so it can be resumed rightly.
    """
    given = resumed_with.get(round_id, digest)
    if given != digest:
        status = rounds.progress(round_id)
        raise WaitingForPeople.for_round(
            f"the run was resumed with label set {given[:16]}, but round {round_id} in {store} is "
            f"frozen as {digest[:16]}: nothing was trained on either. The run waits again; "
            "`alignflow resume` or the reconciler resumes it with the frozen set",
            OpenRound(
                round_id=round_id,
                rankings_wanted=status.rankings_wanted,
                rankings_done=status.rankings_done,
                store=store,
            ),
        )
