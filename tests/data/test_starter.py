import json
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from itertools import combinations, pairwise, product

import pytest

from alignment.data.imported import prompt_of
from alignment.data.starter import load_starter

STARTER = load_starter()
PARTS = {
    "demonstrations": [prompt_of(d) for d in STARTER.demonstrations],
    "train": list(STARTER.train_prompts),
    "heldout": list(STARTER.heldout_prompts),
}
EVERY = [prompt for part in PARTS.values() for prompt in part]
# Words by which two different questions may well agree.
COMMON = frozenset(
    re.findall(
        r"\w+",
        """a about an and are as at be best by can compare could define describe did do does explain
        for from give good help how i if in into is it list make many me much my name new no not of
        on one or recommend should so suggest summarize tell than that the this three to two use
        used was we were what when where which who why with work works would write""",
    )
)


def text_of(prompt):
    (message,) = prompt.messages
    assert message.role == "user"
    return message.content


@cache
def content_words(text):
    """Stems of the words that carry a question's topic; Chinese as pairs of characters."""
    latin = {w.rstrip("s")[:6] for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in COMMON}
    chinese = re.findall(
        r"[\u4e00-\u9fff]", re.sub("为什么|什么|怎样|如何|请|一下|描述|介绍|写一句", "", text)
    )
    return latin | {a + b for a, b in pairwise(chinese)}


def overlap(one, two):
    mine, other = content_words(one), content_words(two)
    return len(mine & other) / len(mine | other)


@pytest.mark.parametrize(
    ("part", "wanted"), [("demonstrations", 176), ("train", 144), ("heldout", 120)]
)
def test_each_part_is_large_enough_in_english_alone(part, wanted):
    assert sum(p.language == "en" for p in PARTS[part]) >= wanted


def test_chinese_is_there_in_each_part_and_at_most_a_tenth_of_the_whole():
    chinese = [p for p in EVERY if p.language == "zh"]
    assert 0 < len(chinese) <= 0.10 * len(EVERY)
    for part in PARTS.values():
        assert any(p.language == "zh" for p in part)


def test_language_is_what_the_text_is_written_in_and_files_are_apart():
    for prompt in EVERY:
        has_chinese = re.search(r"[\u4e00-\u9fff]", text_of(prompt)) is not None
        assert has_chinese == (prompt.language == "zh"), prompt.id
        assert prompt.id.startswith("zh-") == (prompt.language == "zh")


def test_ids_and_prompts_are_all_different():
    assert max(Counter(p.id for p in EVERY).values()) == 1
    normalised = Counter(" ".join(re.findall(r"\w+", text_of(p).lower())) for p in EVERY)
    assert max(normalised.values()) == 1


def test_no_question_comes_back_reworded_in_another_part():
    for (one, first), (two, second) in combinations(PARTS.items(), 2):
        for a, b in product(map(text_of, first), map(text_of, second)):
            assert overlap(a, b) < 0.5, f"{one}: {a} / {two}: {b}"


def test_the_overlap_measure_sees_a_reworded_question():
    pairs = [
        ("Why is the sky blue?", "Explain why the sky looks blue."),
        ("怎样包饺子？", "如何包饺子？"),
        ("What causes thunder?", "Describe the cause of thunder."),
    ]
    for one, two in pairs:
        assert overlap(one, two) >= 0.5


def test_prompts_are_one_short_tidy_turn():
    for prompt in EVERY:
        text = text_of(prompt)
        assert len(text.split()) <= 22, prompt.id
        assert text == text.strip()
        assert re.search(r"[.?。？]$", text), prompt.id
        assert not re.search(r"  |\n|\*\*|[“”‘’—]", text), prompt.id
        assert prompt.source == "starter"


def test_prompts_open_in_many_ways_and_no_opening_dominates():
    english = [text_of(p).split()[0] for p in EVERY if p.language == "en"]
    openings = Counter(english)
    assert len(openings) >= 30
    assert max(openings.values()) <= 0.2 * len(english)
    for name, part in PARTS.items():
        assert len({text_of(p).split()[0] for p in part}) >= 20, name


def test_demonstrations_are_one_or_two_short_finished_plain_sentences():
    for demonstration in STARTER.demonstrations:
        response, id = demonstration.response, demonstration.prompt.id
        chinese = re.findall(r"[\u4e00-\u9fff]", response)
        words = len(chinese) / 1.6 if chinese else len(response.split())
        assert 6 <= words <= 22, (id, words)
        assert re.search(r"[.!?。！？]$", response), id
        assert len(re.findall(r"[.!?。！？](?:\s|$)", response)) <= 2, id
        assert not re.search(r"\n|\*|  |[“”‘’—#`]|^- |\d\. ", response), id
        assert response == response.strip()
        assert response[0].isupper() or chinese, id


def test_demonstrations_take_up_what_was_asked():
    for demonstration in STARTER.demonstrations:
        asked = content_words(text_of(demonstration.prompt))
        if demonstration.prompt.language == "en":
            assert asked & content_words(demonstration.response), demonstration.prompt.id


def test_responses_are_all_different():
    assert len({d.response for d in STARTER.demonstrations}) == len(STARTER.demonstrations)


def test_demonstrations_please_the_documented_rubric():
    gold_rubric = pytest.importorskip("alignment.gold_rubric")
    scores = [
        gold_rubric.gold_score(text_of(d.prompt), d.response, finished=True).total
        for d in STARTER.demonstrations
    ]
    assert sum(scores) / len(scores) >= 0.8
    assert min(scores) >= 0.6


def test_lines_hold_the_documented_keys_in_order():
    folder = files("alignment.data") / "starter"
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".jsonl"))
    assert names == [
        "demonstrations.jsonl",
        "prompts_heldout.jsonl",
        "prompts_train.jsonl",
        "zh_demonstrations.jsonl",
        "zh_prompts_heldout.jsonl",
        "zh_prompts_train.jsonl",
    ]
    for name in names:
        wanted = ["id", "prompt", "response", "language"]
        if "demonstrations" not in name:
            wanted.remove("response")
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            assert list(json.loads(line)) == wanted
