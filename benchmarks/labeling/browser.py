"""What a person at the page waits for: from the key that submits until the next card is painted."""

import shutil
from pathlib import Path

from benchmarks.labeling.latency import Spread, spread
from benchmarks.labeling.served import panel_of, served, simulated_round
from labeling_ui.simulated_panel import labeler_names
from labeling_ui.store import LabelStore

CHROMIUM = shutil.which("chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
READING_MS = 400
"""Between a card and its ranks: time in which the page fetches the card after it."""
WARM_UP = 5

# Every frame looks whether other texts are shown than when Enter was pressed.
STOP_WATCH = """() => {
  window.waits = [];
  let begun = null, before = "";
  const shown = () =>
    [...document.querySelectorAll(".response .text")].map((node) => node.textContent).join("|");
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { begun = performance.now(); before = shown(); }
  }, true);
  const look = () => {
    const now = begun === null ? "" : shown();
    if (now && now !== before) { window.waits.push(performance.now() - begun); begun = null; }
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""


def next_card_shown(place: Path | str, folder: Path, *, cards: int) -> Spread:
    """One labeler in headless Chromium, by keyboard, in a round of four responses a card."""
    from playwright.sync_api import sync_playwright

    panel = panel_of(1)
    with LabelStore.open(place) as store:
        round_id = simulated_round(store, panel, prompts=cards + WARM_UP + 5, overlap=1)
    with (
        served(place, round_id, folder / "server.log") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page()
        page.goto(server.url)
        page.fill("input[name=name]", labeler_names(panel)[0])
        page.keyboard.press("Enter")
        page.locator(".response").first.wait_for()
        page.evaluate(STOP_WATCH)
        for number in range(cards + WARM_UP):
            page.wait_for_timeout(READING_MS)
            for rank in "1234":
                page.keyboard.press(rank)
            page.keyboard.press("Enter")
            page.wait_for_function(f"window.waits.length > {number}")
        waits = page.evaluate("window.waits")
        browser.close()
    return spread([wait / 1000 for wait in waits[WARM_UP:]])
