"""What a lead is told who publishes a round from a file, by the desk behind the page."""

import pytest
from rounds_for_tests import make_candidates, rank_everything
from sqlalchemy import func, select

from alignment.data.tables import write_records
from alignment.errors import AlignmentError
from alignment.records import CandidateSet, Response
from labeling_ui import schema

pytestmark = pytest.mark.engines  # imports Gradio: seconds

FORM = {
    "source": "run/candidates.parquet",
    "name": "second",
    "overlap": 2,
    "gold_share": 0.0,
    "attention_share": 0.05,
    "repeat_share": 0.05,
    "gold_round": None,
    "strength": "optional",
    "rationale": "off",
    "criteria": "helpful, correct",
    "minutes": 20,
}


@pytest.fixture
def visitor():
    from labeling_ui.lead_page.wiring import Visitor
    from labeling_ui.lead_page.words import translator

    return Visitor("boss", translator("en"), "http://site")


@pytest.fixture
def desk(store, tmp_path):
    from labeling_ui.lead_page.publish_desk import PublishDesk

    keep(tmp_path, make_candidates(6, 3))
    return PublishDesk(store, tmp_path / "store")


def keep(tmp_path, candidates):
    folder = tmp_path / "store" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "candidates.parquet", candidates, CandidateSet)


def test_a_round_with_checks(store, desk, visitor):
    settled = store.publish_round(
        [c for c in make_candidates(12, 3) if c.prompt.id not in {f"p{i}" for i in range(6)}],
        rankings_per_prompt=2,
    ).round_id
    rank_everything(store, settled, ["Ada"])
    while (card := store.claim(settled, "Bob")) is not None:
        tiers = [[0, 1, 2][int(r.text[-1])] for r in card.responses]
        store.submit(card.assignment_id, "Bob", submission_id=f"b-{card.task_id}", tiers=tiers)
    store.freeze(settled)
    told = desk.publish(visitor, *(FORM | {"gold_share": 0.2, "gold_round": settled}).values())
    assert "Published second: 12 rankings of 6 prompts, 3 checks beside them." in told
    again = desk.publish(visitor, *(FORM | {"gold_share": 0.2, "gold_round": settled}).values())
    assert "were a round already" in again
    (second,) = (r.round_id for r in store.rounds() if r.round_id != settled)
    with store.read() as connection:
        kinds = dict(
            connection.execute(
                select(schema.task.c.kind, func.count())
                .where(schema.task.c.round_id == second)
                .group_by(schema.task.c.kind)
            ).all()
        )
    assert (kinds["main"], kinds["gold"], kinds["attention"]) == (6, 2, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"source": "../../etc/passwd"}, "none of those listed"),
        ({"source": None}, "choose a candidates file"),
        ({"overlap": 0}, "rankings"),
        ({"gold_share": 0.1}, "no settled round is chosen"),
        ({"gold_share": 0.3, "repeat_share": 0.3}, "sum to more than 0.5"),
        ({"strength": "maybe"}, "accepted: off, optional, required"),
        ({"criteria": "a,b,c,d,e,f,g"}, "at most 6"),
        ({"minutes": 0}, "between 10 and 86400 seconds"),
    ],
)
def test_forms_that_are_refused(store, desk, visitor, change, told):
    with pytest.raises(AlignmentError, match=told):
        desk.publish(visitor, *(FORM | change).values())
    assert store.rounds() == []


def test_files_that_cannot_be_ranked(store, desk, visitor, tmp_path):
    one = make_candidates(2, 2)
    alone = CandidateSet(prompt=one[0].prompt, responses=one[0].responses[:1])
    keep(tmp_path, [alone, one[1]])
    with pytest.raises(AlignmentError, match="'p0' has 1 response"):
        desk.publish(visitor, *FORM.values())
    path = tmp_path / "store" / "run" / "candidates.parquet"
    path.write_bytes(b"PAR1 torn")
    assert "? prompts" in str(desk.sources(visitor)[1].choices)
    with pytest.raises(AlignmentError, match=r"candidates\.parquet"):
        desk.publish(visitor, *FORM.values())
    assert store.rounds() == []


def test_strange_responses_are_published_as_they_are(store, desk, visitor, tmp_path):
    """The same text twice, 60,000 characters, control and bidi characters: shown, not refused."""
    base = make_candidates(1, 2)[0]
    odd = ["same", "same", "x" * 60_000, "\u202ebidi\x00"]
    responses = tuple(Response(id=f"r{k}", text=text) for k, text in enumerate(odd))
    keep(tmp_path, [CandidateSet(prompt=base.prompt, responses=responses)])
    desk.publish(visitor, *FORM.values())
    card = store.claim(store.rounds()[0].round_id, "Ada")
    assert sorted(len(r.text) for r in card.responses) == [4, 6, 60_000]
