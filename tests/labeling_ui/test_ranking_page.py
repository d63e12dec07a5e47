"""The ranking page in a real browser: ranked by keyboard and by pointer, killed and restarted."""

import shutil

import pytest
from rounds_for_tests import make_candidates

from alignment.records import CandidateSet, Message, Prompt, Response
from labeling_ui.server import start_server_process

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = [
    "<img src=x onerror='window.__xss=1'>",
    "<script>window.__xss=1</script>",
    "</p><svg onload=window.__xss=1>",
    "<img src='http://pixel.example/p.gif'><form action='http://evil.example'><input></form>",
    "[link](javascript:window.__xss=1) ${window.__xss=1} {{window.__xss=1}}",
    "\u202ereversed\u0000",
]

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def server(store, store_path):
    started = start_server_process(store_path)
    yield started
    started.stop()


@pytest.fixture
def visit(browser):
    """Opens pages that may reach nothing but their server; afterwards all is checked."""
    contexts, foreign, errors, bodies = [], [], [], []

    def open_page(url, **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)

        def guard(route):
            if route.request.url.startswith(url):
                route.continue_()
            else:
                foreign.append(route.request.url)
                route.abort()

        context.route("**/*", guard)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("response", lambda response: bodies.append(response))
        page.goto(url)
        return page

    open_page.bodies = bodies
    yield open_page
    assert foreign == []
    assert errors == []
    for context in contexts:
        context.close()


def sign_in(page, name):
    page.fill("input[name=name]", name)
    page.keyboard.press("Enter")


def texts(page):
    return page.locator(".response .text").all_inner_texts()


def wait_for_card(page, progress):
    page.locator(".progress", has_text=progress).wait_for()


def rank_by_keys(page, rank_of):
    """Gives each response, in display order, the rank of its text."""
    shown = texts(page)
    for text in shown:
        page.keyboard.press(str(rank_of[text]))
    return len(shown)


def test_a_round_from_sign_in_to_freeze(store, server, visit):
    round_id = store.publish_round(make_candidates(3, 4), rankings_per_prompt=1).round_id
    page = visit(server.url)
    sign_in(page, "Ada Lovelace")
    wait_for_card(page, "1 of 3")

    # Keyboard alone, 5 keys: 3 best, 1 and 2 tied after it, 0 last; ranks with a gap.
    rank_by_keys(page, {"text 0.0": 4, "text 0.1": 2, "text 0.2": 2, "text 0.3": 1})
    assert page.locator(".state").inner_text() == "Ready. Not submitted yet"
    page.keyboard.press("Enter")
    wait_for_card(page, "2 of 3")

    # Reloaded in mid-card: same order, and what was ranked is still ranked.
    before = texts(page)
    page.keyboard.press("3")
    page.reload()
    wait_for_card(page, "2 of 3")
    assert texts(page) == before
    assert page.locator(".rank[aria-pressed=true]").all_inner_texts() == ["3"]
    rank_of = {"text 1.0": 1, "text 1.1": 2, "text 1.2": 3, "text 1.3": 4}
    page.keyboard.press("ArrowLeft")
    rank_by_keys_from_first(page, before, rank_of)
    page.keyboard.press("Enter")
    wait_for_card(page, "3 of 3")

    # By pointer alone.
    submit = page.locator("button", has_text="Submit")
    for index, text in enumerate(texts(page)):
        assert submit.is_disabled()
        rank = "1" if text == "text 2.1" else "2"
        page.locator(".response").nth(index).get_by_role("button", name=f"Rank {rank} ").click()
    submit.click()
    page.get_by_role("heading", name="All done, thank you").wait_for()

    assert [r.tiers for r in store.rankings(round_id)] == [(2, 1, 1, 0), (0, 1, 2, 3), (1, 0, 1, 1)]
    assert {r.labeler for r in store.rankings(round_id)} == {"person-1"}
    assert len(store.freeze(round_id)) == 64


def rank_by_keys_from_first(page, shown, rank_of):
    """As `rank_by_keys` when the first response has a rank already: the focus must not jump."""
    for index, text in enumerate(shown):
        page.locator(".response").nth(index).focus()
        page.keyboard.press(str(rank_of[text]))


def test_hostile_text_is_only_text_and_the_page_knows_no_origin(store, server, visit):
    responses = tuple(
        Response(id=f"secret-id-{k}", text=text, origin="secret-model")
        for k, text in enumerate(HOSTILE)
    )
    prompt = Prompt(id="p", messages=(Message(role="user", content=HOSTILE[0]),))
    round_id = store.publish_round(
        [CandidateSet(prompt=prompt, responses=responses)], rankings_per_prompt=1
    ).round_id
    page = visit(server.url)
    sign_in(page, "Ada")
    wait_for_card(page, "1 of 1")
    expected = [*HOSTILE[:-1], "[U+202E]reversed[U+0000]"]
    assert sorted(texts(page)) == sorted(expected)
    page.wait_for_timeout(300)
    assert page.evaluate("window.__xss") is None
    for tag in ("img", "script", "svg", "form[action*=evil]", "input"):
        assert page.locator(f".page {tag}").count() == 0
    everything = "".join(
        body.text()
        for body in visit.bodies
        if "component_server" in body.url or body.url.endswith(("/config", "/rank/"))
    )
    assert "reversed" in everything
    for secret in ("secret-id", "secret-model", round_id):
        assert secret not in everything


def test_skipping_and_a_phone(store, server, visit):
    round_id = store.publish_round(make_candidates(2, 9), rankings_per_prompt=2).round_id
    page = visit(server.url, viewport={"width": 390, "height": 844}, has_touch=True)
    sign_in(page, "Ada")
    wait_for_card(page, "1 of 2")
    assert page.locator(".scroll").evaluate("e => e.scrollWidth <= e.clientWidth")
    sizes = page.locator("button:visible").evaluate_all(
        "buttons => buttons.map((b) => b.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 44
    page.get_by_role("button", name="Skip").tap()
    page.get_by_role("button", name="I lack the knowledge to judge this").tap()
    wait_for_card(page, "1 of 1")
    for index in range(9):
        page.locator(".response").nth(index).get_by_role("button", name="Rank 1 ").tap()
    page.get_by_role("button", name="Submit").tap()
    page.get_by_role("heading", name="Nothing left for you right now").wait_for()
    assert store.progress(round_id).rankings_done == 1


def test_a_killed_server_loses_nothing(store, store_path, visit):
    """Submitted while the server is dead: said so, kept, and saved by itself afterwards."""
    round_id = store.publish_round(make_candidates(2), rankings_per_prompt=1).round_id
    server = start_server_process(store_path)
    port = int(server.url.rstrip("/").rpartition(":")[2])
    try:
        page = visit(server.url)
        sign_in(page, "Ada")
        wait_for_card(page, "1 of 2")
        shown = texts(page)
        server.process.kill()
        server.process.wait()
        for rank in "123":
            page.keyboard.press(rank)
        page.keyboard.press("Enter")
        page.locator(".state", has_text="Not saved").wait_for()
        assert store.progress(round_id).rankings_done == 0
        server = start_server_process(store_path, port=port)
        wait_for_card(page, "2 of 2")  # without a reload, a click or a new sign-in
    finally:
        server.stop()
    (ranking,) = store.rankings(round_id)
    tier_of = {text: tier for tier, text in enumerate(shown)}
    assert ranking.tiers == tuple(tier_of[f"text 0.{k}"] for k in range(3))


def test_a_round_frozen_under_an_open_card_is_told(store, server, visit):
    round_id = store.publish_round(make_candidates(2), rankings_per_prompt=1).round_id
    page = visit(server.url)
    sign_in(page, "Ada")
    wait_for_card(page, "1 of 2")
    card = store.claim(round_id, "Bob")
    store.submit(card.assignment_id, "Bob", submission_id="bob-submission", tiers=[0, 1, 2])
    store.freeze(round_id, allow_incomplete=True)
    for key in ("1", "2", "3", "Enter"):
        page.keyboard.press(key)
    page.locator(".state", has_text="Not saved: round").wait_for()
    assert "closed" in page.locator(".state").inner_text()
    page.reload()
    page.get_by_role("heading", name="All done").wait_for()


def test_a_lost_sign_in_leads_back_to_signing_in(store, server, visit):
    store.publish_round(make_candidates(1), rankings_per_prompt=1)
    page = visit(server.url)
    sign_in(page, "Ada")
    wait_for_card(page, "1 of 1")
    page.context.clear_cookies()
    for key in ("1", "2", "3", "Enter"):
        page.keyboard.press(key)
    page.wait_for_url("**/sign-in")
    sign_in(page, "Ada")  # the ranking comes back, and is sent by itself
    page.get_by_role("heading", name="All done, thank you").wait_for()
    assert store.rounds()[0].rankings_done == 1
