"""The labelers' and the lead's page in a real browser that can reach nothing but its server."""

import shutil

import pytest

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
needs_a_browser = [
    pytest.mark.engines,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]


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


def serious(page):
    """Serious and critical findings of axe-core on the page."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        (v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")
    ]
