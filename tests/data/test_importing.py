import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.config import DataConfig
from alignment.data.imported import ImportResult, prompt_of, prompt_text
from alignment.data.importing import (
    prepare,
    read_parquet_folder,
    split_by_prompt,
    write_prepared,
)
from alignment.data.length_limits import leave_out_too_long
from alignment.data.starter import load_starter
from alignment.data.tables import write_records
from alignment.errors import DataError, ModelError
from alignment.records import (
    Comparison,
    Demonstration,
    Message,
    PreferenceGroup,
    Prompt,
    Response,
)

PARTS = ("demonstrations", "train_prompts", "heldout_prompts")


def ask(text, id=None):
    return Prompt(id=id or f"id-{text}", messages=(Message(role="user", content=text),))


def show(text, response="Because.", id=None):
    return Demonstration(prompt=ask(text, id), response=response)


def choose(text, first="Yes.", second="No.", id=None):
    prompt = ask(text, id)
    responses = (Response(id="a", text=first), Response(id="b", text=second))
    return PreferenceGroup(
        prompt=prompt,
        responses=responses,
        comparisons=(Comparison(first=0, second=1, preference=1.0),),
    )


def texts(items):
    return [prompt_text(prompt_of(item)) for item in items]


def write_pairs(path, count, repeats=1):
    rows = []
    for number in range(count):
        before = f"\n\nHuman: Question {number}?\n\nAssistant:"
        for repeat in range(repeats):
            rows.append({"chosen": f"{before} Good {repeat}.", "rejected": f"{before} Bad."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(source="hh-rlhf", path=path)


# --- the starter set -----------------------------------------------------------------


def test_starter_gives_all_of_it_shuffled_and_the_same_again():
    starter = load_starter()
    prepared = prepare(DataConfig(), seed=3)
    assert Counter(prepared.demonstrations) == Counter(starter.demonstrations)
    assert Counter(prepared.train_prompts) == Counter(starter.train_prompts)
    assert Counter(prepared.heldout_prompts) == Counter(starter.heldout_prompts)
    assert prepared.train_prompts != starter.train_prompts
    assert prepared.preference_groups == prepared.refused == ()
    assert prepared.preference_groups_available == 0
    assert prepare(DataConfig(), seed=3) == prepared


@pytest.mark.parametrize("part", PARTS)
def test_the_seed_changes_the_order(part):
    assert getattr(prepare(DataConfig(), seed=0), part) != getattr(
        prepare(DataConfig(), seed=1), part
    )


@pytest.mark.parametrize("part", PARTS)
def test_a_limit_keeps_the_first_of_the_same_shuffle(part):
    limited = prepare(DataConfig(**{part: 7}), seed=0)
    whole = prepare(DataConfig(), seed=0)
    assert getattr(limited, part) == getattr(whole, part)[:7]
    for other in set(PARTS) - {part}:
        assert getattr(limited, other) == getattr(whole, other)


# --- splitting -----------------------------------------------------------------------

questions = st.lists(st.integers(0, 12), min_size=2, max_size=30).filter(lambda n: len(set(n)) > 1)


@settings(deadline=None)
@given(questions, st.integers(0, 99), st.data())
def test_split_keeps_equal_prompts_together_and_loses_nothing(numbers, seed, data):
    items = [ask(f"Q {n}", id=f"id-{place}") for place, n in enumerate(numbers)]
    wanted = data.draw(st.integers(0, len(set(numbers)) - 1))
    train, heldout = split_by_prompt(items, num_heldout=wanted, seed=seed)
    assert not set(texts(train)) & set(texts(heldout))
    assert len(set(texts(heldout))) == wanted
    assert Counter(train + heldout) == Counter(items)
    assert [p for p in items if p in set(train)] == list(train)
    again = split_by_prompt(items[::-1], num_heldout=wanted, seed=seed)
    assert set(again[1]) == set(heldout)


def test_split_looks_at_the_text_and_not_at_the_id_or_the_spacing():
    items = [ask("Why  is\nit?", "a"), ask("Why is it?", "b"), ask("Other?", "c")]
    for seed in range(8):
        _, heldout = split_by_prompt(items, num_heldout=1, seed=seed)
        assert {p.id for p in heldout} in ({"a", "b"}, {"c"})


def test_split_depends_on_the_seed_and_is_stable_when_prompts_are_added():
    items = [ask(f"Q {n}") for n in range(60)]
    heldout = [set(split_by_prompt(items, num_heldout=10, seed=s)[1]) for s in (0, 1)]
    assert heldout[0] != heldout[1]
    _, with_more = split_by_prompt([*items, ask("New?")], num_heldout=10, seed=0)
    assert len(set(with_more) & heldout[0]) >= 9


@pytest.mark.parametrize("wanted", [2, 3, -1])
def test_split_that_leaves_nothing_to_train_on_is_refused(wanted):
    with pytest.raises(DataError, match=f"{wanted} of 2 distinct prompts cannot be held out"):
        split_by_prompt([ask("A"), ask("B"), ask("B", "b2")], num_heldout=wanted, seed=0)


# --- pairs ---------------------------------------------------------------------------


def test_pairs_are_split_by_prompt_with_all_that_belongs_to_it(tmp_path):
    config = write_pairs(tmp_path / "pairs.jsonl", count=40, repeats=2)
    prepared = prepare(config, seed=0)
    assert len(prepared.heldout_prompts) == 4
    assert len(prepared.train_prompts) == 36
    assert len(prepared.demonstrations) == len(prepared.preference_groups) == 72
    away = set(texts(prepared.heldout_prompts))
    for part in (prepared.demonstrations, prepared.train_prompts, prepared.preference_groups):
        assert not away & set(texts(part))
    assert prepare(config, seed=0) == prepared
    assert set(texts(prepare(config, seed=1).heldout_prompts)) != away


def test_the_number_held_out_is_the_setting_and_other_limits_cut_afterwards(tmp_path):
    config = write_pairs(tmp_path / "pairs.jsonl", count=20)
    limits = {"heldout_prompts": 5, "train_prompts": 6, "demonstrations": 3}
    prepared = prepare(config.model_copy(update=limits), seed=0)
    sizes = [len(getattr(prepared, part)) for part in PARTS]
    assert sizes == [3, 6, 5]
    assert len(prepared.preference_groups) == 15


def test_a_limit_on_comparisons_draws_them_by_the_seed_and_counts_the_rest(tmp_path):
    config = write_pairs(tmp_path / "pairs.jsonl", count=40)
    whole = prepare(config, seed=0)
    limited = config.model_copy(update={"preference_groups": 9})
    drawn = prepare(limited, seed=0)
    assert whole.preference_groups_available == drawn.preference_groups_available == 36
    assert len(set(drawn.preference_groups)) == 9
    assert set(drawn.preference_groups) < set(whole.preference_groups)
    assert drawn.preference_groups != whole.preference_groups[:9]
    assert drawn.demonstrations == whole.demonstrations
    assert prepare(limited, seed=0) == drawn
    more = prepare(config.model_copy(update={"preference_groups": 20}), seed=0)
    assert more.preference_groups[:9] == drawn.preference_groups
    assert (
        len(prepare(config.model_copy(update={"preference_groups": 99}), seed=0).preference_groups)
        == 36
    )


def test_refused_rows_are_passed_on(tmp_path):
    config = write_pairs(tmp_path / "pairs.jsonl", count=20)
    with config.path.open("a") as file:
        file.write('{"chosen": "x"}\n')
    (refusal,) = prepare(config, seed=0).refused
    assert (refusal.line, refusal.record) == (21, "hh-20")


# --- Parquet -------------------------------------------------------------------------


def write_folder(folder, *, heldout=("H?",), groups=(), train=("A?", "B?")):
    write_records(folder / "demonstrations.parquet", [show("D?")], Demonstration)
    write_records(folder / "prompts.parquet", [ask(t) for t in train], Prompt)
    if heldout:
        write_records(folder / "heldout_prompts.parquet", [ask(t) for t in heldout], Prompt)
    if groups:
        groups = [choose(t) for t in groups]
        write_records(folder / "preference_groups.parquet", groups, PreferenceGroup)
    return DataConfig(source="parquet", path=folder)


def test_parquet_folder_is_read_with_and_without_its_optional_tables(tmp_path):
    write_folder(tmp_path / "whole", groups=("G?",))
    whole = read_parquet_folder(tmp_path / "whole")
    assert whole == ImportResult(
        demonstrations=(show("D?"),),
        prompts=(ask("A?"), ask("B?")),
        heldout_prompts=(ask("H?"),),
        preference_groups=(choose("G?"),),
    )
    write_folder(tmp_path / "small", heldout=())
    small = read_parquet_folder(tmp_path / "small")
    assert small.heldout_prompts is None
    assert small.preference_groups == ()


@pytest.mark.parametrize("name", ["demonstrations.parquet", "prompts.parquet"])
def test_a_missing_table_is_named(tmp_path, name):
    write_folder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name} does not exist"):
        read_parquet_folder(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        read_parquet_folder(tmp_path / "nowhere")


def test_without_a_heldout_table_prompts_are_split(tmp_path):
    config = write_folder(tmp_path, heldout=(), train=[f"Q {n}?" for n in range(20)])
    prepared = prepare(config, seed=0)
    assert (len(prepared.train_prompts), len(prepared.heldout_prompts)) == (18, 2)


def test_training_records_on_heldout_prompts_are_refused_by_name(tmp_path):
    config = write_folder(tmp_path, heldout=("H?", "B?", "D?"), groups=("H?", "G?"), train=("A?",))
    write_records(tmp_path / "prompts.parquet", [ask("A?"), ask("B?", "again")], Prompt)
    write_records(tmp_path / "demonstrations.parquet", [show("D?"), show("E?")], Demonstration)
    prepared = prepare(config, seed=0)
    assert texts(prepared.train_prompts) == texts([ask("A?")])
    assert texts(prepared.demonstrations) == texts([ask("E?")])
    assert texts(prepared.preference_groups) == texts([ask("G?")])
    assert len(prepared.heldout_prompts) == 3
    assert [(r.kind, r.record) for r in prepared.refused] == [
        ("demonstration", "id-D?"),
        ("prompt", "again"),
        ("preference_group", "id-H?"),
    ]
    assert all("held-out" in r.reason for r in prepared.refused)


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    config = write_folder(tmp_path, heldout=("D?",))
    with pytest.raises(
        DataError, match=r"no demonstrations are left; 1 records were refused.*held"
    ):
        prepare(config, seed=0)


def test_prepared_data_is_written_and_read_back(tmp_path):
    config = write_pairs(tmp_path / "pairs.jsonl", count=20)
    with config.path.open("a", encoding="utf-8") as file:
        file.write('{"雪": 1}\n')
    prepared = prepare(config, seed=0)
    folder = tmp_path / "out"
    write_prepared(folder, prepared)
    assert sorted(p.name for p in folder.iterdir()) == [
        "demonstrations.parquet",
        "heldout_prompts.parquet",
        "preference_groups.parquet",
        "prompts.parquet",
        "refused.jsonl",
    ]
    again = read_parquet_folder(folder)
    assert again.demonstrations == prepared.demonstrations
    assert again.prompts == prepared.train_prompts
    assert again.heldout_prompts == prepared.heldout_prompts
    assert again.preference_groups == prepared.preference_groups
    (line,) = (folder / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert "雪" in line
    assert json.loads(line) == {
        "kind": "row",
        "record": "hh-20",
        "reason": "key `chosen` is missing; the row has 雪",
        "excerpt": '{"雪": 1}',
        "file": "pairs.jsonl",
        "line": 21,
    }


def test_refused_file_is_there_and_empty_when_nothing_was_refused(tmp_path):
    write_prepared(tmp_path, prepare(DataConfig(), seed=0))
    assert (tmp_path / "refused.jsonl").read_bytes() == b""
    assert not (tmp_path / "preference_groups.parquet").exists()


# --- lengths -------------------------------------------------------------------------


def test_what_is_too_long_is_refused_by_name_and_counts_add_up(tokenizer):
    long = "x" * 100
    imported = ImportResult(
        demonstrations=(show("D?"), show("E?", long), show(long, id="long-prompt")),
        prompts=(ask("A?"), ask(long, id="long-prompt")),
        heldout_prompts=(ask("H?"), ask(long, id="long-heldout")),
        preference_groups=(choose("G?"), choose("K?", second=long), choose(long, id="g")),
    )
    kept = leave_out_too_long(imported, tokenizer, max_prompt_tokens=60, max_response_tokens=20)
    assert texts(kept.demonstrations) == texts([ask("D?")])
    assert texts(kept.prompts) == texts([ask("A?")])
    assert texts(kept.heldout_prompts) == texts([ask("H?")])
    assert texts(kept.preference_groups) == texts([ask("G?")])
    assert [(r.kind, r.record) for r in kept.refused] == [
        ("demonstration", "id-E?"),
        ("demonstration", "long-prompt"),
        ("prompt", "long-prompt"),
        ("heldout_prompt", "long-heldout"),
        ("preference_group", "id-K?"),
        ("preference_group", "g"),
    ]
    assert "101 tokens; `data.max_response_tokens` accepts 20" in kept.refused[0].reason
    assert "`model.max_prompt_tokens` accepts 60" in kept.refused[1].reason
    assert "response b has 101 tokens" in kept.refused[4].reason


def test_the_end_of_turn_token_counts(tokenizer):
    imported = ImportResult(demonstrations=(show("D?", "x" * 20),), prompts=(ask("A?"),))
    limits = {"max_prompt_tokens": 60}
    fits = leave_out_too_long(imported, tokenizer, max_response_tokens=21, **limits)
    assert (len(fits.demonstrations), fits.heldout_prompts) == (1, None)
    refused = leave_out_too_long(imported, tokenizer, max_response_tokens=20, **limits)
    assert len(refused.demonstrations) == 0


def test_a_model_without_a_template_is_an_error_and_not_a_refusal_of_everything(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ModelError):
        prepare(DataConfig(), seed=0, tokenizer=tokenizer, max_prompt_tokens=60)


def test_prepare_measures_with_the_tokenizer_it_is_given(tokenizer):
    config = DataConfig(max_response_tokens=90)
    prepared = prepare(config, seed=0, tokenizer=tokenizer, max_prompt_tokens=60)
    starter = load_starter()
    kept = Counter(
        demonstration=len(prepared.demonstrations),
        prompt=len(prepared.train_prompts),
        heldout_prompt=len(prepared.heldout_prompts),
    )
    refused = Counter(r.kind for r in prepared.refused)
    assert all(refused[kind] > 0 for kind in kept)
    for limit in ("`data.max_response_tokens` accepts 90", "`model.max_prompt_tokens` accepts 60"):
        assert any(limit in refusal.reason for refusal in prepared.refused)
    assert kept + refused == Counter(
        demonstration=len(starter.demonstrations),
        prompt=len(starter.train_prompts),
        heldout_prompt=len(starter.heldout_prompts),
    )


def test_importing_needs_no_torch_and_no_transformers():
    code = (
        "import sys, alignment.data.importing as i; from alignment.config import DataConfig;"
        "i.prepare(DataConfig(), seed=0);"
        "print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
