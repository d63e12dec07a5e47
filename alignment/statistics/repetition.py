"""How much a text repeats itself. A text is a sequence of tokens, words or characters."""

from collections.abc import Hashable, Iterable, Sequence


def distinct_n(texts: Iterable[Sequence[Hashable]], n: int) -> float:
    """Different n-grams over all n-grams of the texts together; 1 where there are none.

    Source: Li et al. 2016, arXiv 1510.03055 ("distinct-1", "distinct-2").
    """
    ngrams = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0


def repetition_rate(text: Sequence[Hashable], n: int = 3) -> float:
    """Share of a text's n-grams that occurred before in it: 0 no repetition, towards 1 a loop.

    Source: Welleck et al. 2020, arXiv 1908.04319 ("seq-rep-n").
    """
    return 1.0 - distinct_n([text], n)


def _ngrams(text: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
