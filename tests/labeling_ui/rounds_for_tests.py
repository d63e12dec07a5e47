"""Candidates and labelers for the label service's tests."""

from alignment.records import CandidateSet, Message, Prompt, Response


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def make_candidates(prompts=2, responses=3):
    """Candidate sets whose texts name prompt and response, e.g. 'text 1.2'."""
    return [
        CandidateSet(
            prompt=Prompt(
                id=f"p{i}", messages=(Message(role="user", content=f"Question number {i}?"),)
            ),
            responses=tuple(
                Response(id=f"p{i}-r{k}", text=f"text {i}.{k}", origin=f"secret-model-{k}")
                for k in range(responses)
            ),
        )
        for i in range(prompts)
    ]


def submission(store, card, labeler, submission_id, tiers=None):
    """Submits, by default from first to last as displayed."""
    tiers = list(range(len(card.responses))) if tiers is None else tiers
    return store.submit(card.assignment_id, labeler, submission_id=submission_id, tiers=tiers)


def rank_everything(store, round_id, labelers):
    """Each labeler ranks all they get; returns the assignments in order."""
    assignments = []
    for labeler in labelers:
        while (card := store.claim(round_id, labeler)) is not None:
            submission(store, card, labeler, f"{labeler}-{card.task_id}")
            assignments.append((labeler, card.task_id))
    return assignments
