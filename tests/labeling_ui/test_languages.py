"""The pages in Chinese, and texts that run from right to left or without spaces, in a browser."""

import re

from browser_for_tests import needs_a_browser, sign_in, texts, wait_for_card
from rounds_for_tests import make_candidates, rank_everything

from alignment.records import CandidateSet, Message, Prompt, Response
from labeling_ui import lead
from labeling_ui.accounts import invite
from labeling_ui.judgement import Effort, Judgement, RoundSettings
from labeling_ui.server import start_server_process
from labeling_ui.store import LabelStore

pytestmark = needs_a_browser

ARABIC = "كيف أشرح لطفل لماذا يطفو الجليد (ice) على الماء؟"
JAPANESE = "東京から京都まで新幹線で行くとき、富士山が見えるのはどちら側の席ですか。" * 4
LONG_WORD = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 2

# Where the words of a text are, and which way they run.
LINES = """
    (element) => {
      const range = document.createRange();
      range.selectNodeContents(element);
      const [words, box] = [range.getBoundingClientRect(), element.getBoundingClientRect()];
      return {
        direction: getComputedStyle(element).direction,
        left: words.left - box.left,
        right: box.right - words.right,
        lang: element.lang,
      };
    }
"""


def card_in(language, text):
    prompt = Prompt(id=f"p-{language}", messages=(Message(role="user", content=text),))
    prompt = Prompt(id=prompt.id, messages=prompt.messages, language=language)
    answers = (f"1 {text}", f"{text[:20]} 2", LONG_WORD)
    return CandidateSet(
        prompt=prompt,
        responses=tuple(Response(id=f"{language}-{k}", text=a) for k, a in enumerate(answers)),
    )


def test_each_text_runs_its_own_way(store, server, visit):
    store.publish_round([card_in("ar", ARABIC), card_in("ja", JAPANESE)], rankings_per_prompt=1)
    page = visit(server.url, viewport={"width": 390, "height": 844})
    sign_in(page, "ليلى")
    for number, (language, direction) in enumerate((("ar", "rtl"), ("ja", "ltr"))):
        wait_for_card(page, f"{number + 1} of 2")
        prompt = page.locator(".prompt .text").evaluate(LINES)
        assert (prompt["direction"], prompt["lang"]) == (direction, language)
        assert prompt["right" if direction == "rtl" else "left"] < 2
        for index, text in enumerate(texts(page)):
            own = "rtl" if text.startswith(ARABIC[:5]) or ARABIC in text else "ltr"
            line = page.locator(".response .text").nth(index).evaluate(LINES)
            assert line["direction"] == own, text
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.locator(".scroll").evaluate("e => e.scrollWidth <= e.clientWidth")
        page.set_viewport_size({"width": 390, "height": 844})
        for key in ("1", "2", "3", "Enter"):
            page.keyboard.press(key)
    page.get_by_role("heading", name="All done").wait_for()
    assert page.locator(".who bdi").text_content() == "ليلى"


TABS = ("进度", "标注者", "分歧", "导出", "新轮次", "人员", "指南", "操作日志")
NOT_TRANSLATED = {
    *("Krippendorff", "Parquet", "SHA", "Markdown", "Ada", "Bob", "Cem", "boss", "one", "person"),
    *("text", "Question", "number", "min", "seed", "candidates", "CSV", "UTC", "FOLDER"),
}


def english_words(shown):
    """Words of three letters and more, digests and what stays English left out."""
    words = set(re.findall(r"[A-Za-z]{3,}", shown)) - NOT_TRANSLATED
    return {word for word in words if not re.fullmatch("[a-f]+", word)}


def test_the_leads_page_in_chinese(store_path, tmp_path, visit):
    """Every word but names, texts of the round and what the log says in its own terms."""
    with LabelStore.open(store_path) as store:
        settings = RoundSettings(criteria=("one",))
        round_id = lead.publish_round(
            store,
            make_candidates(6),
            rankings_per_prompt=3,
            name="one",
            settings=settings,
            checks=(),
            actor="boss",
        ).round_id
        rank_everything(store, round_id, ["Ada", "Bob"])
        first = store.claim(round_id, "Cem")
        said = Judgement(tiers=(2, 1, 0), flags=((0, "self_harm"),))
        sent = {"submission_id": "submission", "judgement": said, "effort": Effort()}
        store.submit(first.assignment_id, "Cem", **sent)
        second = store.claim(round_id, "Cem")
        store.skip(second.assignment_id, "Cem", reason="language")
        key = invite(store, "boss", role="lead", actor="test")
    server = start_server_process(store_path, artifacts=tmp_path)
    try:
        page = visit(server.url, locale="zh-CN")
        page.goto(f"{server.url}join?key={key}")
        page.fill("input[name=password]", "correct horse")
        page.keyboard.press("Enter")
        page.locator(".figures").wait_for()
        for tab in TABS:
            page.get_by_role("tab", name=tab, exact=True).click()
            page.wait_for_timeout(300)
            if tab == "操作日志":
                page.locator(".wide >> visible=true").wait_for()
                break  # actions are logged in English
            for _ in range(40):  # Gradio shows the name of a message until it has its text
                english = english_words(
                    page.locator("body").inner_text().replace(str(tmp_path), "")
                )
                if not english:
                    break
                page.wait_for_timeout(250)
            assert (tab, english) == (tab, set())
    finally:
        server.stop()


def test_what_was_said_goes_on_in_another_browser(store, server, visit):
    """A draft is on the server; after the submission it is gone."""
    store.publish_round(make_candidates(2), rankings_per_prompt=1)
    page = visit(server.url)
    sign_in(page, "Ada")
    wait_for_card(page, "1 of 2")
    before = texts(page)
    with page.expect_response(lambda r: "rank_draft" in (r.request.post_data or "")):
        for key in ("2", "1", "x"):
            page.keyboard.press(key)
        page.get_by_label("Why?").fill("half a thought")
    other = visit(server.url)
    sign_in(other, "Ada")
    wait_for_card(other, "1 of 2")
    assert texts(other) == before
    assert other.locator(".rank[aria-pressed=true]").all_inner_texts() == ["2", "1"]
    assert other.get_by_label("Why?").input_value() == "half a thought"
    assert other.locator(".reject[aria-pressed=true]").count() == 1
    other.locator(".response").nth(2).focus()
    other.keyboard.press("3")
    other.keyboard.press("Enter")
    wait_for_card(other, "2 of 2")
    page.reload()
    wait_for_card(page, "2 of 2")
    assert page.locator(".rank[aria-pressed=true]").count() == 0
