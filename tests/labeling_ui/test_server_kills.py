"""24 HTTP clients at a served page that is killed: nothing lost, nothing twice, on either base."""

import pytest

from alignment.config import PanelConfig
from alignment.errors import ConfigError, LabelError
from benchmarks.labeling.kills import run_with_kills
from benchmarks.labeling.served import panel_of, served, simulated_round
from labeling_ui.accounts import sign_in
from labeling_ui.page_client import PageClient
from labeling_ui.server import serve
from labeling_ui.simulated_clients import DriveLimits, drive
from labeling_ui.store import LabelStore


@pytest.mark.engines
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_600_claims_of_24_clients_with_two_kills(kind, tmp_path, request):
    place = tmp_path / "labels.sqlite"
    if kind == "postgresql":
        place = request.getfixturevalue("new_postgresql")()
    outcome = run_with_kills(
        place, tmp_path, prompts=200, overlap=3, clients=24, kills=2, seconds=180
    )
    assert outcome.kills == 2
    assert outcome.retries > 0  # the kills were felt
    assert outcome.looks > 20
    assert outcome.clean, outcome


@pytest.mark.engines
def test_simulated_labelers_rank_at_a_served_page(store_path, tmp_path):
    panel = panel_of(4)
    with LabelStore.open(store_path) as store:
        round_id = simulated_round(store, panel, prompts=6, overlap=2)
        with served(store_path, round_id, tmp_path / "server.log") as page:
            person = PageClient(page.url, "Ada")
            with pytest.raises(LabelError, match="'Ada' cannot sign in"):
                person.sign_in()
            person.close()
            few = drive(page.url, panel, DriveLimits(rankings=3), seed=0)
            assert len(few.saved) == store.progress(round_id).rankings_done == 3
            rest = drive(page.url, panel, DriveLimits(sends=2, seconds=60), seed=0)
        assert len(rest.saved) == 9
        assert store.progress(round_id).complete
        assert {r.labeler[:10] for r in store.rankings(round_id)} == {"simulated-"}


@pytest.mark.parametrize("url", ["http://example.org/", "https://127.0.0.1/", "127.0.0.1:1", ""])
def test_only_this_machine_is_driven(url):
    with pytest.raises(LabelError, match="is not on this machine"):
        drive(url, panel_of(2), DriveLimits(), seed=0)
    with pytest.raises(LabelError, match="is not on this machine"):
        PageClient(url, "simulated-1")


@pytest.mark.parametrize(
    "limit",
    [{"rankings": 0}, {"rankings": 10**7}, {"seconds": 0}, {"seconds": 4000}, {"sends": 6}],
)
def test_limits_that_are_refused(limit):
    with pytest.raises(LabelError, match=r"up to 3600|1 to 1000000"):
        DriveLimits(**limit)


def test_no_more_than_64_clients():
    with pytest.raises(LabelError, match="65 simulated labelers; at most 64"):
        drive("http://127.0.0.1:9/", PanelConfig(labelers=65, spammers=0), DriveLimits(), seed=0)


def test_what_is_not_served_to_simulated_labelers(store_path, store, candidates):
    people = store.publish_round(candidates, rankings_per_prompt=1).round_id
    with pytest.raises(LabelError, match="is for people; serve it without --simulated"):
        serve(store_path, people, simulated=True)
    with pytest.raises(ConfigError, match=r"on this machine alone, not on 0\.0\.0\.0"):
        serve(store_path, people, host="0.0.0.0", simulated=True)
    with pytest.raises(ConfigError, match="name the round"):
        serve(store_path, None, simulated=True)
    with pytest.raises(LabelError, match="belongs to the simulated panel"):
        sign_in(store, "Ada", "", accounts_only=False, panel="simulated x")
