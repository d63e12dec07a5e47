"""The site as seen by an HTTP client, friendly or not."""

import json

import pytest
from rounds_for_tests import make_candidates, rank_everything

from alignment.errors import StoreError
from labeling_ui.sessions import COOKIE
from labeling_ui.store import LabelStore

pytestmark = pytest.mark.engines  # imports Gradio: seconds

TOKEN = "a-token-of-some-length"


@pytest.fixture
def site(store):
    return make_site(store)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory):
    with LabelStore.open(tmp_path_factory.mktemp("shared") / "labels.sqlite") as opened:
        opened.publish_round(make_candidates(), rankings_per_prompt=1)
        yield opened


@pytest.fixture(scope="module")
def shared_application(shared_store):
    return make_site(shared_store).app


@pytest.fixture
def shared_site(shared_application):
    """For tests that leave the store as it is: building a site takes seconds."""
    from starlette.testclient import TestClient

    return TestClient(shared_application, base_url="http://127.0.0.1:7861", follow_redirects=False)


def make_site(store, token=None, loopback_only=True):
    from starlette.testclient import TestClient

    from labeling_ui.web import web_application

    application = web_application(store, round_id=None, token=token, loopback_only=loopback_only)
    return TestClient(application, base_url="http://127.0.0.1:7861", follow_redirects=False)


def sign_in(site, name="Ada", **fields):
    return site.post("/sign-in", data={"name": name, **fields})


def call(site, function, data=None):
    config = site.get("/rank/config").json()
    (component,) = [c["id"] for c in config["components"] if c["type"] == "html"]
    body = {
        "data": data or {},
        "component_id": component,
        "fn_name": function,
        "session_hash": "abc",
    }
    return site.post("/rank/gradio_api/component_server", json=body)


def test_signing_in_ranking_and_signing_out(site, store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    assert site.get("/").headers["location"] == "/sign-in"
    assert sign_in(site).headers["location"] == "/rank/"
    assert site.get("/").headers["location"] == "/rank/"
    card = call(site, "rank_next").json()["data"]["card"]
    sent = {
        "assignment_id": card["assignment_id"],
        "submission_id": "web-submission",
        "tiers": [0, 0, 1],
        "active_seconds": 12,
    }
    first, again = call(site, "rank_submit", sent), call(site, "rank_submit", sent)
    assert first.json() == again.json()
    assert first.json()["ok"] is True
    assert store.progress(round_id).rankings_done == 1
    assert site.get("/session").json() == {"name": "Ada"}
    site.post("/sign-out")
    assert site.get("/session").json() == {"name": None}
    assert call_is_refused(site)


def call_is_refused(site):
    body = {"data": {}, "component_id": 1, "fn_name": "rank_next", "session_hash": "abc"}
    return site.post("/rank/gradio_api/component_server", json=body).status_code == 401


def test_strangers_get_nothing(site, store, candidates):
    store.publish_round(candidates, rankings_per_prompt=1)
    assert call_is_refused(site)
    assert site.get("/rank/config").status_code == 401
    for path in ("/rank/gradio_api/info", "/rank/gradio_api/queue/status"):
        assert site.get(path).status_code == 404
    assert site.get("/rank/").headers["location"] == "/sign-in"
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert site.get(path).status_code == 404
    site.cookies.set(COOKIE, "QWRh.9999999999.0000")
    assert call_is_refused(site)


def test_what_the_browser_gets_says_nothing_about_who_wrote_what(site, store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    sign_in(site)
    payload = call(site, "rank_next").text
    everything = payload + site.get("/rank/").text + site.get("/rank/config").text
    assert "text 0.1" in payload
    for secret in ("secret-model", "p0-r", round_id, "person-1", "simulated"):
        assert secret not in everything
    responses = json.loads(payload)["data"]["card"]["responses"]
    assert {tuple(response) for response in responses} == {("label", "text", "tree", "cut_off")}


def test_another_persons_card_is_out_of_reach(site, store, candidates):
    store.publish_round(candidates, rankings_per_prompt=2)
    sign_in(site, "Ada")
    card = call(site, "rank_next").json()["data"]["card"]
    sign_in(site, "Eve")
    sent = {
        "assignment_id": card["assignment_id"],
        "submission_id": "web-submission",
        "tiers": [0, 1, 2],
        "active_seconds": 0,
    }
    answer = call(site, "rank_submit", sent).json()
    assert (answer["ok"], answer["code"]) == (False, "refused")
    assert "not yours" in answer["message"]
    skip = {"assignment_id": card["assignment_id"], "reason": "other"}
    assert call(site, "rank_skip", skip).json()["code"] == "refused"


@pytest.mark.parametrize(
    "change",
    [
        {"tiers": "012"},
        {"tiers": [0, 1, 10**400]},
        {"tiers": [0] * 1000},
        {"active_seconds": -1},
        {"active_seconds": "1e3"},
        {"assignment_id": None},
        {"assignment_id": "x" * 1000},
        {"labeler": "Eve"},
    ],
)
def test_odd_requests_are_refused_in_words(shared_site, shared_store, change):
    sign_in(shared_site)
    card = call(shared_site, "rank_next").json()["data"]["card"]
    sent = {
        "assignment_id": card["assignment_id"],
        "submission_id": "web-submission",
        "tiers": [0, 1, 2],
        "active_seconds": 0,
    }
    answer = call(shared_site, "rank_submit", sent | change)
    assert answer.status_code == 200
    assert answer.json()["ok"] is False
    assert shared_store.rounds()[0].rankings_done == 0


def test_a_failing_database_is_told_and_not_passed_over(site, store, candidates, monkeypatch):
    store.publish_round(candidates, rankings_per_prompt=1)
    sign_in(site)

    def fail(*args, **kwargs):
        raise StoreError("label database x cannot be used: database or disk is full")

    monkeypatch.setattr(store, "claim", fail)
    answer = call(site, "rank_next").json()
    assert (answer["ok"], answer["code"]) == (False, "unavailable")
    assert "disk is full" in answer["message"]


def test_an_unforeseen_failure_names_a_reference_and_nothing_else(
    site, store, candidates, monkeypatch, caplog
):
    store.publish_round(candidates, rankings_per_prompt=1)
    sign_in(site)
    monkeypatch.setattr(store, "claim", lambda *a, **k: 1 / 0)
    answer = call(site, "rank_next").json()
    assert answer["code"] == "unavailable"
    assert "ZeroDivisionError" not in answer["message"]
    reference = answer["message"].split("reference ")[1].split()[0]
    assert reference in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_requests_from_other_sites_are_refused(shared_site):
    evil = {"origin": "http://evil.example"}
    assert shared_site.post("/sign-in", data={"name": "Eve"}, headers=evil).status_code == 403
    assert shared_site.get("/sign-in", headers={"host": "evil.example"}).status_code == 403


def test_nothing_can_be_uploaded(shared_site):
    sign_in(shared_site)
    files = {"files": ("a.txt", b"x")}
    for path in ("/rank/gradio_api/upload", "/rank/upload", "/rank/gradio_api/upload/"):
        assert shared_site.post(path, files=files).status_code == 404


@pytest.mark.parametrize(
    "path", ["/sign-in", "/rank/", "/healthz", "/nothing", "/ranking_page.css"]
)
def test_every_answer_carries_the_security_headers(shared_site, path):
    headers = shared_site.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


def test_the_cookie_is_out_of_reach_for_scripts_and_other_sites(shared_site):
    cookie = sign_in(shared_site).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "Ada\u202e", "simulated-1", "a" * 9000])
def test_names_that_cannot_sign_in(shared_site, name):
    answer = sign_in(shared_site, name)
    assert answer.status_code == 400
    assert "set-cookie" not in answer.headers
    assert 'role="alert"' in answer.text


def test_the_sign_in_page_escapes_what_it_repeats(shared_site):
    answer = sign_in(shared_site, '"><script>alert(1)</script>' + "x" * 60)
    assert "<script>alert" not in answer.text


def test_a_token_is_needed_where_one_is_set(store, candidates):
    store.publish_round(candidates, rankings_per_prompt=1)
    site = make_site(store, token=TOKEN, loopback_only=False)
    assert sign_in(site).status_code == 400
    assert sign_in(site, token="wrong").status_code == 400
    assert call_is_refused(site)
    location = site.get(f"/?token={TOKEN}").headers["location"]
    assert f'value="{TOKEN}"' in site.get(location).text
    assert sign_in(site, token=TOKEN).status_code == 303
    assert call(site, "rank_next").json()["ok"] is True


def test_states_without_a_card(site, store, candidates):
    sign_in(site)
    assert call(site, "rank_next").json()["data"]["state"] == "no_round"
    store.publish_round(candidates, rankings_per_prompt=1, panel="simulated")
    assert call(site, "rank_next").json()["data"]["state"] == "no_round"
    round_id = store.publish_round(candidates, rankings_per_prompt=2).round_id
    rank_everything(store, round_id, ["Ada"])
    waiting = call(site, "rank_next").json()["data"]
    assert (waiting["state"], waiting["done"]) == ("waiting", 2)
    rank_everything(store, round_id, ["Bob"])
    assert call(site, "rank_next").json()["data"]["state"] == "finished"


def test_a_newer_round_is_taken_up(site, store, clock, candidates):
    first = store.publish_round(candidates, rankings_per_prompt=1).round_id
    clock.now += 1
    rank_everything(store, first, ["Ada"])
    store.publish_round(make_candidates(5), rankings_per_prompt=1)
    sign_in(site)
    assert call(site, "rank_next").json()["data"]["left"] == 5


def test_a_sign_in_outlives_a_restart(store, store_path):
    cookie = sign_in(make_site(store)).cookies[COOKIE]
    with LabelStore.open(store_path) as reopened:
        site = make_site(reopened)
        site.cookies.set(COOKIE, cookie)
        assert site.get("/").headers["location"] == "/rank/"


def test_accounts_only_and_too_many_attempts(store):
    from starlette.testclient import TestClient

    from labeling_ui.accounts import invite
    from labeling_ui.web import web_application

    application = web_application(
        store, round_id=None, token=None, loopback_only=True, accounts_only=True
    )
    site = TestClient(application, base_url="http://127.0.0.1:7861", follow_redirects=False)
    assert sign_in(site, "Ada").status_code == 400
    key = invite(store, "Ada", role="labeler", actor="test")
    assert "Ada" in site.get(f"/join?key={key}").text
    assert site.post("/join", data={"key": key, "password": "short"}).status_code == 400
    joined = site.post("/join", data={"key": key, "password": "correct horse"})
    assert joined.headers["location"] == "/rank/"
    assert site.get(f"/join?key={key}").status_code == 410
    site.cookies.clear()
    assert sign_in(site, "Ada", password="correct horse").status_code == 303
    for _ in range(8):
        assert sign_in(site, "Ada", password="wrong horse").status_code == 400
    refused = sign_in(site, "Ada", password="correct horse")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0


def test_the_printed_link_signs_a_lead_in_once(site, store):
    from labeling_ui.accounts import invite

    key = invite(store, "local lead", role="lead", actor="command line")
    assert site.get(f"/enter?key={key}").headers["location"] == "/lead/"
    assert site.get("/lead/config").status_code == 200
    site.cookies.clear()
    assert site.get(f"/enter?key={key}").status_code == 410
    assert sign_in(site, "local lead").status_code == 400  # the name alone opens nothing


def test_the_next_card_comes_ahead_and_work_can_be_taken_up_again(site, store):
    store.publish_round(make_candidates(4), rankings_per_prompt=1)
    sign_in(site)
    card = call(site, "rank_next").json()["data"]["card"]
    beside = {"beside": card["assignment_id"]}
    ahead = call(site, "rank_next", beside).json()["data"]["card"]
    assert ahead["assignment_id"] != card["assignment_id"]
    assert call(site, "rank_next", beside).json()["data"]["card"] == ahead
    both = {"assignment_ids": [card["assignment_id"], ahead["assignment_id"]]}
    assert call(site, "rank_alive", both).json()["data"] == {"held": 2}
    sent = {
        "assignment_id": card["assignment_id"],
        "submission_id": "web-submission",
        "tiers": [0, 0, 1],
        "gaps": [2],
        "bar": 1,
        "flags": [[2, "hate"]],
        "rationale": "because",
        "active_seconds": 12,
    }
    assert call(site, "rank_submit", sent).json()["ok"] is True
    (finished,) = call(site, "rank_history").json()["data"]["finished"]
    assert finished["revisions"] == 1
    reopened = call(site, "rank_reopen", {"assignment_id": card["assignment_id"]}).json()["data"]
    assert reopened["card"] == card
    assert reopened["judgements"][0]["flags"] == [[2, "hate"]]
    edit = sent | {"submission_id": "web-submission-2", "tiers": [1, 0, 1], "revise": True}
    assert call(site, "rank_submit", edit).json()["ok"] is True
    sign_in(site, "Eve")
    stolen = call(site, "rank_reopen", {"assignment_id": card["assignment_id"]}).json()
    assert stolen["code"] == "refused"
