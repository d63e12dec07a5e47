import hashlib
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data.tables import SCHEMA_VERSION, arrow_schema, read_records, write_records
from alignment.errors import DataError
from alignment.records import (
    CandidateSet,
    Comparison,
    Demonstration,
    Message,
    PreferenceGroup,
    Prompt,
    Ranking,
    Response,
)


def a_prompt(id="p1", content="Why is snow white?"):
    turns = (
        Message(role="system", content="Be brief."),
        Message(role="user", content=content),
    )
    return Prompt(id=id, messages=turns, language="en", source="test")


RESPONSES = (
    Response(id="a", text="Ice scatters light.", token_ids=(5, 6, 2)),
    Response(id="b", text="", token_ids=(2,), origin="probe:truncated"),
    Response(id="c", text="雪", finish_reason="length"),
)
EXAMPLES = [
    (Prompt, [a_prompt(), a_prompt("p2", "为什么雪是白色的？")]),
    (Demonstration, [Demonstration(prompt=a_prompt(), response="Ice scatters light.")]),
    (CandidateSet, [CandidateSet(prompt=a_prompt(), responses=RESPONSES)]),
    (
        Ranking,
        [
            Ranking(
                annotation_id="r1",
                prompt_id="p1",
                labeler="ann",
                response_ids=("c", "a", "b"),
                tiers=(1, 0, 1),
            )
        ],
    ),
    (
        PreferenceGroup,
        [
            PreferenceGroup(
                prompt=a_prompt(),
                responses=RESPONSES,
                comparisons=(
                    Comparison(first=0, second=1, preference=1.0),
                    Comparison(first=2, second=1, preference=0.1, weight=0.3),
                ),
            ),
            PreferenceGroup(prompt=a_prompt(), responses=RESPONSES),
        ],
    ),
]


@pytest.mark.parametrize(("kind", "records"), EXAMPLES)
def test_records_come_back_equal_and_in_order(tmp_path, kind, records):
    path = tmp_path / "new_folder" / "table.parquet"
    write_records(path, records, kind)
    assert read_records(path, kind) == tuple(records)
    assert [p.name for p in path.parent.iterdir()] == ["table.parquet"]


texts = st.text(min_size=1, max_size=20).filter(str.strip)


@settings(deadline=None, max_examples=40)
@given(texts, st.lists(texts, min_size=1, max_size=3), st.lists(st.integers(0, 2**40), max_size=5))
def test_any_text_and_any_token_survive(tmp_path_factory, content, answers, tokens):
    responses = tuple(
        Response(id=str(k), text=text, token_ids=tuple(tokens)) for k, text in enumerate(answers)
    )
    record = CandidateSet(prompt=a_prompt(content=content), responses=responses)
    path = tmp_path_factory.mktemp("any") / "c.parquet"
    write_records(path, [record], CandidateSet)
    assert read_records(path, CandidateSet) == (record,)


@pytest.mark.parametrize(("kind", "records"), EXAMPLES)
def test_equal_records_give_equal_bytes(tmp_path, kind, records):
    for name in ("one", "two"):
        write_records(tmp_path / name, records, kind)
    digests = {hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in ("one", "two")}
    assert len(digests) == 1


def test_file_says_what_it_holds_and_is_compressed_with_zstd(tmp_path):
    path = tmp_path / "p.parquet"
    write_records(path, EXAMPLES[0][1], Prompt)
    metadata = pq.read_schema(path).metadata
    assert metadata[b"alignflow.record"] == b"Prompt"
    assert metadata[b"alignflow.schema_version"] == b"1"
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"


def test_schema_is_pinned_to_its_version():
    # Changed a record class? Raise SCHEMA_VERSION and put the new digest here.
    schemas = "\n".join(arrow_schema(kind).to_string() for kind, _ in EXAMPLES)
    digest = hashlib.sha256(schemas.encode()).hexdigest()[:16]
    assert (SCHEMA_VERSION, digest) == (1, "cf5c0aee077153a6")


def test_nested_columns_are_structs_and_lists():
    schema = arrow_schema(PreferenceGroup)
    assert pa.types.is_struct(schema.field("prompt").type)
    response = schema.field("responses").type.value_type
    assert response.field("token_ids").type.value_type == pa.int64()
    assert schema.field("comparisons").type.value_type.field("preference").type == pa.float64()


def break_prompt(**changes):
    return Prompt, replace(a_prompt(), **changes)


def break_group(*comparisons):
    group = PreferenceGroup(prompt=a_prompt(), responses=RESPONSES, comparisons=comparisons)
    return PreferenceGroup, group


def break_ranking(**changes):
    return Ranking, replace(EXAMPLES[3][1][0], **changes)


def compare(first=0, second=1, preference=1.0, weight=1.0):
    return Comparison(first=first, second=second, preference=preference, weight=weight)


UNUSABLE = [
    (*break_prompt(id=" "), "field id: is empty"),
    (*break_prompt(messages=()), "field messages: no messages"),
    (
        *break_prompt(messages=(Message(role="user", content=" "),)),
        r"field messages\[0\].content: is empty",
    ),
    (
        *break_prompt(messages=(Message(role="assistant", content="Hi"),)),
        "field messages: ends with the role 'assistant'",
    ),
    (*break_prompt(language=""), "field language: is empty"),
    (
        Demonstration,
        Demonstration(prompt=a_prompt(), response="\n"),
        "field response: is empty",
    ),
    (
        Demonstration,
        Demonstration(prompt=replace(a_prompt(), id=""), response="x"),
        r"field prompt\.id: is empty",
    ),
    (
        CandidateSet,
        CandidateSet(prompt=a_prompt(), responses=()),
        "field responses: no responses",
    ),
    (
        CandidateSet,
        CandidateSet(prompt=a_prompt(), responses=(RESPONSES[0], Response(id="z", text=""))),
        r"field responses\[1\]\.text: is empty and there are no token_ids",
    ),
    (
        CandidateSet,
        CandidateSet(prompt=a_prompt(), responses=(Response(id="", text="x"),)),
        r"field responses\[0\]\.id",
    ),
    (
        CandidateSet,
        CandidateSet(prompt=a_prompt(), responses=(RESPONSES[0], RESPONSES[0])),
        "two responses have the same id",
    ),
    (*break_group(compare(0, 3)), r"field comparisons\[0\]: .*0 with 3.*from 0 to 2"),
    (*break_group(compare(), compare(1, 1)), r"field comparisons\[1\]: .*1 with 1"),
    (*break_group(compare(-1, 1)), "-1 with 1"),
    (*break_group(compare(), compare(1, 0)), r"\[0, 1\] are compared twice"),
    (*break_group(compare(preference=1.01)), "preference: is 1.01"),
    (*break_group(compare(preference=float("nan"))), "preference: is nan"),
    (*break_group(compare(weight=-1.0)), "weight: is -1.0"),
    (*break_group(compare(weight=float("inf"))), "weight: is inf"),
    (*break_ranking(labeler=""), "field labeler: is empty"),
    (*break_ranking(tiers=(0, 1)), "2 tiers for 3 responses"),
    (*break_ranking(response_ids=("a", "a", "b")), "ranked twice"),
    (*break_ranking(tiers=(0, 2, 2)), "not contiguous"),
    (*break_ranking(tiers=(1, 2, 3)), "not contiguous"),
    (*break_ranking(tiers=(), response_ids=()), "not contiguous"),
]


@pytest.mark.parametrize(("kind", "record", "told"), UNUSABLE)
def test_unusable_record_is_refused_at_both_doors_and_leaves_nothing(tmp_path, kind, record, told):
    good = next(records[0] for k, records in EXAMPLES if k is kind)
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match=rf"t\.parquet, row 1, {told if 'field' in told else ''}"):
        write_records(path, [good, record], kind)
    assert list(tmp_path.iterdir()) == []
    # The same record in a file that another program wrote.
    rows = [asdict(good), asdict(record)]
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(kind)), path)
    with pytest.raises(DataError, match=told) as caught:
        read_records(path, kind)
    assert f"{path}, row 1, field" in str(caught.value)


def test_failed_write_keeps_the_file_that_was_there(tmp_path):
    path = tmp_path / "p.parquet"
    write_records(path, [a_prompt()], Prompt)
    before = path.read_bytes()
    with pytest.raises(DataError):
        write_records(path, [a_prompt(), replace(a_prompt(), id="")], Prompt)
    unstorable = replace(a_prompt(), source=7)
    with pytest.raises(pa.ArrowException):
        write_records(path, [unstorable], Prompt)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_crash_while_writing_leaves_no_partial_file(tmp_path, monkeypatch):
    path = tmp_path / "p.parquet"

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alignment.data.tables.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_records(path, [a_prompt()], Prompt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [Prompt, Demonstration, CandidateSet, Ranking])
def test_an_id_used_twice_names_both_rows(tmp_path, kind):
    record = next(records[0] for k, records in EXAMPLES if k is kind)
    with pytest.raises(DataError, match=r"row 1: the id '.1' is already used in row 0"):
        write_records(tmp_path / "t", [record, record], kind)


def test_nothing_to_write_is_refused(tmp_path):
    with pytest.raises(DataError, match="no Prompt records to write"):
        write_records(tmp_path / "p.parquet", [], Prompt)
    with pytest.raises(TypeError, match="row 0 is Ranking, not Prompt"):
        write_records(tmp_path / "p.parquet", EXAMPLES[3][1], Prompt)


def write_arrow(path, rows, schema=None):
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


MESSAGES = [{"role": "user", "content": "Why?"}]


def test_columns_of_another_program_are_read_with_our_defaults(tmp_path):
    rows = [
        {"id": "p", "messages": MESSAGES, "language": None, "score": 3},
        {"id": "q", "messages": MESSAGES, "language": "zh", "score": 4},
    ]
    prompts = read_records(write_arrow(tmp_path / "p", rows), Prompt)
    assert [(p.id, p.language, p.source) for p in prompts] == [("p", "en", ""), ("q", "zh", "")]


def test_other_widths_of_strings_and_numbers_are_read(tmp_path):
    responses = pa.list_(
        pa.struct({"id": pa.large_string(), "text": pa.string(), "token_ids": pa.list_(pa.int16())})
    )
    comparisons = pa.list_(
        pa.struct({"first": pa.int8(), "second": pa.int32(), "preference": pa.int8()})
    )
    prompt = pa.struct({"id": pa.string(), "messages": pa.large_list(MESSAGE_TYPE)})
    schema = pa.schema({"prompt": prompt, "responses": responses, "comparisons": comparisons})
    row = {
        "prompt": {"id": "p", "messages": MESSAGES},
        "responses": [{"id": "a", "text": "x", "token_ids": [1]}, {"id": "b", "text": "y"}],
        "comparisons": [{"first": 1, "second": 0, "preference": 1}],
    }
    (group,) = read_records(write_arrow(tmp_path / "g", [row], schema), PreferenceGroup)
    assert group.responses[0].token_ids == (1,)
    assert group.responses[1].token_ids == ()
    assert group.comparisons == (Comparison(first=1, second=0, preference=1.0),)
    assert type(group.comparisons[0].preference) is float


MESSAGE_TYPE = pa.struct({"role": pa.string(), "content": pa.string()})


GOOD = {"id": "good", "messages": MESSAGES}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"id": "p"}], "column 'messages' is missing; Prompt needs id, messages, the file has id"),
        ([GOOD, {"id": None, "messages": MESSAGES}], "row 1, field id: found nothing"),
        ([{"id": 7, "messages": MESSAGES}], "row 0, field id: found 7; accepted: .*type str"),
        (
            [GOOD, {"id": "p", "messages": [{"role": "bot", "content": "x"}]}],
            r"row 1, field messages\[0\]\.role: found 'bot'; accepted: 'system' or 'user'",
        ),
        (
            [GOOD, {"id": "p", "messages": [{"role": "user", "content": None}]}],
            r"row 1, field messages\[0\]\.content: found nothing",
        ),
        ([GOOD, {"id": "p", "messages": [None]}], r"row 1, field messages\[0\]: found nothing"),
        ([{"id": "p", "messages": "Why?"}], "row 0, field messages: found 'W.*accepted: a list"),
        ([{"id": "p", "messages": ["W"]}], r"row 0, field messages\[0\]: .*accepted: a struct"),
    ],
)
def test_unusable_columns_are_named(tmp_path, rows, told):
    with pytest.raises(DataError, match=told):
        read_records(write_arrow(tmp_path / "p", rows), Prompt)


def test_missing_struct_in_a_row_is_named(tmp_path):
    good = {"prompt": {"id": "p", "messages": MESSAGES}, "response": "x"}
    path = write_arrow(tmp_path / "d", [good, {"prompt": None, "response": "x"}])
    with pytest.raises(DataError, match="row 1, field prompt: found nothing"):
        read_records(path, Demonstration)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.parquet does not exist"):
        read_records(tmp_path / "none.parquet", Prompt)
    with pytest.raises(DataError, match="is not a file"):
        read_records(tmp_path, Prompt)
    empty = tmp_path / "empty.parquet"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.parquet is empty \(0 bytes\)"):
        read_records(empty, Prompt)
    whole = tmp_path / "whole.parquet"
    write_records(whole, [a_prompt()], Prompt)
    half = tmp_path / "half.parquet"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DataError, match=r"half\.parquet cannot be read as Parquet .*half-written"):
        read_records(half, Prompt)
    rowless = write_arrow(tmp_path / "rowless", [], arrow_schema(Prompt))
    with pytest.raises(DataError, match="rowless: the table has no rows"):
        read_records(rowless, Prompt)


def test_damaged_bytes_inside_a_file_are_refused(tmp_path):
    path = tmp_path / "p.parquet"
    write_records(path, [a_prompt(str(i), "x" * 300 + str(i)) for i in range(200)], Prompt)
    damaged = bytearray(path.read_bytes())
    damaged[40:400] = bytes(360)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"p\.parquet cannot be read as Parquet"):
        read_records(path, Prompt)


def test_another_record_or_schema_version_is_refused(tmp_path):
    path = tmp_path / "p.parquet"
    write_records(path, [a_prompt()], Prompt)
    with pytest.raises(DataError, match="holds Prompt records; Demonstration records are needed"):
        read_records(path, Demonstration)
    table = pq.read_table(path)
    newer = {**table.schema.metadata, b"alignflow.schema_version": b"99"}
    pq.write_table(table.replace_schema_metadata(newer), path)
    with pytest.raises(DataError, match="schema version 99; this alignflow reads 1"):
        read_records(path, Prompt)
