"""The ranking page in a real browser: ranked by keyboard and by pointer, killed and restarted."""

import re

from browser_for_tests import (
    needs_a_browser,
    rank_by_keys,
    sign_in,
    texts,
    wait_for_card,
)
from rounds_for_tests import make_candidates

from labeling_ui import guidelines
from labeling_ui.judgement import Judgement
from labeling_ui.opinions import read_opinions
from labeling_ui.server import start_server_process

pytestmark = needs_a_browser


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


def test_a_server_that_ends_with_its_round_has_said_goodbye(store, server, visit):
    """A run ends its page as soon as the last ranking is there, before the page asks again."""
    store.publish_round(make_candidates(1), rankings_per_prompt=1)
    page = visit(server.url)
    sign_in(page, "Ada")
    wait_for_card(page, "1 of 1")

    def end_the_server(route):
        if "rank_next" in (route.request.post_data or ""):
            server.process.kill()
            server.process.wait()
        route.continue_()

    page.route(re.compile("component_server"), end_the_server)
    for rank in "123":
        page.keyboard.press(rank)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="All done, thank you").wait_for()
    assert "You ranked 1." in page.locator(".notice").inner_text()
    assert server.process.poll() is not None


def test_work_on_a_card_of_a_round_frozen_meanwhile_is_kept_aside(store, server, visit):
    round_id = store.publish_round(make_candidates(4), rankings_per_prompt=1).round_id
    page = visit(server.url)
    sign_in(page, "Ada")
    wait_for_card(page, "1 of 4")
    card = store.claim(round_id, "Bob")  # Ada holds her card and the one after it
    store.submit(card.assignment_id, "Bob", submission_id="bob-submission", tiers=[0, 1, 2])
    store.freeze(round_id, allow_incomplete=True)
    for key in ("1", "2", "3", "Enter"):
        page.keyboard.press(key)
    page.locator(".state", has_text="kept aside").wait_for()
    page.reload()
    page.get_by_role("heading", name="All done").wait_for()
    assert len(store.rankings(round_id)) == 1


def test_grades_marks_dragging_and_a_change_of_mind(store, server, visit):
    """All that can be said about a card, and a submission that is taken up again."""
    round_id = store.publish_round(make_candidates(3, 3), rankings_per_prompt=1).round_id
    page = visit(server.url)
    sign_in(page, "Ada")
    wait_for_card(page, "1 of 3")
    first = texts(page)
    for key in ("1", "2", "3"):
        page.keyboard.press(key)
    page.keyboard.press("x")  # the third is unacceptable
    page.keyboard.press("u")
    page.get_by_role("button", name="privacy").click()
    page.locator("[data-chip='1']").drag_to(page.locator("[data-drop='before 0']"))
    lane = page.locator(".lane")
    page.get_by_role("button", name="How much better is B than A: not graded").click()
    page.get_by_role("button", name="How much better is B than A: slightly").click()
    page.get_by_label("Why?").fill("B is short")
    assert "unacceptable from here" in lane.inner_text()
    page.locator(".response").nth(0).focus()
    page.keyboard.press("Enter")
    wait_for_card(page, "2 of 3")
    (opinion,) = read_opinions(store, round_id)
    assert opinion.judgement == Judgement(
        tiers=(1, 0, 2), gaps=(2, None), bar=2, flags=((2, "privacy"),), rationale="B is short"
    )

    # Undo: the same card with all of it; a tie now. The open card waits meanwhile.
    second = texts(page)
    page.keyboard.press("1")
    page.keyboard.press("Control+z")
    page.locator(".state", has_text="version 1").wait_for()
    assert texts(page) == first
    page.locator(".response").nth(1).focus()
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("=")
    page.keyboard.press("Enter")
    wait_for_card(page, "2 of 3")
    assert texts(page) == second
    assert page.locator(".rank[aria-pressed=true]").all_inner_texts() == ["1"]
    (opinion,) = read_opinions(store, round_id)
    assert (opinion.revision, opinion.judgement.tiers) == (2, (0, 0, 1))
    assert opinion.judgement.flags == ((2, "privacy"),)

    # Skipped and taken back, by the list of one's work.
    page.keyboard.press("s")
    page.get_by_role("button", name="Another reason").click()
    wait_for_card(page, "2 of 2")
    page.get_by_role("button", name="My work").click()
    page.get_by_role("button", name="skipped").click()
    page.locator(".response", has_text=second[0]).wait_for()
    assert texts(page) == second
    for key in ("1", "2", "3", "Enter"):
        page.keyboard.press(key)
    page.locator(".state", has_text="Saved").wait_for()
    assert store.progress(round_id).rankings_done == 2


def test_two_responses_have_a_scale_and_the_page_speaks_chinese(store, server, visit):
    round_id = store.publish_round(make_candidates(1, 2), rankings_per_prompt=1).round_id
    guidelines.publish(store, "Be *fair*.", "请**公正**。", actor="test")
    page = visit(server.url, locale="zh-CN")
    sign_in(page, "Ada")
    page.get_by_role("button", name="我已阅读并接受").click()
    page.locator(".response").first.wait_for()
    page.get_by_role("button", name="A 好得多").click()
    page.get_by_role("button", name="提交").click()
    page.get_by_role("heading", name="全部完成").wait_for()
    (opinion,) = read_opinions(store, round_id)
    assert (opinion.judgement.tiers, opinion.judgement.gaps) == ((0, 1), (3,))
    assert opinion.guideline_version == 1


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
