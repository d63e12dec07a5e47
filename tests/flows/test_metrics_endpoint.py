"""Prometheus metrics as a scraper sees them, and the board that shows them."""

import json
import re
import urllib.request
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows.metrics_endpoint import MetricsEndpoint

BOARD = Path(__file__).parents[2] / "docs" / "grafana" / "alignflow.json"


@pytest.fixture
def endpoint(tmp_path):
    served = MetricsEndpoint(0, tmp_path / "store")
    yield served
    served.stop()


def scrape(endpoint):
    """Value by name and labels, as in the text format; creation times left out."""
    with urllib.request.urlopen(endpoint.url, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {family.name for family in families}, {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def seen(run, state, **told):
    from flows.reconcile import Seen  # with Prefect, which takes a second

    return Seen(flow_run_id=uuid4(), run=run, state=state, **told)


def test_a_look_becomes_states_rankings_actions_and_figures(endpoint, tmp_path):
    metrics = tmp_path / "runs" / "b" / "metrics"
    metrics.mkdir(parents=True)
    rows = [{"step": 1, "ppo/kl_nats": 0.5}, {"step": 2, "ppo/kl_nats": 0.75}]
    (metrics / "ppo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    waits = {"round_id": "r" * 64, "rankings_done": 2, "rankings_wanted": 6}
    endpoint.show([seen("a", "Suspended", action="waiting", **waits), seen("b", "Running")])
    endpoint.show([seen("a", "Suspended", action="resumed", **waits), seen("b", "Running")])
    _, values = scrape(endpoint)
    assert values["alignflow_flow_runs", "Suspended"] == 1
    assert values["alignflow_flow_runs", "Running"] == 1
    assert values["alignflow_flow_runs", "Crashed"] == 0
    assert values["alignflow_rankings_done", "a", "r" * 16] == 2
    assert values["alignflow_rankings_wanted", "a", "r" * 16] == 6
    assert values["alignflow_reconciler_actions_total", "resumed"] == 1
    assert values["alignflow_stage_step", "b", "ppo"] == 2
    assert values["alignflow_stage_figure", "b", "ppo", "ppo/kl_nats"] == 0.75
    endpoint.show([])
    _, values = scrape(endpoint)
    assert values["alignflow_flow_runs", "Suspended"] == 0
    assert not any(name == "alignflow_rankings_done" for name, *_ in values)


def test_board_asks_only_for_what_is_served(endpoint):
    names, _ = scrape(endpoint)
    asked = set(re.findall(r"alignflow_\w+", json.dumps(json.loads(BOARD.read_text())["panels"])))
    assert len(asked) >= 6
    assert {name.removesuffix("_total") for name in asked} <= names
