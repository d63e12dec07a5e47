"""Emphasis by `*` beside Chinese, Japanese and Korean text, which has no spaces between words.

CommonMark takes the asterisks of `**「重要」**である` for text, because punctuation stands inside
them and a letter outside. Here CJK punctuation counts as a letter, and a CJK character beside the
asterisks as a border of words.
"""

import re

from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter

_CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\u303f\u3040-\u33ff\u3400-\u4dbf\u4e00-\ua4cf\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)


def cjk_emphasis(state: StateInline, silent: bool) -> bool:
    """Inline rule for markdown-it: a run of `*` with a CJK character on either side."""
    start = state.pos
    if silent or state.src[start] != "*":
        return False
    end = start
    while end < state.posMax and state.src[end] == "*":
        end += 1
    before = state.src[start - 1] if start else " "
    after = state.src[end] if end < state.posMax else " "
    if not (_CJK.match(before) or _CJK.match(after)):
        return False
    opens, closes = _leans(before, after), _leans(after, before)
    for _ in range(end - start):
        token = state.push("text", "", 0)
        token.content = "*"
        state.delimiters.append(
            Delimiter(
                marker=ord("*"),
                length=end - start,
                token=len(state.tokens) - 1,
                end=-1,
                open=opens,
                close=closes,
            )
        )
    state.pos = end
    return True


def _leans(outside: str, inside: str) -> bool:
    """True if asterisks between the two can belong to the text on the side of `inside`."""
    if isWhiteSpace(ord(inside)):
        return False
    plain = not _is_punctuation(inside) or _CJK.match(inside) is not None
    border = isWhiteSpace(ord(outside)) or _is_punctuation(outside)
    return plain or border or _CJK.match(outside) is not None


def _is_punctuation(character: str) -> bool:
    return isMdAsciiPunct(ord(character)) or isPunctChar(character)
