"""The monitors by name, and what one of them hands on when it is beyond its threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALARMS = {
    "length": "responses changed their length",
    "repetition": "responses repeat themselves",
    "disagreement": "the ensemble's heads disagree more",
    "judge": "the reward rises while the held-out judge falls",
}
"""Each with the metrics `ppo/<name>_reading` and `ppo/alarm_<name>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A monitor beyond its threshold at a step, and the best-paid responses that show it.

    is_new: it was not at the step before. texts: see `alignment.rewards.watch.suspicious_texts`.
    """

    step: int
    monitor: str
    reading: float
    is_new: bool
    texts: Sequence[Mapping[str, Any]]

    @property
    def message(self) -> str:
        """For the console, one line."""
        return f"alarm at step {self.step}: {ALARMS[self.monitor]} (reading {self.reading:.3g})"
