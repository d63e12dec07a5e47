"""The hidden gold rubric: what the simulated panel likes. Light and deterministic; no model.

In one sentence: one short, finished, plain sentence that answers the question asked. Five
components in [0, 1], weighted:

- `finished` 0.25: ended by itself within the limit, and on closing punctuation
- `concise` 0.20: 6 to 20 words; falls linearly to 0 at 0 and at 40 words
- `on_topic` 0.35: takes up up to two content words of the prompt
- `plain` 0.10: no list marks, no bold or headings, no line breaks
- `varied` 0.10: share of word trigrams that are not repetitions

The last two count in full from 4 words on, so that an empty text earns nothing by them. The
rubric does **not** check whether anything is true: it stands in for people in tests and
examples, and says nothing about quality beyond these five points. Training never sees it.
"""

import re
from dataclasses import dataclass

WEIGHTS = {"finished": 0.25, "concise": 0.20, "on_topic": 0.35, "plain": 0.10, "varied": 0.10}

RUBRIC_VERSION = 2
"""Raise it when any score changes: it is part of a simulated round's identity."""

CONCISE_WORDS = (6.0, 20.0)
TOO_LONG_WORDS = 40.0
CONTENT_WORDS_WANTED = 2
STEM_LETTERS = 5
CHARACTERS_PER_CHINESE_WORD = 1.6

_TOKEN = re.compile(
    r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff]+(?:['’][^\W_]+)*"
)
_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_CLOSING = re.compile(r"[.!?。！？][\"'”’)」』）]*$")
_MARKUP = re.compile(r"[\n\r]|\*\*|__|`|^\s*(?:#|>|[-*•+]\s|\d{1,2}[.)]\s)")

# Question words, task verbs and grammar: a response gains nothing by repeating them.
_FUNCTION_WORDS = frozenset(
    _TOKEN.findall("""
    a about above after again all also am an and any are as at be because been before being below
    between both but by can could did do does doing down during each few for from further get gets
    had has have having he her here him his how i if in into is it its just like many me more most
    much my no nor not of off on once one only or other our out over own please same she should so
    some such tell than that the their them then there these they this those through to too two
    under until up us very was we were what when where which while who whom whose why will with
    would you your write describe explain name list give define suggest compare summarize
    summarise translate mention make short sentence sentences word words difference between
    """)
)
_FUNCTION_CHARACTERS = frozenset(
    "的了是什么怎样如何为哪里谁吗呢吧啊和与或在有我你他她它们这那个一二三些不请说写出用把被对从到会能可以要去来上下几多少"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldScore:
    """The rubric's verdict on one response: `total` in [0, 1] and its parts, each in [0, 1]."""

    total: float
    finished: float
    concise: float
    on_topic: float
    plain: float
    varied: float

    @property
    def components(self) -> dict[str, float]:
        """The parts by name, in the order of `WEIGHTS`."""
        return {name: getattr(self, name) for name in WEIGHTS}


def gold_score(prompt_text: str, response_text: str, finished: bool) -> GoldScore:
    """Scores a response to the last user turn of a prompt.

    Args:
        prompt_text: the last user turn, without template tokens.
        response_text: the response, decoded without special tokens.
        finished: True if the response ended by itself, False if it met the token limit.
    """
    tokens = _tokens(response_text)
    words = word_count(response_text)
    substance = min(1.0, words / 4)
    parts = {
        "finished": float(finished and _CLOSING.search(response_text.strip()) is not None),
        "concise": _concise(words),
        "on_topic": _on_topic(prompt_text, tokens),
        "plain": substance * float(_MARKUP.search(response_text.strip()) is None),
        "varied": substance * _varied(tokens),
    }
    total = sum(WEIGHTS[name] * value for name, value in parts.items())
    return GoldScore(total=total, **parts)


def word_count(text: str) -> float:
    """Words of a text; a Chinese character counts as 1/1.6 of a word."""
    tokens = _tokens(text)
    chinese = sum(1 for token in tokens if _CHINESE.match(token))
    return len(tokens) - chinese + chinese / CHARACTERS_PER_CHINESE_WORD


def _tokens(text: str) -> list[str]:
    """Lower-cased words; Chinese by character."""
    return _TOKEN.findall(text.lower())


def _concise(words: float) -> float:
    shortest, longest = CONCISE_WORDS
    if words < shortest:
        return words / shortest
    return max(0.0, min(1.0, (TOO_LONG_WORDS - words) / (TOO_LONG_WORDS - longest)))


def _on_topic(prompt_text: str, response_tokens: list[str]) -> float:
    """Share of the wanted content words taken up; 1 for a prompt that has none to take up."""
    asked = {
        token[:STEM_LETTERS]
        for token in _tokens(prompt_text)
        if token not in _FUNCTION_WORDS and token not in _FUNCTION_CHARACTERS
    }
    if not asked:
        return float(bool(response_tokens))
    taken_up = asked & {token[:STEM_LETTERS] for token in response_tokens}
    wanted = min(CONTENT_WORDS_WANTED, len(asked))
    return min(len(taken_up), wanted) / wanted


def _varied(tokens: list[str]) -> float:
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if trigrams else 1.0
