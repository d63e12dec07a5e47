"""The wait for people: each way it can go, on a real label store file's stand-in in memory."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from flows import waiting
from flows.waiting import WaitingForPeople, wait_for_rankings


@dataclass
class Status:
    rankings_wanted: int
    rankings_done: int
    frozen_digest: str | None = None


@dataclass
class RoundsInMemory:
    """One round; a poll may bring a further ranking."""

    wanted: int = 4
    done: int = 0
    frozen_digest: str | None = None
    ranked_per_poll: int = 0
    events: list = field(default_factory=list)

    def progress(self, round_id):
        assert round_id == "r1"
        return Status(self.wanted, self.done, self.frozen_digest)

    def freeze(self, round_id):
        assert self.done >= self.wanted
        self.events.append("freeze")
        self.frozen_digest = "digest"
        return self.frozen_digest

    def sleep(self, seconds):
        self.events.append("sleep")
        self.done += self.ranked_per_poll
        if self.ranked_per_poll == 0:
            raise KeyboardInterrupt

    @contextmanager
    def server(self):
        self.events.append("serve")
        try:
            yield "http://127.0.0.1:7861/"
        finally:
            self.events.append("stop")


def wait(rounds, **overrides):
    arguments = {"store": "store", "sleep": rounds.sleep, "announce": rounds.events.append}
    return wait_for_rankings(rounds, "r1", **(arguments | overrides))


def test_complete_round_is_frozen_and_frozen_one_returned():
    rounds = RoundsInMemory(done=4)
    assert wait(rounds) == "digest"
    assert wait(rounds, server=rounds.server) == "digest"
    assert rounds.events == ["freeze"]


def test_round_frozen_early_by_hand_is_taken_as_it_is():
    rounds = RoundsInMemory(done=2, frozen_digest="early")
    assert wait(rounds) == "early"
    assert rounds.events == []


def test_without_a_page_the_run_stops_and_says_how_to_go_on():
    with pytest.raises(WaitingForPeople) as stop:
        wait(RoundsInMemory(done=1))
    message = str(stop.value)
    assert "1 of 4 rankings of round r1" in message
    assert "alignflow label serve --store store" in message
    assert "run the same command again" in message


def test_page_is_served_until_all_is_ranked_then_frozen():
    rounds = RoundsInMemory(ranked_per_poll=2)
    reports = []
    digest = wait(
        rounds,
        server=rounds.server,
        open_browser=False,
        report=lambda done, wanted: reports.append((done, wanted)),
    )
    assert digest == "digest"
    assert reports == [(0, 4), (2, 4), (4, 4)]
    served, left, where, how, *rest = rounds.events
    assert served == "serve"
    assert left == "Your turn: 4 of 4 rankings are left."
    assert where.endswith(" http://127.0.0.1:7861/")
    assert "Sign in" in how
    assert rest == ["sleep", "sleep", "stop", "freeze"]


def test_page_is_stopped_when_the_wait_is_interrupted():
    rounds = RoundsInMemory(ranked_per_poll=0)
    with pytest.raises(KeyboardInterrupt):
        wait(rounds, server=rounds.server, open_browser=False)
    assert rounds.events[-1] == "stop"
    assert rounds.frozen_digest is None


def test_browser_is_opened_unless_told_not_to(monkeypatch):
    opened = []

    def open_and_tell(url):
        opened.append(url)
        return False

    monkeypatch.setattr(waiting.webbrowser, "open", open_and_tell)
    monkeypatch.setenv("DISPLAY", ":0")
    rounds = RoundsInMemory(ranked_per_poll=4)
    wait(rounds, server=rounds.server)
    assert opened == ["http://127.0.0.1:7861/"]
    assert any("No browser could be opened" in event for event in rounds.events)
    rounds = RoundsInMemory(ranked_per_poll=4)
    wait(rounds, server=rounds.server, open_browser=False)
    assert len(opened) == 1


def test_no_browser_is_tried_where_it_would_take_the_terminal(monkeypatch):
    monkeypatch.setattr(waiting.webbrowser, "open", pytest.fail)
    monkeypatch.setattr(waiting, "can_show_a_browser", lambda: False)
    rounds = RoundsInMemory(ranked_per_poll=4)
    wait(rounds, server=rounds.server)
    assert "No browser could be opened here: open the address yourself." in rounds.events


@pytest.mark.parametrize(
    ("environ", "platform", "shown"),
    [
        ({}, "linux", False),
        ({"DISPLAY": ""}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({"BROWSER": "firefox"}, "linux", True),
        ({}, "darwin", True),
    ],
)
def test_a_browser_needs_a_display(environ, platform, shown):
    assert waiting.can_show_a_browser(environ, platform) is shown
