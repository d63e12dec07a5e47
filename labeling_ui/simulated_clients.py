"""The simulated panel at a served page: as many clients as labelers, bounded in work and time."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from alignment.config import PanelConfig
from alignment.errors import LabelError
from labeling_ui.page_client import PageClient, Saved, check_address
from labeling_ui.simulated_panel import labeler_names, rank_card, submission_key

MAX_CLIENTS = 64
MAX_SECONDS = 3600.0
IDLE_S = 0.5
"""A client without a card asks again after this long, as other leases may run out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveLimits:
    """What ends a drive: rankings in all, seconds. `think_s` is the mean pause before a ranking.

    `sends` is how often each ranking is sent; more than once shows that it is stored once.
    """

    rankings: int = 1000
    seconds: float = 60.0
    think_s: float = 0.0
    sends: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.rankings <= 1_000_000 or not 1 <= self.sends <= 5:
            raise LabelError(
                f"{self.rankings} rankings, each sent {self.sends} times: 1 to 1000000, 1 to 5"
            )
        if not 0 < self.seconds <= MAX_SECONDS or not 0 <= self.think_s <= 60:
            raise LabelError(
                f"{self.seconds} seconds with {self.think_s} of thought: up to {MAX_SECONDS:.0f} "
                "and 60"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveReport:
    """What the clients saw. Every entry of `saved` was acknowledged; seconds as they waited."""

    seconds: float
    saved: tuple[Saved, ...]
    claim_seconds: tuple[float, ...]
    retries: int

    def percentiles_ms(self) -> tuple[float, float, float]:
        """Median, 95th and 99th percentile of a submission, milliseconds."""
        if not self.saved:
            return (float("nan"),) * 3
        p50, p95, p99 = np.percentile([s.seconds * 1000 for s in self.saved], [50, 95, 99])
        return float(p50), float(p95), float(p99)


def drive(
    url: str,
    panel: PanelConfig,
    limits: DriveLimits,
    *,
    seed: int,
    patience_s: float = 60.0,
    on_saved: Callable[[str, Saved], None] | None = None,
) -> DriveReport:
    """Ranks at the page of `url` until it is done or a limit is met; each labeler is a client.

    `on_saved(name, saved)` is called in the client's thread after each acknowledgement.

    Raises:
        LabelError: not this machine, too many labelers, or a request that the server refuses.
    """
    check_address(url)
    names = labeler_names(panel)
    if len(names) > MAX_CLIENTS:
        raise LabelError(f"{len(names)} simulated labelers; at most {MAX_CLIENTS} drive a page")
    shared = _Shared(panel=panel, limits=limits, seed=seed, on_saved=on_saved)
    begun = time.monotonic()
    with ThreadPoolExecutor(len(names)) as pool:
        workers = [
            pool.submit(_work, PageClient(url, name, patience_s=patience_s), shared)
            for name in names
        ]
        for worker in workers:
            worker.result()
    return DriveReport(
        seconds=time.monotonic() - begun,
        saved=tuple(shared.saved),
        claim_seconds=tuple(shared.claims),
        retries=sum(shared.retries),
    )


class _Shared:
    """What the clients have in common."""

    def __init__(
        self,
        *,
        panel: PanelConfig,
        limits: DriveLimits,
        seed: int,
        on_saved: Callable[[str, Saved], None] | None,
    ) -> None:
        self.panel, self.limits, self.seed, self.on_saved = panel, limits, seed, on_saved
        self.deadline = time.monotonic() + limits.seconds
        self.saved: list[Saved] = []
        self.claims: list[float] = []
        self.retries: list[int] = []
        self._left, self._lock = limits.rankings, threading.Lock()
        self._busy = 0

    def take(self) -> bool:
        """True if another ranking may be begun."""
        with self._lock:
            if self._left < 1 or time.monotonic() > self.deadline:
                return False
            self._left -= 1
            self._busy += 1
            return True

    def done(self, *, ranked: bool) -> None:
        """Gives the turn back where there was no card."""
        with self._lock:
            self._busy -= 1
            self._left += 0 if ranked else 1

    def nobody_works(self) -> bool:
        """True if no other client has a turn: then nothing can come back."""
        with self._lock:
            return self._busy == 0


def _work(client: PageClient, shared: _Shared) -> None:
    draw = random.Random(f"{shared.seed} {client.name}")
    idle = 0
    try:
        client.sign_in()
        while idle < 3 and shared.take():
            ranked = False
            try:
                ranked = _rank_one(client, shared, draw)
            finally:
                shared.done(ranked=ranked)
            if ranked:
                idle = 0
                continue
            idle = idle + 1 if shared.nobody_works() else 0
            time.sleep(IDLE_S)
    finally:
        shared.retries.append(client.retries)
        client.close()


def _rank_one(client: PageClient, shared: _Shared, draw: random.Random) -> bool:
    begun = time.perf_counter()
    card = client.next_card()
    shared.claims.append(time.perf_counter() - begun)
    if card is None:
        return False
    if shared.limits.think_s:
        time.sleep(draw.expovariate(1 / shared.limits.think_s))
    tiers = rank_card(card, client.name, shared.panel, seed=shared.seed)
    key = submission_key(shared.seed, client.name, card.assignment_id)
    for _ in range(shared.limits.sends):
        saved = client.submit(card, tiers, submission_id=key)
        if shared.on_saved is not None:
            shared.on_saved(client.name, saved)
    shared.saved.append(saved)
    return True
