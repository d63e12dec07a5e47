import json

import pyarrow.parquet as pq
import pytest
from rounds_for_tests import make_candidates, rank_everything

from alignment.errors import LabelError
from labeling_ui.checks import attention_items
from labeling_ui.judgement import Judgement, RoundSettings
from labeling_ui.opinions import read_opinions, signed_strength
from labeling_ui.parquet_export import (
    ExportFilter,
    candidates_and_rankings,
    export_round,
    split_of,
)


def ranked_round(store, prompts=12):
    candidates = make_candidates(prompts)
    settings = RoundSettings(attention_share=0.3)
    checks = attention_items(candidates, 4)
    round_id = store.publish_round(
        candidates, rankings_per_prompt=2, settings=settings, checks=checks
    ).round_id
    rank_everything(store, round_id, ["Ada", "Bob"])
    return round_id


def test_the_same_filter_gives_the_same_bytes(tmp_path, store):
    round_id = ranked_round(store)
    chosen = ExportFilter()
    export_round(store, round_id, tmp_path / "a", chosen)
    export_round(store, round_id, tmp_path / "b", chosen)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "annotations.parquet",
        "comparisons.parquet",
        "consensus.parquet",
        "labelers.parquet",
        "manifest.json",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    export_round(store, round_id, tmp_path / "c", ExportFilter(seed=1))
    assert (tmp_path / "a" / names[1]).read_bytes() != (tmp_path / "c" / names[1]).read_bytes()


def test_what_leaves_and_what_does_not(tmp_path, store):
    round_id = ranked_round(store)
    manifest = export_round(store, round_id, tmp_path / "out", ExportFilter(heldout_share=0.3))
    annotations = pq.read_table(tmp_path / "out" / "annotations.parquet").to_pylist()
    assert {row["kind"] for row in annotations} == {"main", "attention"}
    comparisons = pq.read_table(tmp_path / "out" / "comparisons.parquet").to_pylist()
    assert len(comparisons) == manifest["files"]["comparisons"]["rows"] == 12 * 2 * 3
    assert not any("attention" in row["group_id"] for row in comparisons)
    splits = {}
    for row in comparisons:
        splits.setdefault(row["group_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "heldout"}
    per_annotation = {}
    for row in comparisons:
        per_annotation[row["annotation_id"]] = (
            per_annotation.get(row["annotation_id"], 0) + row["weight"]
        )
    assert all(total == pytest.approx(1) for total in per_annotation.values())
    people = {row["labeler"] for row in [*annotations, *comparisons]}
    assert people == {"person-1", "person-2"}
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest


def test_a_labeler_can_be_left_out(tmp_path, store):
    round_id = ranked_round(store)
    export_round(store, round_id, tmp_path / "out", ExportFilter(without=("person-1",)))
    rows = pq.read_table(tmp_path / "out" / "labelers.parquet").to_pylist()
    assert [row["labeler"] for row in rows] == ["person-2"]
    chosen = ExportFilter(without=("person-1", "person-2"))
    with pytest.raises(LabelError, match="no rankings by anyone"):
        export_round(store, round_id, tmp_path / "none", chosen)
    with pytest.raises(LabelError, match="is not empty"):
        export_round(store, round_id, tmp_path / "out", ExportFilter())


def test_reward_model_training_takes_it_as_it_is(store):
    from alignment.statistics.consensus import consensus

    round_id = ranked_round(store)
    candidates, rankings = candidates_and_rankings(store, round_id, ExportFilter())
    groups = consensus(candidates, rankings)
    assert [group.prompt.id for group in groups] == [f"p{i}" for i in range(12)]
    assert [r.text for r in groups[3].responses] == ["text 3.0", "text 3.1", "text 3.2"]


@pytest.mark.parametrize(
    ("gaps", "above", "below", "strength"),
    [
        ((), 0, 1, 1),
        ((), 2, 0, -2),
        ((3,), 0, 1, 3),
        ((2, None), 0, 2, 3),
        ((1, 1, 1, 1), 0, 4, 3),
        ((2, 1), 1, 1, 0),
    ],
)
def test_strength_of_a_pair_is_the_sum_of_the_gaps_between(gaps, above, below, strength):
    assert signed_strength(gaps, above, below) == strength


def test_an_opinion_is_in_published_order(store):
    round_id = store.publish_round(make_candidates(1), rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")
    place = {r.text: k for k, r in enumerate(card.responses)}
    tiers = [0, 0, 0]
    for text, tier in {"text 0.0": 2, "text 0.1": 0, "text 0.2": 1}.items():
        tiers[place[text]] = tier
    flags = ((place["text 0.2"], "hate"),)
    judgement = Judgement(tiers=tuple(tiers), gaps=(1, 2), bar=2, flags=flags)
    store.submit(card.assignment_id, "Ada", submission_id="submission-1", judgement=judgement)
    (opinion,) = read_opinions(store, round_id)
    assert opinion.tiers == (2, 0, 1)
    assert opinion.strengths == ((0, -3, -2), (3, 0, 1), (2, -1, 0))
    assert opinion.rejected == (True, False, False)
    assert opinion.unsafe == ("", "", "hate")


def test_split_keeps_its_share():
    chosen = ExportFilter(heldout_share=0.2, seed=3)
    found = [split_of(f"p{n}", chosen) for n in range(2000)]
    assert 340 < found.count("heldout") < 460
