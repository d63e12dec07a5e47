"""Thousands of claims over HTTP with the server killed under way: what is lost, what is double."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from benchmarks.labeling.served import Watch, drive_with_kills, panel_of, served, simulated_round
from labeling_ui.page_client import PageClient
from labeling_ui.simulated_clients import DriveLimits
from labeling_ui.store import LabelStore

LEASE_S = 10.0
"""Abandoned cards come back within the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Counts of a run; `lost`, `doubled`, `unknown` and `wrong_states` should all be 0."""

    wanted: int
    acknowledged: int
    lost: int
    doubled: int
    unknown: int
    wrong_states: int
    looks: int
    kills: int
    retries: int
    expired: int
    seconds: float

    @property
    def clean(self) -> bool:
        """True if every label is there once and no task was ever over-assigned."""
        faults = self.lost, self.doubled, self.unknown, self.wrong_states
        return not any(faults) and self.acknowledged >= self.wanted


def run_with_kills(
    place: Path | str,
    folder: Path,
    *,
    prompts: int,
    overlap: int,
    clients: int,
    kills: int,
    seconds: float,
) -> Outcome:
    """Ranks a new round with `clients` clients, each ranking sent twice, and counts."""
    panel = panel_of(clients)
    wanted = prompts * overlap
    due = [wanted * (n + 1) // (kills + 1) for n in range(kills)]
    with LabelStore.open(place) as store:
        round_id = simulated_round(store, panel, prompts=prompts, overlap=overlap, lease_s=LEASE_S)
        with served(place, round_id, folder / "server.log") as page:
            _abandon_cards(page.url, clients)
            limits = DriveLimits(rankings=2 * wanted, seconds=seconds, sends=2)
            with Watch(store, every_s=max(0.1, wanted / 20_000)) as watch:
                report, acknowledged, killed = drive_with_kills(page, panel, limits, kill_after=due)
        with store.read() as connection:
            query = text(
                "SELECT a.id, a.assignment_id FROM annotation a JOIN assignment s "
                "ON s.id = a.assignment_id WHERE s.round_id = :round"
            )
            stored = connection.execute(query, {"round": round_id}).all()
        done = store.progress(round_id).rankings_done
        counted = {ranking.annotation_id for ranking in store.rankings(round_id)}
    ids = {row.id for row in stored}
    return Outcome(
        wanted=wanted,
        acknowledged=len(acknowledged),
        lost=len(acknowledged - ids) + (wanted - done),
        doubled=len(stored) - len({row.assignment_id for row in stored}),
        unknown=len(ids - acknowledged) + len(counted - acknowledged),
        wrong_states=len(watch.wrong),
        looks=watch.looks,
        kills=killed,
        retries=report.retries,
        expired=clients // 4,
        seconds=report.seconds,
    )


def _abandon_cards(url: str, clients: int) -> None:
    """Others claim a card each and go away: their leases run out."""
    for number in range(clients // 4):
        client = PageClient(url, f"simulated-away-{number}")
        client.sign_in()
        client.next_card()
        client.close()
