"""Alarms of the reward's monitors, as a run shows and keeps them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.rewards.alarms import Alarm
from flows.durable import finite_json, made_folder

SUSPICIOUS_NAME = "suspicious_responses.jsonl"
"""In a run's folder, and an output of the PPO stage: the texts behind its alarms."""


class AlarmLog:
    """Says each alarm when it begins, and appends its texts to one file, a response a line.

    Lines of steps after `after_step`, which a resumed training repeats, are dropped at once.
    """

    def __init__(self, path: Path, say: Callable[[str], None], *, after_step: int = 0) -> None:
        self.path = path
        self._say = say
        made_folder(path.parent)
        kept = [line for line in read_suspicious(path) if line["step"] <= after_step]
        path.unlink(missing_ok=True)
        self._append(kept)

    def __call__(self, alarm: Alarm) -> None:
        """Keep the alarm; one that was on at the step before is not said again."""
        if alarm.is_new:
            self._say(f"{alarm.message}; texts in {self.path}")
        about = {"step": alarm.step, "monitor": alarm.monitor, "reading": alarm.reading}
        self._append([about | dict(text) for text in alarm.texts])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if not lines:
            return
        with self.path.open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(finite_json(line), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_suspicious(path: Path) -> list[dict[str, Any]]:
    """The lines of the file in order, a half-written last one left out; empty without a file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]
