"""HTML that escapes by itself: text becomes markup only on purpose.

Everything placed on the page goes through `tag`, which escapes every plain string, its
attributes too. Only `Html` passes as it is, and only this module and `charts` make it.
"""

import re
import unicodedata
from collections.abc import Iterable
from html import escape

_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Cn"}
_HARMLESS = {"\n", "\t", "\u200d"}  # the joiner holds emoji together
_LONGEST_TEXT = 4000


class Html(str):
    """Markup that is safe to put on the page as it is."""

    __slots__ = ()


Content = str | None
"""Plain text (escaped), `Html` (not escaped) or None (nothing)."""


def tag(element: str, /, *content: Content, **attributes: str | float | bool | None) -> Html:
    """One element. `class_` is the attribute class, `data_label` data-label; True is a bare one."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inside = join(content)
    void = element == "meta"
    return Html(f"<{element}{written}>" if void else f"<{element}{written}>{inside}</{element}>")


def join(parts: Iterable[Content], separator: str = "") -> Html:
    """Parts one after the other."""
    return Html(
        escape(separator).join(
            part if isinstance(part, Html) else escape(part) for part in parts if part is not None
        )
    )


def model_text(text: str, *, language: str = "") -> Html:
    """A text that a model (or anyone) wrote: isolated, and with what is invisible made visible.

    Direction overrides, zero-width characters and control characters would let a text disguise
    itself or reorder its surroundings; they are shown by their code point.
    """
    cut = text[:_LONGEST_TEXT]
    pieces: list[Content] = []
    for plain, odd in _split_odd(cut):
        pieces.append(plain)
        if odd:
            pieces.append(tag("span", f"U+{ord(odd):04X}", class_="codepoint"))
    if len(text) > len(cut):
        note = f"… {len(text) - len(cut):,} more characters"
        pieces.append(tag("span", note, class_="codepoint"))
    if not text.strip():
        pieces.append(tag("span", "empty", class_="codepoint"))
    return tag("div", *pieces, class_="text", dir="auto", lang=language or None)


def _split_odd(text: str) -> Iterable[tuple[str, str]]:
    """The text as runs of plain characters, each with the odd character after it if any."""
    start = 0
    for place, character in enumerate(text):
        if character not in _HARMLESS and unicodedata.category(character) in _INVISIBLE:
            yield text[start:place], character
            start = place + 1
    yield text[start:], ""


def section(identifier: str, title: str, how_to_read: str, *content: Content) -> Html:
    """A section of the report with one sentence on how to read it."""
    return tag(
        "section",
        tag("h2", title),
        tag("p", how_to_read, class_="how"),
        *content,
        id=identifier,
    )


def table(headings: Iterable[str], rows: Iterable[Iterable[Content]], *, caption: str = "") -> Html:
    """A table whose first column names the row; on a phone each row becomes a card."""
    names = list(headings)
    head = tag("tr", *(tag("th", name, scope="col") for name in names))
    body = []
    for row in rows:
        first, *rest = row
        cells = [
            tag("td", cell, data_label=name) for name, cell in zip(names[1:], rest, strict=True)
        ]
        body.append(tag("tr", tag("th", first, scope="row"), *cells))
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption) if caption else None,
            tag("thead", head),
            tag("tbody", *body),
        ),
        class_="scroll",
    )


def minus(text: str) -> str:
    """The text with hyphens before digits as minus signs."""
    return re.sub(r"-(?=\d)", "−", text)
