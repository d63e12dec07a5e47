"""Rankings of real labelers through the database, and files that are refused."""

import gzip
import json
import os
from pathlib import Path

import pytest

from alignment.errors import DataError, LabelError, StoreError
from labeling_ui.opinions import read_opinions
from labeling_ui.parquet_export import ExportFilter, candidates_and_rankings, export_round
from labeling_ui.quality import round_quality
from labeling_ui.ranking_files import read_ranking_file
from labeling_ui.ranking_import import import_rankings
from labeling_ui.round_agreement import round_agreement
from labeling_ui.store import LabelStore

# Krippendorff 2011, section C: four observers, twelve units; nominal .743, ordinal .815,
# interval .849.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


@pytest.fixture(scope="module")
def data():
    folder = os.environ.get("ALIGNFLOW_TEST_DATA")
    if folder is None:
        pytest.skip("ALIGNFLOW_TEST_DATA is not set: rankings of real labelers are not available")
    return Path(folder)


def taken_in(store, path, form):
    file = read_ranking_file(path, form)
    status = import_rankings(store, file, name="study", actor="test")
    return file, status


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def ranked(prompt_id="p0", labelers=("a", "b"), **change):
    return {
        "prompt_id": prompt_id,
        "prompt": "Why?",
        "responses": [{"id": "x", "text": "one"}, {"id": "y", "text": "two"}],
        "rankings": [{"labeler": name, "tiers": [0, 1]} for name in labelers],
    } | change


def said(strength):
    """A ranking of x and y in which x is better by `strength`, which may be negative."""
    if strength == 0:
        return {"tiers": [0, 0]}
    return {"tiers": [0, 1] if strength > 0 else [1, 0], "gaps": [abs(strength)]}


def coefficients(store, tmp_path, coders, middle):
    """Alphas of published ratings that went through a file and the database as strengths."""
    records = []
    for unit in range(len(coders[0])):
        given = [
            {"labeler": f"coder {n}"} | said(row[unit] - middle)
            for n, row in enumerate(coders)
            if row[unit] is not None
        ]
        if given:
            records.append(ranked(f"unit {unit}", rankings=given))
    path = write_lines(tmp_path / "published.jsonl", records)
    _, status = taken_in(store, path, "rankings")
    return round_agreement(read_opinions(store, status.round_id)).alpha


def test_alpha_of_the_published_example_comes_out_of_the_database(store, tmp_path):
    alpha = coefficients(store, tmp_path, OBSERVERS, 3)
    for level, published in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        assert alpha[level].value == pytest.approx(published, abs=5e-4)


def test_alphas_of_the_reference_cases_come_out_of_the_database(store, tmp_path, data):
    cases = json.loads((data / "reference" / "krippendorff_published.json").read_text())
    for case in cases:
        alpha = coefficients(store, tmp_path, case["rows_are_coders"], 1)
        for level, published in case["alpha"].items():
            assert alpha[level].value == pytest.approx(published, abs=5e-4), case["name"]


@pytest.mark.engines
def test_votes_of_65_judges(store, data):
    """Expected values: the packages krippendorff 0.9.0 and statsmodels 0.15.0 on the file."""
    path = data / "annotators" / "mt_bench_human_votes_a.jsonl"
    file, status = taken_in(store, path, "mt-bench")
    assert (status.rankings_done, status.tasks, status.labelers) == (1687, 922, 65)
    assert (status.state, status.complete, file.texts) == ("frozen", True, False)
    opinions = read_opinions(store, status.round_id)
    found = round_agreement(opinions)
    for level, expected in (("nominal", 0.513581), ("ordinal", 0.606572), ("interval", 0.605993)):
        assert found.alpha[level].value == pytest.approx(expected, abs=1e-6)
        assert found.alpha[level].n == 491
    assert (found.fleiss_raters, found.fleiss_pairs) == (2, 291)
    assert found.fleiss == pytest.approx(0.558071, abs=1e-6)
    most = sorted(found.cohen, key=lambda pair: -pair.pairs)[:2]
    assert sorted((pair.pairs, round(pair.kappa, 6)) for pair in most) == [
        (26, 0.530474),
        (26, 0.657895),
    ]
    assert round_quality(opinions).alpha == found.alpha["ordinal"]
    with pytest.raises(LabelError, match="without the texts"):
        candidates_and_rankings(store, status.round_id, ExportFilter())


def test_three_annotators_of_each_pair(store, data):
    path = data / "annotators" / "pandalm_3_annotators_a.json"
    _, status = taken_in(store, path, "pandalm")
    assert (status.rankings_done, status.tasks, status.labelers) == (1479, 493, 3)
    found = round_agreement(read_opinions(store, status.round_id))
    for level, expected in (("nominal", 0.845883), ("ordinal", 0.863654), ("interval", 0.863371)):
        assert found.alpha[level].value == pytest.approx(expected, abs=1e-6)
    assert found.fleiss == pytest.approx(0.845778, abs=1e-6)
    kappas = [pair.kappa for pair in found.cohen]
    assert kappas == pytest.approx([0.837203, 0.850355, 0.849918], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "sets", "pairs", "left_out"),
    [
        ("oasst_en_trees_a.jsonl", 110, 380, {"sets of replies without ranks": 2}),
        (
            "oasst2_multilingual_a.trees.jsonl.gz",
            92,  # and 3 sets of a pair each in trees that the file holds twice: 95 and 233
            230,
            {
                "sets of replies without ranks": 12,
                "sets of replies ranked in part": 15,
                "sets of replies that came before, unchanged": 3,
            },
        ),
    ],
)
def test_trees_of_ranked_replies(store, data, name, sets, pairs, left_out):
    file, status = taken_in(store, data / "ranking" / name, "oasst")
    assert status.tasks == status.rankings_done == sets
    assert file.left_out == left_out
    opinions = read_opinions(store, status.round_id)
    assert sum(len(opinion.pairs()) for opinion in opinions) == pairs
    candidates, rankings = candidates_and_rankings(store, status.round_id, ExportFilter())
    assert len(candidates) == len(rankings) == sets
    assert all(c.prompt.messages[-1].role == "user" for c in candidates)


def test_the_same_file_again_is_the_same_round_and_names_stay_inside(store, tmp_path):
    path = write_lines(tmp_path / "r.jsonl", [ranked(), ranked("p1", ("b", "Ann Smith"))])
    _, first = taken_in(store, path, "rankings")
    _, again = taken_in(store, path, "rankings")
    assert first == again
    assert len(store.rounds()) == 1
    export_round(store, first.round_id, tmp_path / "out", ExportFilter())
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir())
    assert b"Ann" not in written
    assert {r.labeler for r in store.rankings(first.round_id)} == {
        "imported-1",
        "imported-2",
        "imported-3",
    }
    with pytest.raises(LabelError, match="belongs to an import"):
        store.claim(first.round_id, "Ada")


def test_what_was_shown_where_is_kept(store, tmp_path):
    saying = {"labeler": "a", "tiers": [0, 1], "shown": ["y", "x"], "active_seconds": 2.5}
    _, status = taken_in(
        store, write_lines(tmp_path / "r.jsonl", [ranked(rankings=[saying])]), "rankings"
    )
    (opinion,) = read_opinions(store, status.round_id)
    assert (opinion.response_ids, opinion.tiers, opinion.shown) == (("x", "y"), (0, 1), (1, 0))
    assert opinion.active_seconds == 2.5


BAD = [
    ("{", "line 2: not JSON"),
    (ranked("p0"), "line 2: field prompt_id: 'p0' came before"),
    (ranked("q", extra=1), "line 2: field extra: Extra inputs"),
    (ranked("q", responses=[{"id": "x", "text": "one"}]), "line 2: field responses: List should"),
    (
        ranked("q", responses=[{"id": "x", "text": "1"}, {"id": "x", "text": "2"}]),
        "line 2: prompt 'q' has response ids that are empty or appear twice",
    ),
    (ranked("q", rankings=[]), "line 2: field rankings: List should have at least 1"),
    (ranked("q", rankings=[{"labeler": "a", "tiers": [0, 2]}]), "field rankings.0: tiers [0, 2]"),
    (ranked("q", rankings=[{"labeler": "a", "tiers": [0, 1, 2]}]), "has 3 tiers"),
    (ranked("q", labelers=("a", "a")), "field rankings.1.labeler: 'a' has ranked"),
    (ranked("q", labelers=("a\u202e",)), "field rankings.0.labeler: 'a\\u202e' has control"),
    (ranked("q", labelers=("",)), "field rankings.0.labeler: String should have at least 1"),
    (
        ranked("q", rankings=[{"labeler": "a", "tiers": [0, 1], "shown": ["x", "z"]}]),
        "field rankings.0.shown: ['x', 'z'] are not",
    ),
    (ranked("q", prompt="\ud800"), "prompt 'q', message 0 is not valid Unicode"),
    (ranked("q", prompt=None), "give either prompt or messages"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_bad_records_are_refused_with_line_and_field(tmp_path, record, message):
    text = record if isinstance(record, str) else json.dumps(record)
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ranked()) + "\n" + text + "\n")
    with pytest.raises(DataError) as error:
        read_ranking_file(path, "rankings")
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_many_bad_records_are_told_at_once(tmp_path):
    path = write_lines(tmp_path / "bad.jsonl", [{"prompt_id": str(n)} for n in range(30)])
    with pytest.raises(DataError, match=r"(?s)line 1: field responses.*and 40 more") as error:
        read_ranking_file(path, "rankings")
    assert len(str(error.value).splitlines()) == 22


def test_unreadable_files_and_unknown_forms(tmp_path):
    path = tmp_path / "broken.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}" * 1000)[:20])
    with pytest.raises(DataError, match="cannot be read"):
        read_ranking_file(path, "rankings")
    path.write_bytes(b'{"a": 1}\n\xff\xfe\n')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_ranking_file(path, "rankings")
    path.write_bytes(b"\n")
    with pytest.raises(DataError, match=r"holds no rankings .*no records"):
        read_ranking_file(path, "rankings")
    with pytest.raises(DataError, match="accepted: rankings, oasst, mt-bench, pandalm"):
        read_ranking_file(path, "csv")


def test_an_import_that_fails_half_way_leaves_nothing(store, tmp_path, monkeypatch):
    path = write_lines(tmp_path / "r.jsonl", [ranked(), ranked("p1")])

    def broken(*_):
        raise StoreError("disk full")

    monkeypatch.setattr("labeling_ui.ranking_import.rankings_digest", broken)
    with pytest.raises(StoreError):
        taken_in(store, path, "rankings")
    assert store.rounds() == []
    monkeypatch.undo()
    assert taken_in(store, path, "rankings")[1].rankings_done == 4


def test_imported_rankings_open_like_any_database(store_path, tmp_path):
    path = write_lines(tmp_path / "r.jsonl", [ranked()])
    with LabelStore.open(store_path) as store:
        _, status = taken_in(store, path, "rankings")
    with LabelStore.open(store_path) as store:
        assert store.progress(status.round_id).frozen_digest == status.frozen_digest
