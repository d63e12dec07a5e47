"""How far the judges can be trusted: the reward model, the rubric, and whoever ranked."""

from collections.abc import Iterator

from alignment.evaluation.gold_correlation import GoldCorrelation
from alignment.evaluation.label_statistics import LabelStatistics
from alignment.evaluation.pair_accuracy import PairAccuracy
from alignment.evaluation.result import EvaluationResult
from alignment.statistics.bootstrap import Interval
from flows.report.charts import IntervalRow, interval_chart, legend
from flows.report.inputs import ReportInputs
from flows.report.markup import Content, Html, minus, section, table, tag
from flows.report.wording import bounds_of, readable, signed, value_of


def judges_section(inputs: ReportInputs) -> Html | None:
    """Reward-model accuracy against the length baseline, labeler agreement, gold's correlations."""
    result = inputs.evaluation
    if result is None:
        return None
    parts = [
        *(_accuracy(result) or _not_measured()),
        *(_labels(result.labels, simulated=inputs.simulated) if result.labels else ()),
        *(_correlations(result.gold_correlations) if result.gold_correlations else ()),
    ]
    return section(
        "judges",
        "The judges",
        "A reward model is worth something if it orders pairs right more often than the rule "
        "“the shorter one is better” does on the very same pairs.",
        *parts,
    )


def _not_measured() -> list[Html]:
    return [
        tag(
            "p",
            "The reward model's accuracy was not measured: without a rubric that takes "
            "cross-validation, setting reward_model.folds.",
        )
    ]


def _accuracy(result: EvaluationResult) -> list[Html]:
    return list(_accuracy_parts(result))


def _accuracy_parts(result: EvaluationResult) -> Iterator[Html]:
    named: dict[str, PairAccuracy | None] = {}
    if result.reward_model is not None:
        named["all pairs"] = result.reward_model.all_pairs
        named["without probes"] = result.reward_model.sampled_pairs
    if result.cross_validated is not None:
        named["people's pairs"] = result.cross_validated.pooled
    accuracies = {name: accuracy for name, accuracy in named.items() if accuracy is not None}
    if not accuracies:
        return
    yield tag("h3", "Reward-model accuracy")
    yield tag(
        "figure",
        tag(
            "figcaption",
            tag("b", "Pairs ordered right"),
            legend("shorter wins", "reward model"),
            tag("small", "share of held-out pairs; the dashed line is guessing"),
        ),
        interval_chart(
            [
                IntervalRow(label=name, before=a.length_baseline, after=a.accuracy)
                for name, a in accuracies.items()
            ],
            label="reward-model accuracy against the length baseline",
            reference=0.5,
        ),
        class_="wide",
    )
    yield table(
        ("Pairs", "Reward model", "Shorter wins", "Difference", "95% interval", "n"),
        [_accuracy_row(name, accuracy) for name, accuracy in accuracies.items()],
        caption="Probes are deliberately poor candidates: one cut off, one to another prompt."
        if result.reward_model is not None
        else "The pairs that people ranked, each scored by a model that never saw its prompt.",
    )
    if result.cross_validated is not None:
        folds = ", ".join(f"{share:.3f}" for share in result.cross_validated.by_fold.values())
        yield tag("p", f"By fold, people's pairs: {folds}.", class_="how")


def _accuracy_row(name: str, accuracy: PairAccuracy) -> list[Content]:
    return [
        name,
        f"{value_of(accuracy.accuracy)} ({bounds_of(accuracy.accuracy)})",
        f"{value_of(accuracy.length_baseline)} ({bounds_of(accuracy.length_baseline)})",
        tag("b" if accuracy.difference.low > 0 else "span", signed(accuracy.difference)),
        bounds_of(accuracy.difference),
        f"{accuracy.accuracy.n:,} pairs of {accuracy.accuracy.clusters} prompts",
    ]


def _labels(labels: LabelStatistics, *, simulated: bool) -> Iterator[Html]:
    who = "the SIMULATED panel" if simulated else "people"
    yield tag("h3", f"Rankings by {who}")
    agreement = f" Pairwise agreement {_share(labels.agreement)}." if labels.agreement else ""
    yield tag(
        "p",
        f"{labels.rankings:,} rankings of {labels.responses:,} responses to {labels.prompts:,} "
        f"prompts; {labels.tie_share:.1%} of pairs tied.{agreement}",
    )
    against_gold = any(labeler.gold_agreement for labeler in labels.labelers)
    headings = ("Labeler", "Rankings", "Ties", "Agrees with the others")
    yield table(
        (*headings, "Agrees with gold") if against_gold else headings,
        [
            [
                labeler.name,
                f"{labeler.rankings:,}",
                f"{labeler.tie_share:.1%}",
                _share(labeler.agreement),
                *([_share(labeler.gold_agreement)] if against_gold else ()),
            ]
            for labeler in labels.labelers
        ],
        caption="Share of response pairs, a tie on one side counting half; 0.5 is chance.",
    )


def _share(interval: Interval | None) -> str:
    return f"{value_of(interval)} ({bounds_of(interval)})" if interval else "–"


def _correlations(correlations: tuple[GoldCorrelation, ...]) -> Iterator[Html]:
    yield tag("h3", "Is gold more than one surface feature?")
    yield table(
        ("Feature", "Correlation with gold"),
        [
            [
                readable(c.feature.replace("/", ": ")),
                minus(f"{c.pearson:+.2f}") if c.pearson is not None else "does not vary",
            ]
            for c in correlations
        ],
        caption=f"Pearson, over {correlations[0].n:,} SFT candidates; |correlation| near 1 would "
        "mean that the feature alone gives gold away.",
    )
