"""What one round of ranking and training leaves, and the rows that compare rounds.

A round ranks responses of the newest policy and of the one it came from, to prompts that no other
round has used; trains the reward model on all rankings so far, from where it was; and trains the
policy on. KL is measured from the SFT model throughout, and each round is judged against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from alignment.evaluation.policy_comparison import GOLD, REWARD
from alignment.evaluation.result import read_evaluation
from alignment.statistics.bootstrap import Interval
from flows.manifest import Artifact
from flows.stages.evaluation import RESULT


@dataclass(frozen=True, kw_only=True)
class Round:
    """The artifacts of a finished round; `ranked` is None where rankings are imported."""

    ranked: Artifact | None
    rankings: Artifact
    judge: Artifact
    policy: Artifact
    verdict: Artifact

    @property
    def stages(self) -> tuple[Artifact, ...]:
        """All of them, in the order of their making."""
        made = (self.ranked, self.rankings, self.judge, self.policy, self.verdict)
        return tuple(artifact for artifact in made if artifact is not None)


def round_figures(rounds: Sequence[Round]) -> dict[str, tuple[Interval, str]]:
    """By name, e.g. `round_2/gain/gold`: how each round's policy differs from the SFT model.

    Empty for a single round. The reward-model score is each round's own model's.
    """
    figures: dict[str, tuple[Interval, str]] = {}
    for number, done in enumerate(rounds if len(rounds) > 1 else (), start=1):
        differences = read_evaluation(done.verdict.path(RESULT)).headline.difference
        for name in COMPARED:
            if name in differences:
                about = f"the policy of round {number} minus SFT, paired by prompt"
                figures[f"round_{number}/gain/{name}"] = (differences[name], about)
    return figures


COMPARED = (GOLD, REWARD, "kl_nats", "response_words", "eos_rate")
"""Quantities worth comparing between rounds."""
