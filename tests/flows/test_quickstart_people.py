"""`make quickstart-people` as a person lives it: one command, a browser, rankings, a report.

The command of the Makefile, with a tiny model; the person is Chromium, driven by keyboard alone.
"""

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from marked_processes import MARK, wait_until_no_process_is_left
from people_in_browser import CHROMIUM, rank_everything

from flows.summary import read_summary

ROOT = Path(__file__).parents[2]
TINY = (
    "model.source=tiny",
    "data.demonstrations=16",
    "data.train_prompts=8",
    "data.heldout_prompts=8",
    "candidates.max_response_tokens=8",
    "preferences.port=0",
    "reward_model.layers=1",
    "ppo.prompts_per_step=4",
    "ppo.sequences_per_minibatch=2",
    "ppo.max_response_tokens=8",
    "evaluation.samples_per_prompt=1",
    "evaluation.max_response_tokens=8",
    "evaluation.bootstrap_resamples=200",
    "cluster.threads=1",
)

pytestmark = [
    pytest.mark.engines,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]


class RunningCommand:
    """A command whose printed lines are read while it runs."""

    def __init__(self, command, **options):
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )
        self.printed = []
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, pattern, timeout_s):
        """The match of `pattern` in the first line that has one."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, "\n".join([f"no {pattern!r} in:", *self.printed])
            self.printed.append(line)
            if found := re.search(pattern, line):
                return found

    def end(self, timeout_s):
        """Exit code, once the command has ended and everything it printed is read."""
        code = self.process.wait(timeout_s)
        while (line := self._lines.get(timeout=10)) is not None:
            self.printed.append(line)
        return code


def makefile_command():
    """What `make quickstart-people` starts, without the interpreter."""
    recipe = subprocess.run(
        ["make", "--dry-run", "--silent", "quickstart-people", "-o", "install"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return recipe[recipe.index("-m") :]


def test_one_command_from_candidates_over_a_person_to_the_report(tmp_path):
    opened = tmp_path / "opened_address"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}\n')
    browser.chmod(0o755)
    mark, settings = f"people-{os.getpid()}", [f"--set={setting}" for setting in TINY]
    command = RunningCommand(
        [sys.executable, *makefile_command(), *settings],
        cwd=tmp_path,
        env=os.environ | {MARK: mark, "PYTHONPATH": str(ROOT), "BROWSER": f"{browser} %s"},
    )
    try:
        left = command.wait_for(r"(\d+) of (\d+) rankings are left", timeout_s=900)
        url = command.wait_for(r"http://127\.0\.0\.1:\d+/\S*", timeout_s=60)[0]
        rank_everything(url, tmp_path)
        code = command.end(timeout_s=900)
    finally:
        command.process.kill()
    assert code == 0, "\n".join(command.printed)
    assert left.groups() == ("6", "6")
    assert opened.read_text() == url

    run = tmp_path / "runs" / "quickstart_people"
    summary = read_summary(run)
    assert summary.simulated_labels is False
    assert all(check.passed for check in summary.checks.values()), summary.checks
    assert re.fullmatch(r"6\.\d+\.\d+", summary.versions.gradio)
    assert "gradio" not in summary.versions.not_loaded
    assert summary.timing.waiting_for_people_s > 0
    assert not any("gold" in name for name in summary.targets)
    (generator,) = (a for a in summary.actors if (a.stage, a.role) == ("ppo", "generator"))
    assert len(generator.policy_versions) == 2
    labels = json.loads((run / "evaluation.json").read_text())["labels"]
    assert (labels["rankings"], labels["prompts"]) == (6, 6)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Rankings by people" in page
    assert "SIMULATED" not in page
    assert "gold" not in page
    wait_until_no_process_is_left(mark)
