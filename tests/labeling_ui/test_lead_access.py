"""No function of the lead within reach of others: routes, queue, API, component server, handlers.

All of them are listed from the running site, so that a new one without a check fails here.
"""

import json
import re

import gradio
import pytest
from rounds_for_tests import make_candidates, rank_everything
from sqlalchemy import select
from starlette.testclient import TestClient

from labeling_ui import accounts, guidelines, schema
from labeling_ui.gate import ASSETS
from labeling_ui.store import LabelStore
from labeling_ui.web import web_application

pytestmark = pytest.mark.engines

SECRET = "round-of-the-lead"
REFUSED = (303, 401, 404, 405)
OPEN_TO_ANYONE = {
    ("GET", "/"),
    ("GET", "/session"),
    ("GET", "/sign-in"),
    ("POST", "/sign-in"),
    ("POST", "/sign-out"),
    ("GET", "/join"),
    ("POST", "/join"),
    ("GET", "/enter"),
    ("GET", "/healthz"),
    ("GET", "/health"),
    ("GET", "/ranking_page.css"),
}
OPEN_TO_LABELERS = {
    ("GET", "/rank/"),
    ("HEAD", "/rank/"),
    ("GET", "/rank/config"),
    ("POST", "/rank/gradio_api/component_server"),
    ("POST", "/rank/gradio_api/queue/join"),
    ("GET", "/rank/gradio_api/queue/data"),
}
LABELER_FUNCTIONS = {
    *("rank_next", "rank_history", "rank_submit", "rank_skip"),
    *("rank_reopen", "rank_alive", "rank_accept", "rank_draft"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with LabelStore.open(tmp_path_factory.mktemp("access") / "labels.sqlite") as opened:
        accounts.sign_in(opened, "Ada", "", accounts_only=False)
        published = opened.publish_round(make_candidates(), rankings_per_prompt=2, name=SECRET)
        rank_everything(opened, published.round_id, ["Ada", "Bob"])
        yield opened


@pytest.fixture(scope="module")
def application(store):
    return web_application(store, round_id=None, token=None, loopback_only=True)


@pytest.fixture(params=["nobody", "labeler"])
def caller(request, application):
    """A browser that is not a lead's."""
    site = TestClient(
        application,
        base_url="http://127.0.0.1:7861",
        follow_redirects=False,
        raise_server_exceptions=False,
    )
    if request.param == "labeler":
        assert site.post("/sign-in", data={"name": "Ada"}).status_code == 303
    site.who = request.param
    return site


def routes_of(application, before=""):
    """(method, path) of every route there is, those of mounted pages included."""
    for route in application.routes:
        path = before + route.path
        if getattr(route, "methods", None):
            yield from ((method, path) for method in sorted(route.methods))
        else:
            yield from routes_of(route.app, path)


def pages_of(application):
    """(path, Gradio's blocks) of every mounted page."""
    return [
        (route.path, route.app.get_blocks())
        for route in application.routes
        if hasattr(getattr(route, "app", None), "get_blocks")
    ]


def what_a_lead_may_change(store):
    """Rounds, people, guidelines and the audit log."""
    tables = (schema.round_, schema.labeler, schema.guideline, schema.audit)
    with store.read() as connection:
        return [connection.execute(select(table)).all() for table in tables]


def is_asset(path):
    return any(path.removeprefix(page).startswith(ASSETS) for page in ("/lead", "/rank"))


def ask(site, method, path, round_id):
    """Calls a route with all that any of them might ask for."""
    filled = re.sub(r"\{[^}]*\}", "0", path)
    body = {
        "data": [round_id],
        "fn_index": 0,
        "event_data": None,
        "session_hash": "a",
        "component_id": 0,
        "fn_name": "ls",
        "event_id": "0",
    }
    query = {"round": round_id, "session_hash": "a"}
    sent = {"json": body} if method not in ("GET", "HEAD") else {}
    if path in ("/sign-in", "/join"):
        sent = {"data": {"name": "", "key": "x", "password": "x" * 8}}
    return site.request(method, filled, params=query, **sent)


def test_every_route_refuses_whoever_is_no_lead(application, store, caller):
    found = sorted(set(routes_of(application)))
    assert len(found) > 100
    before = what_a_lead_may_change(store)
    round_id = store.rounds()[0].round_id
    for method, path in found:
        if is_asset(path):
            continue
        may = (method, path.rstrip("/") or "/") in OPEN_TO_ANYONE
        if caller.who == "labeler":
            allowed = {(m, p.rstrip("/")) for m, p in OPEN_TO_LABELERS}
            may = may or (method, path.rstrip("/")) in allowed
        if may and path.endswith("/queue/data"):
            continue  # a labeler's own events: a stream without an end
        answer = ask(caller, method, path, round_id)
        assert SECRET not in answer.text, (method, path)
        if not may:
            assert answer.status_code in REFUSED, (method, path, answer.status_code)
            assert caller.who == "nobody" or answer.headers.get("location") in (None, "/rank/")
        if path == "/sign-out":
            caller.post("/sign-in", data={"name": "Ada"} if caller.who == "labeler" else {})
    assert what_a_lead_may_change(store) == before


@pytest.mark.parametrize(
    "way",
    ["/lead//config", "//lead/config", "/%6cead/config", "/LEAD/config", "/rank/../lead/config"],
)
def test_there_is_no_way_around_the_gate(caller, way):
    answer = caller.get(way)
    assert answer.status_code in REFUSED
    assert "component" not in answer.text


def test_every_event_handler_refuses_whoever_is_no_lead(application, store, caller):
    """Of every page: by queue, by API, and called as from its own queue, past all doors."""
    before = what_a_lead_may_change(store)
    round_id = store.rounds()[0].round_id
    cookies = dict(caller.cookies)
    request = type("Request", (), {"cookies": cookies, "headers": {}})()
    wrapped = type("Queued", (), {"request": request})()
    called = 0
    for page, blocks in pages_of(application):
        for number, handler in blocks.fns.items():
            body = {"data": [round_id] * 20, "fn_index": number, "session_hash": "a"}
            ways = [f"{kind}/{handler.api_name}" for kind in ("run", "api", "call", "call/v2")]
            for way in ("queue/join", "run/predict", "api/predict", *ways):
                for root in ("/lead", "/rank"):
                    answer = caller.post(f"{root}/gradio_api/{way}", json=body)
                    refused = (400, 404, 422, 500) if root != page else ()
                    assert answer.status_code in (401, 404, *refused), (root, way, number)
            assert handler.api_visibility == "private", (page, number)
            assert handler.fn is not None or handler.js, (page, number)
            if handler.fn is None:
                continue
            values = [None] * len(handler.inputs)
            for asked in (request, wrapped):
                with pytest.raises(gradio.Error, match="lead's sign-in"):
                    handler.fn(asked, *values)
                called += 1
    assert called > 60
    assert what_a_lead_may_change(store) == before


def test_component_servers_are_the_labelers_and_ask_who_calls(application, store, caller):
    found = set()
    for page, blocks in pages_of(application):
        for number, component in blocks.blocks.items():
            for function in getattr(component, "server_fns", None) or []:
                found.add((page, function.__name__))
                body = {
                    "data": {},
                    "component_id": number,
                    "fn_name": function.__name__,
                    "session_hash": "a",
                }
                for root in ("/lead", "/rank"):
                    answer = caller.post(f"{root}/gradio_api/component_server", json=body)
                    own = caller.who == "labeler" and root == "/rank"
                    assert (answer.status_code == 401) is not own, (root, function.__name__)
    assert found == {("/rank", name) for name in LABELER_FUNCTIONS}
    stranger = type("Request", (), {"cookies": {}, "headers": {}})()
    for _, blocks in pages_of(application):
        for component in blocks.blocks.values():
            for function in getattr(component, "server_fns", None) or []:
                answer = call_with(function, stranger)
                assert answer["code"] == "signed_out", function.__name__


def call_with(function, request):
    """Calls a server function, with data if it takes some."""
    takes = function.__code__.co_argcount
    return function(request) if takes == 1 else function({}, request)


def test_a_lead_who_is_one_no_more_is_out_at_once(application, store):
    site = TestClient(application, base_url="http://127.0.0.1:7861", follow_redirects=False)
    key = accounts.invite(store, "deputy", role="lead", actor="test")
    site.get(f"/enter?key={key}")
    assert site.get("/lead/config").status_code == 200
    accounts.set_role(store, "deputy", "labeler", actor="test")
    assert site.get("/lead/config").status_code == 401
    assert guidelines.current(store) is None
    assert json.loads(site.get("/session").text)["name"] in (None, "deputy")
