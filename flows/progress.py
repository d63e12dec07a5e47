"""What a run shows on the console: one line a stage, the current one with step, rate and ETA.

On a terminal the lines are redrawn in place. Elsewhere (a file, a CI log) each stage prints a
line when it begins and when it ends, and one every `interval_s` seconds in between.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.interruption import raise_if_interrupted

_REDRAWS_PER_SECOND = 2
_PLAIN_INTERVAL_S = 20.0
_SYMBOLS = {"working": ("●", "cyan"), "done": ("✓", "green"), "stopped": ("✗", "red")}
_MINUTE, _HOUR = 60, 3600

Observe = Callable[[str, int, int, str, Mapping[str, float]], None]
"""`observe(stage, step, total, unit, figures)`, called at every step."""


@dataclass(slots=True)
class StageLine:
    """One stage's line; `note` says what the stage is about to do, `done` how it ended."""

    name: str
    begun_s: float
    state: str = "working"
    text: str = ""
    ended_s: float | None = None
    _first: tuple[int, float] | None = field(default=None, repr=False)
    _seen: tuple[int, float] | None = field(default=None, repr=False)

    def note(self, text: str) -> None:
        """Show `text` until the stage advances."""
        self.text = text

    def done(self, text: str) -> None:
        """Show `text` as the stage's end, e.g. `reused`."""
        self.state, self.text = "done", text

    def advance(
        self, now_s: float, step: int, total: int, unit: str, figures: Mapping[str, float]
    ) -> None:
        """Show a step with its rate and the time left."""
        if self._first is None or step < self._first[0]:
            self._first = (step, now_s)
        self._seen = (step, now_s)
        shown = [f"{name} {value:.4g}" for name, value in figures.items()]
        self.text = "  ".join([f"{unit} {step}/{total}", *self._pace(step, total, unit), *shown])

    def _pace(self, step: int, total: int, unit: str) -> list[str]:
        assert self._first is not None
        assert self._seen is not None
        steps, seconds = step - self._first[0], self._seen[1] - self._first[1]
        if steps <= 0 or seconds <= 0:
            return []
        rate = steps / seconds
        pace = f"{rate:.3g} {unit}/s" if rate >= 1 else f"{1 / rate:.3g} s/{unit}"
        return [pace, f"ETA {duration((total - step) / rate)}"] if step < total else [pace]


class Progress:
    """The console of a run. Use as a context; call from one thread."""

    def __init__(
        self,
        console: Console | None = None,
        *,
        interval_s: float = _PLAIN_INTERVAL_S,
        now: Callable[[], float] = time.monotonic,
        observe: Observe = lambda stage, step, total, unit, figures: None,
        announce: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.console = console or Console(highlight=False)
        self._observe = observe
        self._announce = announce
        self._interval_s = interval_s
        self._now = now
        self._lines: list[StageLine] = []
        self._current: StageLine | None = None
        self._printed_s = float("-inf")
        self._live = (
            Live(
                get_renderable=self._table,
                console=self.console,
                refresh_per_second=_REDRAWS_PER_SECOND,
            )
            if self.console.is_terminal
            else None
        )

    def __enter__(self) -> "Progress":
        """Begin to draw."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        if self._live:
            self._live.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[StageLine]:
        """Show stage `name` as being worked on while the block lasts."""
        raise_if_interrupted()
        line = StageLine(name, self._now())
        self._lines.append(line)
        self._current = line
        self._printed_s = self._now()
        try:
            yield line
        except BaseException as error:
            line.state, line.text = "stopped", type(error).__name__
            raise
        else:
            if line.state == "working":
                line.done(line.text)
        finally:
            line.ended_s = self._now()
            self._current = None
            self._print(line)

    def advance(self, step: int, total: int, unit: str, **figures: float) -> None:
        """Show that `step` of `total` are done, and figures worth a place on the line.

        Outside a stage (people rank while the run waits) it has a line of its own.
        """
        raise_if_interrupted()
        if self._current is None and (not self._lines or self._lines[-1].state != "working"):
            self._lines.append(StageLine("waiting", self._now()))
        line = self._current or self._lines[-1]
        line.advance(self._now(), step, total, unit, figures)
        self._observe(line.name, step, total, unit, figures)
        if step >= total and self._current is None:
            line.state, line.ended_s = "done", self._now()
        if self._now() - self._printed_s >= self._interval_s:
            self._printed_s = self._now()
            self._print(line)

    def note(self, text: str) -> None:
        """Show what the current stage is doing where steps cannot be counted."""
        if self._current:
            self._current.note(text)
            self._print(self._current)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._announce(text)
        self.console.print(escape(text), soft_wrap=True)

    def _print(self, line: StageLine) -> None:
        if self._live is None:
            self.console.print(self._text(line), soft_wrap=True)

    def _text(self, line: StageLine) -> Text:
        symbol, style = _SYMBOLS[line.state]
        seconds = (line.ended_s if line.ended_s is not None else self._now()) - line.begun_s
        return Text.assemble(
            (symbol, style), f" {line.name:<13} {duration(seconds):>7}  ", (line.text, "dim")
        )

    def _table(self) -> Table:
        table = Table.grid()
        for line in self._lines:
            text = self._text(line)
            text.no_wrap, text.overflow = True, "ellipsis"
            table.add_row(text)
        return table


def duration(seconds: float) -> str:
    """Seconds as people read them: `8.2 s`, `3m05s`, `1h02m`."""
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02d}s"
    return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"
