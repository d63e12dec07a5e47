"""Over a hundred texts that attack the page, in a real browser: nothing runs, nothing is fetched.

The content security policy is switched off in the browser here: what is shown must be harmless
by itself.
"""

from browser_for_tests import needs_a_browser, sign_in, texts, wait_for_card
from hostile_texts import EVIL, TEXTS

from alignment.records import CandidateSet, Message, Prompt, Response
from labeling_ui import guidelines, lead
from labeling_ui.accounts import invite
from labeling_ui.judgement import RoundSettings
from labeling_ui.store import LabelStore
from labeling_ui.visible_text import visible_text

pytestmark = needs_a_browser

K = 9
SHORT = [text for text in TEXTS if len(text) <= 40 and text.isprintable()]

# All elements of the page, those in shadow roots included, and what is wrong with them.
INSPECT = """
    () => {
      const found = [];
      const walk = (at) => {
        for (const element of at.querySelectorAll("*")) {
          found.push(element);
          if (element.shadowRoot) walk(element.shadowRoot);
        }
      };
      walk(document);
      const texts = found.flatMap((each) =>
        each.matches(".text, bdi") ? [each, ...each.querySelectorAll("*")] : []);
      const kept = new Set(["class", "dir", "lang", "start", "tabindex", "display", "xmlns"]);
      for (const each of texts) {
        for (const kind of ["pointerdown", "mouseover", "focus", "click", "animationstart"])
          each.dispatchEvent(new Event(kind, { bubbles: false }));
      }
      return {
        inside: [...new Set(texts.map((each) => each.localName))],
        attributes: texts.flatMap((each) =>
          [...each.attributes].map((a) => a.name).filter((name) => !kept.has(name))),
        forms: found.filter((each) => each.localName === "form").map((each) => each.action),
        frames: found.filter((each) =>
          ["iframe", "object", "embed", "applet"].includes(each.localName)).length,
        outside: found.filter((each) =>
          /pixel\\.example|evil\\.example/.test(`${each.src} ${each.href} ${each.action}`)).length,
        ran: window.ran ?? null,
      };
    }
"""
ELEMENTS = {
    *("div", "bdi", "p", "em", "strong", "s", "ul", "ol", "li", "blockquote", "table", "thead"),
    *("tbody", "tr", "th", "td", "pre", "code", "hr", "span"),
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "msup", "msub", "mstyle"),
}


def hostile_candidates():
    """Cards on which every text is a response and a prompt, in turns of each role."""
    sets = []
    for start in range(0, len(TEXTS), K):
        chosen = [*TEXTS, *TEXTS][start : start + K]
        turns = [("system", chosen[3]), ("user", chosen[4]), ("assistant", chosen[5])]
        turns += [("user", chosen[start % K])]
        sets.append(
            CandidateSet(
                prompt=Prompt(
                    id=f"secret-prompt-{start}",
                    messages=tuple(Message(role=role, content=text) for role, text in turns),
                ),
                responses=tuple(
                    Response(id=f"secret-id-{start}-{k}", text=text, origin=f"secret-model-{k}")
                    for k, text in enumerate(chosen)
                ),
            )
        )
    return sets


def check_harmless(page, forms):
    """`forms`: where those of the page itself go."""
    seen = page.evaluate(INSPECT)
    assert seen["ran"] is None
    assert seen["attributes"] == []
    assert set(seen["inside"]) <= ELEMENTS
    assert set(seen["forms"]) <= set(forms)
    assert (seen["frames"], seen["outside"]) == (0, 0)


def test_a_labeler_sees_texts_and_nothing_more(store, server, visit):
    assert len(TEXTS) >= 100
    cards = hostile_candidates()
    settings = RoundSettings(criteria=tuple(SHORT[:3]))
    store.publish_round(cards, rankings_per_prompt=1, name=TEXTS[0], settings=settings)
    guidelines.publish(store, "\n\n".join(TEXTS), actor="test")
    page = visit(server.url, bypass_csp=True)
    sign_in(page, SHORT[0])
    page.get_by_role("button", name="I have read this and accept it").wait_for()
    sign_out = [f"{server.url}sign-out"]
    check_harmless(page, sign_out)
    page.get_by_role("button", name="I have read this and accept it").click()
    for number, card in enumerate(cards):
        wait_for_card(page, f"{number + 1} of {len(cards)}")
        check_harmless(page, sign_out)
        page.keyboard.press("v")
        page.locator(".raw").first.wait_for()
        raw = [text.replace("[U+00A0]", "\u00a0") for text in texts(page)]
        assert sorted(squeezed(text) for text in raw) == sorted(
            squeezed(visible_text(response.text)) for response in card.responses
        )
        check_harmless(page, sign_out)
        page.keyboard.press("v")
        for key in (*"123456789", "Enter"):
            page.keyboard.press(key)
    page.get_by_role("heading", name="All done").wait_for()
    page.get_by_role("button", name="My work").click()
    page.locator("dialog button").first.wait_for()
    check_harmless(page, sign_out)
    page.wait_for_timeout(500)
    assert page.evaluate("window.ran") is None
    received = "".join(
        body.text()
        for body in visit.bodies
        if body.url.startswith(f"{server.url}rank/")
        and body.request.resource_type in ("document", "script", "stylesheet", "fetch", "xhr")
    )
    assert EVIL in received  # so the texts were among it
    kept = page.evaluate("JSON.stringify(localStorage)")
    for secret in ("secret-id", "secret-model", "secret-prompt"):
        assert secret not in received + kept


def squeezed(text):
    """Without what browsers collapse at the ends of a block, and code points of raw view."""
    marks = {f"[U+{ord(c):04X}]": c for c in "\u00a0\u034f\u200c\u200d\u3000\ufe0f"}
    for mark, character in marks.items():
        text = text.replace(mark, character)
    return "".join(text.split())


def test_a_lead_sees_texts_and_nothing_more(store, store_path, server, visit):
    cards = hostile_candidates()
    with LabelStore.open(store_path) as by_the_clock:
        key = invite(by_the_clock, SHORT[0], role="lead", actor=SHORT[1])
    round_id = lead.publish_round(
        store,
        cards,
        rankings_per_prompt=2,
        name=TEXTS[0][:80],
        settings=RoundSettings(),
        checks=(),
        actor=SHORT[2],
    ).round_id
    for name, step in ((SHORT[3], 1), (SHORT[4], -1)):
        while (card := store.claim(round_id, name)) is not None:
            order = sorted(range(K), key=lambda k: step * TEXTS.index(card.responses[k].text))
            tiers = [order.index(k) for k in range(K)]
            store.submit(
                card.assignment_id, name, submission_id=f"id-{card.assignment_id}", tiers=tiers
            )
    page = visit(server.url, bypass_csp=True)
    page.goto(f"{server.url}enter?key={key}")
    page.locator(".figures").wait_for()
    shown = ""
    for tab, waited in (
        ("Labelers", ".labelers"),
        ("Disputes", ".disputes"),
        ("Export", "form.export"),
        ("New round", "text=Publish the round"),
        ("People", ".wide"),
        ("Guidelines", "textarea"),
        ("Audit log", ".wide"),
    ):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.locator(f"{waited} >> visible=true").first.wait_for()
        page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        check_harmless(page, [f"{server.url}sign-out", f"{server.url}export"])
        shown += squeezed(page.locator("body").text_content())
    for text in (*TEXTS, *SHORT[:5]):
        assert squeezed(visible_text(text)) in shown
    assert "secret-model" not in page.content()
