import json
import os
from pathlib import Path

import pytest

from alignment.data.hh_rlhf import read_hh_rlhf
from alignment.errors import DataError
from alignment.records import Comparison

ASK = "\n\nHuman: Why is snow white?"


def pair(chosen=" Ice scatters all light.", rejected=" It is painted.", before=ASK):
    return {
        "chosen": f"{before}\n\nAssistant:{chosen}",
        "rejected": f"{before}\n\nAssistant:{rejected}",
    }


def read(tmp_path, *rows):
    path = tmp_path / "pairs.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_hh_rlhf(path)


def test_a_pair_becomes_prompt_replies_and_one_comparison(tmp_path):
    longer = f"{ASK}\n\nAssistant: Guess.\n\nHuman: No idea.\n\nReally."
    result = read(tmp_path, pair(), pair(before=longer))
    first, second = result.preference_groups
    assert (first.prompt.id, second.prompt.id) == ("hh-0", "hh-1")
    assert [(m.role, m.content) for m in second.prompt.messages] == [
        ("user", "Why is snow white?"),
        ("assistant", "Guess."),
        ("user", "No idea.\n\nReally."),
    ]
    assert [(r.id, r.text) for r in first.responses] == [
        ("hh-0-chosen", "Ice scatters all light."),
        ("hh-0-rejected", "It is painted."),
    ]
    assert first.comparisons == (Comparison(first=0, second=1, preference=1.0),)
    assert [(d.prompt, d.response) for d in result.demonstrations] == [
        (first.prompt, "Ice scatters all light."),
        (second.prompt, "Ice scatters all light."),
    ]
    assert result.prompts == (first.prompt, second.prompt)
    assert result.heldout_prompts is None
    assert result.refused == ()


def test_a_prompt_of_several_rows_is_listed_once_under_its_first_id(tmp_path):
    other = pair(before="\n\nHuman: Hi")
    result = read(tmp_path, other, pair(), pair(chosen=" Air."), other)
    assert [p.id for p in result.prompts] == ["hh-0", "hh-1"]
    assert len(result.preference_groups) == len(result.demonstrations) == 4


REFUSED = [
    (pair(before=ASK + "\n\nAssistant: A.\n\nHuman: B.") | {"rejected": pair()["rejected"]},
     r"part at turn 2, before the last reply \(`chosen` has 4 turns, `rejected` 2\)"),
    (pair() | {"chosen": pair(before="\n\nHuman: Other?")["chosen"]}, "part at turn 1, "),
    (pair(chosen=" "), "the last reply of `chosen` is empty"),
    (pair(rejected=""), "the last reply of `rejected` is empty"),
    (pair(chosen=" Same.", rejected=" Same. "), "both transcripts end with the same reply"),
    (pair(chosen=" A.\n\nHuman: B."), "`chosen` ends with a Human turn"),
    (pair(before="\n\nHuman: "), r"field prompt\.messages\[0\]\.content: is empty"),
    (pair(before=""), "field prompt.messages: no messages"),
    (pair(before="\n\nHuman: A.\n\nAssistant: B."), "ends with the role 'assistant'"),
    ({"chosen": pair()["chosen"]}, "key `rejected` is missing; the row has chosen"),
    ({}, "key `chosen` is missing; the row has no keys"),
    (pair() | {"rejected": ["x"]}, "`rejected` is list, not a transcript text"),
    (pair() | {"chosen": "Once upon a time"}, "`chosen` does not begin with a turn"),
    (pair() | {"chosen": "Preamble\n\nHuman: x\n\nAssistant: y"}, "does not begin with a turn"),
    (pair() | {"chosen": ""}, "does not begin with a turn"),
    ("{half", "not JSON"),
    ("[]", "not a JSON object but list"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_a_bad_row_is_refused_with_line_and_reason_and_the_others_kept(tmp_path, row, reason):
    result = read(tmp_path, pair(), row, pair())
    assert [g.prompt.id for g in result.preference_groups] == ["hh-0", "hh-2"]
    (refusal,) = result.refused
    assert (refusal.kind, refusal.record, refusal.line) == ("row", "hh-1", 2)
    assert refusal.file == "pairs.jsonl"
    with pytest.raises(ValueError, match=reason):
        raise ValueError(refusal.reason)
    assert 0 < len(refusal.excerpt) <= 80


def test_a_file_without_one_usable_row_is_an_error_with_the_first_reason(tmp_path):
    with pytest.raises(DataError, match=r"none of its 2 rows can be used; line 1: the last reply"):
        read(tmp_path, pair(chosen=""), "{half")


def real_file() -> Path:
    folder = os.environ.get("ALIGNFLOW_TEST_DATA")
    if folder is None:
        pytest.skip("ALIGNFLOW_TEST_DATA is not set")
    return Path(folder) / "preference" / "hh_harmless_pairs_a.jsonl.gz"


def test_real_pairs_are_counted_exactly_and_each_refusal_is_explained():
    result = read_hh_rlhf(real_file())
    assert len(result.preference_groups) == len(result.demonstrations) == 1177 - 6
    assert len(result.prompts) == 1169  # two prompts occur in two rows each
    parted = {r.line - 1 for r in result.refused if "before the last reply" in r.reason}
    empty = {r.line - 1 for r in result.refused if "reply of `chosen` is empty" in r.reason}
    assert parted == {641, 884, 1006, 1007, 1048}
    assert empty == {261}
    assert len(result.refused) == 6


def test_real_ids_are_row_numbers_and_texts_are_those_of_the_file():
    by_id = {g.prompt.id: g for g in read_hh_rlhf(real_file()).preference_groups}
    assert set(by_id) == {f"hh-{n}" for n in range(1177)} - {
        f"hh-{n}" for n in (261, 641, 884, 1006, 1007, 1048)
    }
    first = by_id["hh-0"]
    assert [m.role for m in first.prompt.messages] == ["user", "assistant"] * 2 + ["user"]
    assert first.prompt.messages[0].content == "what are some pranks with a pen i can do?"
    assert first.responses[0].text.startswith("No, sorry!  All of these involve a pen")
    # Two replies in a row before the last are kept as they are.
    assert [m.role for m in by_id["hh-389"].prompt.messages] == [
        *("user", "assistant", "assistant", "user")
    ]
