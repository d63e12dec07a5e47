"""`alignflow label publish | rounds | invite | export`, from candidates to training tables."""

import json

import pytest

from alignment.data.tables import read_records, write_records
from alignment.records import CandidateSet, Message, PreferenceGroup, Prompt, Response
from flows.cli import main
from labeling_ui.store import LabelStore


@pytest.fixture
def candidates(tmp_path):
    sets = [
        CandidateSet(
            prompt=Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Why {i}?"),)),
            responses=tuple(Response(id=f"p{i}-{k}", text=f"text {i}.{k}") for k in range(3)),
        )
        for i in range(8)
    ]
    path = tmp_path / "candidates.parquet"
    write_records(path, sets, CandidateSet)
    return path


def test_from_candidates_to_what_reward_model_training_reads(tmp_path, candidates, capsys):
    place = ["--database", str(tmp_path / "labels.sqlite")]
    assert main(["label", "publish", str(candidates), "--name", "mine", *place]) == 0
    round_id = capsys.readouterr().out.split()[1].rstrip(":")
    with LabelStore.open(tmp_path / "labels.sqlite") as labels:
        while card := labels.claim(round_id, "Ada"):
            best_first = sorted(range(3), key=lambda k: card.responses[k].text)
            tiers = [best_first.index(k) for k in range(3)]
            labels.submit(
                card.assignment_id,
                "Ada",
                submission_id=f"submission-{card.task_id}",
                tiers=tiers,
            )
    assert main(["label", "rounds", *place]) == 0
    assert "8 of 8 rankings, 1 labelers  mine" in capsys.readouterr().out
    out = tmp_path / "out"
    export = ["label", "export", round_id, "--out", str(out), "--heldout-share", "0.4", *place]
    assert main(export) == 0
    train = read_records(out / "preference_groups.parquet", PreferenceGroup)
    heldout = read_records(out / "heldout_preference_groups.parquet", PreferenceGroup)
    ids = [group.prompt.id for group in (*train, *heldout)]
    assert sorted(ids) == [f"p{i}" for i in range(8)]
    assert all(c.preference == 1 for group in train for c in group.comparisons)
    assert main(export) == 1  # never into a folder that has something in it
    assert "is not empty" in capsys.readouterr().err


def test_an_invitation_is_printed(tmp_path, capsys):
    place = ["--database", str(tmp_path / "labels.sqlite")]
    assert main(["label", "invite", "Ada", "--role", "lead", *place]) == 0
    assert capsys.readouterr().out.startswith("/join?key=")


def test_a_store_without_rounds_is_told(tmp_path, capsys):
    assert main(["label", "rounds", "--store", str(tmp_path / "none")]) == 1
    assert "no round was published there" in capsys.readouterr().err


def test_votes_come_in_and_their_agreement_is_told(tmp_path, capsys):
    votes = tmp_path / "votes.jsonl"
    lines = [
        {"judge": judge, "model_a": "m", "model_b": "n", "question_id": q, "turn": 1, "winner": won}
        for q, winners in enumerate([("model_a", "model_a"), ("model_b", "model_b"), ("tie",) * 2])
        for judge, won in zip(("ann", "bob"), winners, strict=True)
    ]
    votes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    place = ["--database", str(tmp_path / "labels.sqlite")]
    assert main(["label", "import", "mt-bench", str(votes), *place]) == 0
    told = capsys.readouterr().out
    assert "6 rankings of 3 prompts by 2 labelers" in told
    round_id = told.split()[1].rstrip(":")
    assert main(["label", "agreement", round_id, *place]) == 0
    told = capsys.readouterr().out
    assert "alpha, ordinal  1.000" in told
    assert "Cohen's kappa 1.000, imported-1 and imported-2, 3 pairs" in told
    assert main(["label", "export", round_id, "--out", str(tmp_path / "out"), *place]) == 0
    assert "no preference_groups" in capsys.readouterr().out
    votes.write_text(json.dumps(lines[0] | {"winner": "nobody"}))
    assert main(["label", "import", "mt-bench", str(votes), *place]) == 1
    assert "line 1: field winner: Input should be 'model_a'" in capsys.readouterr().err


def test_the_simulated_panel_ranks_a_table(tmp_path, candidates, capsys):
    place = ["--database", str(tmp_path / "labels.sqlite")]
    simulate = ["label", "simulate", str(candidates), "--labelers", "4", "--overlap", "2", *place]
    assert main([*simulate, "--publish-only"]) == 0
    assert "0 of 16 rankings by 0 simulated labelers" in capsys.readouterr().out
    assert main([*simulate, "--seed", "0"]) == 0
    assert "16 of 16 rankings by 4 simulated labelers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either a candidates FILE or the --url of a served page"),
        (["--url", "http://labels.example/"], "is not on this machine"),
        (["--url", "http://127.0.0.1:9/", "--seconds", "9000"], "9000.0 seconds"),
        (["--url", "http://127.0.0.1:9/", "--labelers", "90"], "at most 64 drive a page"),
        (["--url", "http://127.0.0.1:9/", "--labelers", "0"], "the panel cannot be"),
    ],
)
def test_simulations_that_are_refused(arguments, message, tmp_path, capsys):
    assert main(["label", "simulate", *arguments, "--store", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_candidates_that_nobody_could_rank_are_told(tmp_path, capsys):
    question = Prompt(id="p", messages=(Message(role="user", content="Why?"),))
    alone = CandidateSet(prompt=question, responses=(Response(id="a", text="x"),))
    path = tmp_path / "candidates.parquet"
    write_records(path, [alone], CandidateSet)
    place = ["--database", str(tmp_path / "labels.sqlite")]
    assert main(["label", "publish", str(path), *place]) == 1
    assert "prompt 'p' has 1 response(s); a person can rank 2 to 9" in capsys.readouterr().err
    assert main(["label", "rounds", *place]) == 0
    assert capsys.readouterr().out == ""
