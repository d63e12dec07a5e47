import pytest

from alignment.statistics.repetition import distinct_n, repetition_rate

TEXT = ["the", "cat", "sat", "on", "the", "cat", "sat", "down"]


def test_distinct_counts_different_over_all():
    assert distinct_n([TEXT], 1) == pytest.approx(5 / 8)
    assert distinct_n([TEXT], 2) == pytest.approx(5 / 7)
    assert distinct_n([TEXT], 3) == pytest.approx(5 / 6)


def test_ngrams_are_pooled_over_texts_and_do_not_span_them():
    assert distinct_n([["a", "b"], ["b", "a"], ["a", "b"]], 2) == pytest.approx(2 / 3)
    assert distinct_n([["a"], ["b"]], 2) == 1.0


def test_repetition_of_a_loop_and_of_a_plain_text():
    assert repetition_rate(TEXT, 3) == pytest.approx(1 / 6)
    assert repetition_rate(list("abcdef"), 3) == 0.0
    assert repetition_rate("ab" * 50, 3) == pytest.approx(1 - 2 / 98)


def test_a_text_shorter_than_n_repeats_nothing():
    assert repetition_rate(["a", "a"], 3) == 0.0
