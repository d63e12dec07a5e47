"""How long labelers wait at a served page: 24 at once, with thought and without, and one alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.labeling.served import SEED, panel_of, served, simulated_round
from labeling_ui.page_client import PageClient
from labeling_ui.simulated_clients import DriveLimits, drive
from labeling_ui.simulated_panel import labeler_names, rank_card, submission_key
from labeling_ui.store import LabelStore

PROMPTS, OVERLAP = 20_000, 3
"""More than a run can rank, so that nobody ever waits for work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median, 95th and 99th percentile in milliseconds of `calls` calls."""

    p50: float
    p95: float
    p99: float
    calls: int

    def __str__(self) -> str:
        return f"{self.p50:.1f} / {self.p95:.1f} / {self.p99:.1f}"


def spread(seconds: Sequence[float]) -> Spread:
    """The spread of so many waits, each in seconds."""
    p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
    return Spread(p50=float(p50), p95=float(p95), p99=float(p99), calls=len(seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """What `clients` labelers waited for; `per_second` rankings were acknowledged."""

    submit: Spread
    claim: Spread
    per_second: float
    retries: int


def at_a_page(
    place: Path | str, folder: Path, *, clients: int, think_s: float, seconds: float
) -> Waits:
    """Claims and submits over HTTP for `seconds`, with a mean pause of `think_s` at each card."""
    panel = panel_of(clients)
    with LabelStore.open(place) as store:
        round_id = simulated_round(store, panel, prompts=PROMPTS, overlap=OVERLAP)
    with served(place, round_id, folder / "server.log") as page:
        drive(page.url, panel, DriveLimits(rankings=5 * clients, seconds=60), seed=SEED)
        limits = DriveLimits(rankings=1_000_000, seconds=seconds, think_s=think_s)
        report = drive(page.url, panel, limits, seed=SEED)
    return Waits(
        submit=spread([saved.seconds for saved in report.saved]),
        claim=spread(report.claim_seconds),
        per_second=len(report.saved) / report.seconds,
        retries=report.retries,
    )


def next_card_of_one(place: Path | str, folder: Path, *, cards: int) -> Spread:
    """From sending a ranking until the next card is there, acknowledgement included.

    The page of a browser has the next card ahead of time; this is the wait without that.
    """
    panel = panel_of(1)
    with LabelStore.open(place) as store:
        round_id = simulated_round(store, panel, prompts=cards + 20, overlap=1)
    waits = []
    with served(place, round_id, folder / "server.log") as page:
        client = PageClient(page.url, labeler_names(panel)[0])
        client.sign_in()
        card = client.next_card()
        for number in range(cards + 10):
            if card is None:
                raise RuntimeError("the round has ended before the measurement")
            tiers = rank_card(card, client.name, panel, seed=SEED)
            key = submission_key(SEED, client.name, card.assignment_id)
            begun = perf_counter()
            client.submit(card, tiers, submission_id=key)
            card = client.next_card()
            if number >= 10:
                waits.append(perf_counter() - begun)
        client.close()
    return spread(waits)
