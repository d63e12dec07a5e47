"""How the rounds of a run compare: each one's policy against the SFT model."""

import re
from collections.abc import Mapping

from alignment.evaluation.policy_comparison import GOLD, REWARD
from flows.report.charts import Limit, curve
from flows.report.inputs import ReportInputs
from flows.report.markup import Content, Html, minus, section, table, tag
from flows.report.wording import number
from flows.rounds import COMPARED
from flows.summary import Target

_NAME = re.compile(r"round_(\d+)/gain/(.+)")
_HEADINGS = {
    GOLD: "Gold gain, simulated",
    REWARD: "Own reward model's gain",
    "kl_nats": "KL to SFT, nats",
    "response_words": "Words",
    "eos_rate": "EOS rate",
}
_DRAWN = (GOLD, "kl_nats")


def rounds_section(inputs: ReportInputs) -> Html | None:
    """A table with a row a round, and gold and KL as curves; None for a single round."""
    rounds = _by_round(inputs.summary.targets if inputs.summary else {})
    if not rounds:
        return None
    shown = [name for name in COMPARED if any(name in figures for figures in rounds.values())]
    return section(
        "rounds",
        "Rounds",
        "Each round's policy minus the SFT model on held-out prompts, with 95% intervals. Every "
        "round has its own reward model, so scores of different rounds do not compare; gold does.",
        tag(
            "div",
            *(_plot(name, rounds) for name in _DRAWN if name in shown),
            class_="plots",
        ),
        table(
            ("Round", *(_HEADINGS[name] for name in shown)),
            [
                (str(n), *(_cell(figures.get(name)) for name in shown))
                for n, figures in rounds.items()
            ],
        ),
    )


def _by_round(targets: Mapping[str, Target]) -> dict[int, dict[str, Target]]:
    rounds: dict[int, dict[str, Target]] = {}
    for name, target in targets.items():
        if found := _NAME.fullmatch(name):
            rounds.setdefault(int(found[1]), {})[found[2]] = target
    return dict(sorted(rounds.items()))


def _plot(name: str, rounds: Mapping[int, Mapping[str, Target]]) -> Html:
    values = [figures[name].value if name in figures else None for figures in rounds.values()]
    return tag(
        "figure",
        tag("figcaption", tag("b", f"{_HEADINGS[name]} by round")),
        curve(list(rounds), values, label=f"{name} by round", limit=Limit(value=0.0, label="SFT")),
    )


def _cell(target: Target | None) -> Content:
    if target is None or target.low is None or target.high is None:
        return "–"
    return tag(
        "span",
        minus(f"{target.value:+.3g}"),
        tag("small", minus(f" {number(target.low)} to {number(target.high)}")),
    )
