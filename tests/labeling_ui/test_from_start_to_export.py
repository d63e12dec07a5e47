"""One round in a real browser, from its publication to its export, by a lead and a labeler."""

import io
import zipfile

import pytest
from browser_for_tests import needs_a_browser, rank_by_keys, serious, texts, wait_for_card
from rounds_for_tests import make_candidates

from alignment.data.tables import write_records
from alignment.records import CandidateSet
from labeling_ui import guidelines
from labeling_ui.accounts import invite
from labeling_ui.server import start_server_process
from labeling_ui.store import LabelStore

pytestmark = needs_a_browser

TABS = ("Progress", "Labelers", "Disputes", "Export", "New round", "People", "Guidelines")
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def store(store_path):
    """On the clock of the server."""
    with LabelStore.open(store_path) as opened:
        yield opened


@pytest.fixture
def site(store, store_path, tmp_path):
    folder = tmp_path / "store" / "abc"
    folder.mkdir(parents=True)
    write_records(folder / "candidates.parquet", make_candidates(5, 4), CandidateSet)
    started = start_server_process(store_path, artifacts=tmp_path / "store")
    yield started.url
    started.stop()


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def by_touch(page, start, end):
    """Drags with a finger: real touch events, of which the browser makes pointer events."""
    devices = page.context.new_cdp_session(page)

    def send(kind, x=None, y=None):
        points = [] if x is None else [{"x": x, "y": y, "id": 1}]
        devices.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    start.scroll_into_view_if_needed()
    (x0, y0), (x1, y1) = middle(start), middle(end)
    send("touchStart", x0, y0)
    for part in range(1, 9):
        send("touchMove", x0 + (x1 - x0) * part / 8, y0 + (y1 - y0) * part / 8)
    send("touchEnd")


def middle(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def ranks(page):
    return page.locator(".rank[aria-pressed=true]").all_inner_texts()


def test_a_round_from_its_publication_to_the_export(store, site, visit):
    guidelines.publish(store, "Rank **fairly**.", actor="test")
    lead = visit(site)
    assert serious(lead) == []
    lead.goto(f"{site}join?key={invite(store, 'boss', role='lead', actor='test')}")
    assert serious(lead) == []
    lead.fill("input[name=password]", "correct horse")
    lead.keyboard.press("Enter")
    lead.get_by_text("No round yet.").wait_for()

    open_tab(lead, "New round")
    lead.get_by_label("Name of the round").fill("first")
    lead.get_by_label("Rankings per prompt").fill("1")
    lead.get_by_role("button", name="Publish the round").click()
    lead.get_by_text("Published first: 5 rankings of 5 prompts").wait_for()
    open_tab(lead, "People")
    lead.get_by_label("Name", exact=True).fill("Ada")
    lead.get_by_role("button", name="Make an invitation").click()
    with_link = "[...document.querySelectorAll('input, textarea')].map((e) => e.value)"
    with_link += ".find((value) => value.includes('key='))"
    link = lead.wait_for_function(with_link).json_value()
    assert link.startswith(f"{site}join?key=")

    page = visit(site, has_touch=True)
    page.goto(link)
    page.fill("input[name=password]", "battery staple")
    page.keyboard.press("Enter")
    accept = page.get_by_role("button", name="I have read this and accept it")
    accept.wait_for()
    assert serious(page) == []
    accept.click()
    rank_five_cards(page)
    page.get_by_role("heading", name="All done, thank you").wait_for()
    assert serious(page) == []
    (status,) = store.rounds()
    assert (status.rankings_done, status.rankings_wanted, status.tasks_left_out) == (4, 4, 1)
    tiers = sorted(ranking.tiers for ranking in store.rankings(status.round_id))
    assert tiers == [(0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (3, 2, 1, 0)]

    lead.get_by_role("button", name="Refresh").click()
    lead.get_by_text("4 of 4").wait_for()
    for tab in (*TABS, "Audit log"):
        open_tab(lead, tab)
        lead.wait_for_timeout(200)
        assert serious(lead) == [], tab
    freeze_and_export(lead, store, status.round_id)


def rank_five_cards(page):
    """By keyboard, by mouse, by finger, taken back and changed, skipped."""
    wait_for_card(page, "1 of 5")
    assert serious(page) == []
    page.evaluate("window.presses = 0; addEventListener('keydown', () => (presses += 1), true)")
    rank_by_keys(page, rank_of(0))
    page.keyboard.press("Enter")
    wait_for_card(page, "2 of 5")
    assert 0 < page.evaluate("presses") <= 8

    def drag_all(number, drag):
        shown = texts(page)
        for place in range(4):
            chip = page.locator(f"[data-chip='{shown.index(f'text {number}.{place}')}']")
            drag(chip, page.locator(".drop.last"))
        assert page.locator(".tray").count() == 0
        page.get_by_role("button", name="Submit").click()

    drag_all(1, lambda chip, target: chip.drag_to(target))
    wait_for_card(page, "3 of 5")
    page.set_viewport_size(PHONE)
    assert page.locator(".scroll").evaluate("e => e.scrollWidth <= e.clientWidth")
    assert serious(page) == []
    drag_all(2, lambda chip, target: by_touch(page, chip, target))
    wait_for_card(page, "4 of 5")
    page.set_viewport_size({"width": 1280, "height": 800})

    # The third taken back and turned round; the open one keeps what was said of it.
    page.keyboard.press("2")
    page.get_by_role("button", name="Undo").click()
    page.locator(".state", has_text="version 1").wait_for()
    for index, text in enumerate(texts(page)):
        page.locator(".response").nth(index).focus()
        page.keyboard.press(str(5 - rank_of(2)[text]))
    page.get_by_role("button", name="Submit change").click()
    wait_for_card(page, "4 of 5")
    assert ranks(page) == ["2"]
    page.keyboard.press("s")
    assert serious(page) == []
    page.get_by_role("button", name="I would rather not read this").click()
    wait_for_card(page, "4 of 4")
    rank_by_keys(page, rank_of(4))
    page.keyboard.press("Enter")


def rank_of(number):
    return {f"text {number}.{place}": place + 1 for place in range(4)}


def freeze_and_export(lead, store, round_id):
    """A lead who thinks better of it at first."""
    open_tab(lead, "Audit log")
    freeze = lead.get_by_role("button", name="Freeze for good")
    lead.once("dialog", lambda dialog: dialog.dismiss())
    freeze.click()
    lead.get_by_role("button", name="Pause").click()
    lead.locator(".figures dd", has_text="paused").wait_for()
    assert store.progress(round_id).frozen_digest is None
    lead.once("dialog", lambda dialog: dialog.accept())
    freeze.click()
    lead.locator(".figures dd", has_text="frozen").first.wait_for()
    lead.locator("td >> text=/^freeze$/ >> visible=true").wait_for()
    assert store.progress(round_id).frozen_digest is not None
    open_tab(lead, "Export")
    with lead.expect_download() as waiting:
        lead.get_by_role("button", name="Download").click()
    packed = zipfile.ZipFile(io.BytesIO(waiting.value.path().read_bytes()))
    assert {"annotations.parquet", "comparisons.parquet", "manifest.json"} <= set(packed.namelist())
    lead.set_viewport_size(PHONE)
    assert fits(lead)
    assert serious(lead) == []
