"""The commands of README and guides are accepted by the command line, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from flows.cli import command_parser

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in ROOT.glob("docs/*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removesuffix(" &")
    for page in PAGES
    for line in re.findall(
        r"^alignflow .*$", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE
    )
]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_accepted(command: str) -> None:
    command_parser().parse_args(shlex.split(command, comments=True)[1:])


def test_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 200
