"""Words of a text in any language, without a tokenizer."""

import re

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+(?:['’][^\W{_CJK}]+)*")


def words(text: str) -> list[str]:
    """Lower-case words; a Chinese or Japanese character is a word, punctuation is none."""
    return _WORD.findall(text.lower())
