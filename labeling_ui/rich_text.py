"""Markdown, code and math of a model's text as a tree of plain nodes, for the page to build.

A node is a string, or a list `[tag, children]` or `[tag, children, class]`, with tags from a
short list. The page makes elements and text nodes of it one by one, so that model text never
meets an HTML parser. HTML in the text stays text. Nothing in it is fetched or can be clicked: a
link shows its address, an image its address and description.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias
from xml.etree import ElementTree

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from labeling_ui.cjk_emphasis import cjk_emphasis
from labeling_ui.visible_text import visible_text

Node: TypeAlias = str | list[Any]

MAX_RENDERED_CHARACTERS = 20_000
"""Longer texts are shown as they are."""
MAX_FORMULA_CHARACTERS = 2000
MAX_NODES = 20_000

_TAGS = {
    "p": "p",
    "em": "em",
    "strong": "strong",
    "s": "s",
    "ul": "ul",
    "ol": "ol",
    "li": "li",
    "blockquote": "blockquote",
    "table": "table",
    "thead": "thead",
    "tbody": "tbody",
    "tr": "tr",
    "th": "th",
    "td": "td",
}
_MATHML = {
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "msup", "msub", "msubsup", "mfrac"),
    *("msqrt", "mroot", "mover", "munder", "munderover", "mtable", "mtr", "mtd", "mpadded"),
    *("mphantom", "menclose", "mstyle"),
}
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$(?![\s$])((?:[^$\\\n]|\\.)+?)(?<!\s)\$(?!\d)",
    re.DOTALL,
)


@lru_cache(maxsize=4096)
def rich_text(text: str) -> list[Node]:
    """The tree of a text. What is too long or too deep to render is one paragraph of plain text."""
    shown = visible_text(text)
    if len(shown) > MAX_RENDERED_CHARACTERS:
        return [["p", [shown]]]
    nodes, count = _nodes(_parser().parse(shown))
    if count > MAX_NODES:
        return [["p", [shown]]]
    return nodes


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "maxNesting": 30})
    parser.enable(["table", "strikethrough"])
    parser.disable(["html_block", "html_inline", "reference"])
    parser.inline.ruler.before("escape", "formula", _formula)
    parser.inline.ruler.before("emphasis", "cjk_emphasis", cjk_emphasis)
    return parser


def _formula(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    found = _FORMULA.match(state.src, state.pos, state.posMax)
    if found is None or len(found.group()) > MAX_FORMULA_CHARACTERS:
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content = next(group for group in found.groups() if group is not None)
        token.markup = found.group()
    state.pos = found.end()
    return True


def _nodes(tokens: Sequence[Token]) -> tuple[list[Node], int]:
    """The nodes of a flat token list, and how many tokens it took."""
    root: list[Node] = []
    stack: list[tuple[list[Node], str]] = []
    children, ending = root, ""
    count = 0
    for token in tokens:
        count += 1
        if token.nesting == 1:
            element, after = _element(token)
            children.append(element)
            stack.append((children, ending))
            children, ending = element[1], after
        elif token.nesting == -1:
            if ending:
                children.append(ending)
            children, ending = stack.pop()
        elif token.type == "inline":
            inner, more = _nodes(token.children or [])
            children.extend(inner)
            count += more
        elif leaf := _leaf(token):
            children.append(leaf)
    return root, count


def _element(token: Token) -> tuple[list[Any], str]:
    if token.tag in _TAGS:
        number = token.attrGet("start") if token.tag == "ol" else None
        return ([_TAGS[token.tag], [], f"start-{number}"] if number else [_TAGS[token.tag], []]), ""
    if token.type == "heading_open":
        return ["p", [], f"heading {token.tag}"], ""
    if token.type == "link_open":
        return ["span", [], "link"], f" ({token.attrGet('href')})"
    return ["span", []], ""


def _leaf(token: Token) -> Node:
    if token.type in ("softbreak", "hardbreak"):
        return "\n"
    if token.type == "code_inline":
        return ["code", [token.content]]
    if token.type in ("fence", "code_block"):
        return ["pre", [["code", [token.content]]]]
    if token.type == "hr":
        return ["hr", []]
    if token.type == "image":
        return f"[image: {token.content} ({token.attrGet('src')})]"
    if token.type == "formula":
        return _mathml(token.content) or token.markup
    return token.content


def _mathml(formula: str) -> Node | None:
    """MathML of a formula as nodes; None if it is none that the converter knows."""
    from latex2mathml.converter import convert

    try:
        return _math_node(ElementTree.fromstring(convert(formula)))
    except Exception:  # the converter fails in many ways on text that is no formula
        return None


def _math_node(element: ElementTree.Element) -> Node:
    tag = element.tag.rpartition("}")[2]
    if tag not in _MATHML:
        raise ValueError(f"element {tag!r} is not shown")
    children: list[Node] = [element.text] if element.text else []
    for child in element:
        children.append(_math_node(child))
    return [tag, children]
