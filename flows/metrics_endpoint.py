"""Prometheus metrics of the runs, served by the reconciler from what it sees at each look."""

from collections import Counter
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, start_http_server
from prometheus_client import Counter as Total

from flows.metrics_log import read_metrics

if TYPE_CHECKING:
    from flows.reconcile import Seen

_ACTIONS = ("resumed", "restarted", "given up", "marked crashed", "rescheduled", "job stopped")
_STATES = ("Running", "Pending", "Suspended", "Crashed", "Cancelling")


class MetricsEndpoint:
    """`/metrics` on loopback; `show` takes what a look found. Port 0 takes a free one."""

    def __init__(self, port: int, store: Path, *, host: str = "127.0.0.1") -> None:
        registry = CollectorRegistry()
        self._runs = store.absolute().parent / "runs"
        self._lock = Lock()
        self._states = Gauge(
            "alignflow_flow_runs", "Unfinished flow runs by state", ["state"], registry=registry
        )
        self._done = Gauge(
            "alignflow_rankings_done", "Rankings of the round a run waits for",
            ["run", "round"], registry=registry,
        )  # fmt: skip
        self._wanted = Gauge(
            "alignflow_rankings_wanted", "Rankings that round needs",
            ["run", "round"], registry=registry,
        )  # fmt: skip
        self._actions = Total(
            "alignflow_reconciler_actions", "What the reconciler did", ["action"], registry=registry
        )
        self._looks = Gauge(
            "alignflow_reconciler_last_look_timestamp_seconds", "When it last saw the server",
            registry=registry,
        )  # fmt: skip
        self._figures = Gauge(
            "alignflow_stage_figure", "Newest value of a stage's metric",
            ["run", "stage", "figure"], registry=registry,
        )  # fmt: skip
        self._steps = Gauge(
            "alignflow_stage_step", "Newest step of a stage", ["run", "stage"], registry=registry
        )
        for action in _ACTIONS:
            self._actions.labels(action=action)
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def show(self, seen: "list[Seen]") -> None:
        """Take over what the reconciler found at one look."""
        with self._lock:
            counts = Counter(one.state for one in seen)
            for state in _STATES:
                self._states.labels(state=state).set(counts[state])
            self._done.clear()
            self._wanted.clear()
            for one in seen:
                if one.round_id:
                    where = {"run": one.run, "round": one.round_id[:16]}
                    self._done.labels(**where).set(one.rankings_done)
                    self._wanted.labels(**where).set(one.rankings_wanted)
                if one.action in _ACTIONS:
                    self._actions.labels(action=one.action).inc()
            self._looks.set_to_current_time()
            for run in {one.run for one in seen if one.state == "Running"}:
                self._show_figures(run)

    def _show_figures(self, run: str) -> None:
        for path in (self._runs / run / "metrics").glob("*.jsonl"):
            rows = read_metrics(path)
            if not rows:
                continue
            self._steps.labels(run=run, stage=path.stem).set(rows[-1]["step"])
            for name, value in rows[-1].items():
                if isinstance(value, float | int) and "/" in name:
                    figure = self._figures.labels(run=run, stage=path.stem, figure=name)
                    figure.set(value)
