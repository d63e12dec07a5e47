"""A person who ranks: Chromium, driven by keyboard alone."""

import shutil

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def rank_everything(url, screenshots, cards=6, after_first=lambda: None):
    """Ranks until the page says that all is done; `after_first` is called after one card."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.fill("input[name=name]", "Ada")
        page.keyboard.press("Enter")
        page.locator(".progress", has_text=f"1 of {cards}").wait_for()
        page.screenshot(path=screenshots / "first_card.png")
        for number in range(1, cards + 1):
            page.locator(".progress", has_text=f"{number} of {cards}").wait_for()
            if number == 2:
                after_first()
            for rank in range(page.locator(".response").count()):
                page.keyboard.press(str(rank + 1))
            page.keyboard.press("Enter")
        page.get_by_role("heading", name="All done, thank you").wait_for()
        page.screenshot(path=screenshots / "all_done.png")
        browser.close()
