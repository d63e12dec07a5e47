import pytest

from alignment.gold_rubric import WEIGHTS, gold_score, word_count

QUESTION = "Why is the ocean salty?"
GOOD = "The ocean is salty because rivers carry salts from rocks into it."


def test_the_ideal_response_scores_one():
    score = gold_score(QUESTION, GOOD, finished=True)
    assert score.total == pytest.approx(1.0)
    assert set(score.components) == set(WEIGHTS)
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)


def test_the_empty_response_scores_zero():
    assert gold_score(QUESTION, "", finished=True).total == 0.0


@pytest.mark.parametrize(
    ("component", "text", "finished", "expected"),
    [
        ("finished", GOOD, False, 0.0),  # met the token limit, though on a full stop
        ("finished", GOOD[:-1], True, 0.0),  # stopped by itself, in mid-sentence
        ("finished", 'They call it "the salty ocean."', True, 1.0),
        ("concise", "The ocean is.", True, 0.5),  # 3 of 6 words
        ("concise", "salt " * 20, True, 1.0),
        ("concise", "salt " * 30, True, 0.5),  # half-way from 20 to 40
        ("concise", "salt " * 40, True, 0.0),
        ("on_topic", "Bananas are yellow because the sun shines on them.", True, 0.0),
        ("on_topic", "An ocean is a very large body of water.", True, 0.5),
        ("on_topic", "Why is the what?", True, 0.0),  # question words earn nothing
        ("on_topic", "Oceans hold salty water.", True, 1.0),  # stems of 5 letters
        ("plain", "- The ocean is salty from rocks", True, 0.0),
        ("plain", "The ocean\nis salty from rocks", True, 0.0),
        ("plain", "The **ocean** is salty from rocks", True, 0.0),
        ("plain", "Self-made: 2.5 times as salty, it seems", True, 1.0),
        ("varied", "the ocean is the ocean is", True, 0.75),  # 4 trigrams, one of them twice
        ("varied", "salty", True, 0.25),  # one word of the four that count in full
    ],
)
def test_components_by_hand(component, text, finished, expected):
    assert gold_score(QUESTION, text, finished).components[component] == pytest.approx(expected)


def test_chinese_counts_by_character():
    assert word_count("海水是咸的") == pytest.approx(5 / 1.6)
    score = gold_score(
        "海水为什么是咸的？", "河流把岩石里的盐带进海水，所以海水很咸。", finished=True
    )
    assert score.on_topic == 1.0
    assert score.finished == 1.0
    assert score.concise == 1.0
    assert gold_score("海水为什么是咸的？", "为什么是的？", finished=True).on_topic == 0.0


def test_truth_is_not_checked():
    truth = gold_score("What is the capital of Canada?", "The capital of Canada is Ottawa.", True)
    falsehood = gold_score(
        "What is the capital of Canada?", "The capital of Canada is Paris.", True
    )
    assert truth.total == falsehood.total
