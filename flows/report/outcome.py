"""What changed from SFT to PPO on held-out prompts, by quantity and by language."""

from collections.abc import Iterator

from alignment.evaluation.policy_comparison import GOLD, QUANTITIES, REWARD, PolicyComparison
from flows.report.charts import IntervalRow, interval_chart, legend
from flows.report.inputs import ReportInputs
from flows.report.markup import Content, Html, section, table, tag
from flows.report.wording import bounds_of, decimals_of, readable, signed, value_of

_NAMES = {
    REWARD: "reward-model score",
    "kl_nats": "KL",
    "eos_rate": "EOS rate",
    "distinct_2": "distinct-2",
}
_IN_OTHER_LANGUAGES = (GOLD, REWARD, "kl_nats", "response_words", "eos_rate")


def outcome_section(inputs: ReportInputs) -> Html | None:
    """Every quantity before and after, and the gold score's parts as a picture."""
    if inputs.evaluation is None:
        return None
    headline = inputs.evaluation.headline
    return section(
        "change",
        "Before and after",
        "The same held-out prompts answered by the SFT policy (before) and the PPO policy (after); "
        "the difference is paired by prompt, bold where its range excludes 0.",
        _gold_parts(headline),
        table(
            ("Quantity", "SFT", "PPO", "Difference", "95% interval"),
            [_row(headline, name) for name in headline.difference],
            caption=f"{headline.prompts} prompts, {headline.sft[REWARD].n:,} responses of each "
            f"policy, language {headline.language}",
        ),
        *_other_languages(inputs),
    )


def _gold_parts(comparison: PolicyComparison) -> Html | None:
    names = [name for name in comparison.sft if name == GOLD or name.startswith(f"{GOLD}/")]
    if not names:
        return None
    rows = [
        IntervalRow(
            label="total" if name == GOLD else readable(name.partition("/")[2]),
            before=comparison.sft[name],
            after=comparison.ppo[name],
        )
        for name in names
    ]
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", "Gold score and its parts"),
            legend("SFT", "PPO"),
            tag(
                "small",
                "the simulated panel's rubric, 0 to 1, higher is better; lines are 95% intervals",
            ),
        ),
        interval_chart(rows, label="gold score by component, SFT and PPO"),
        class_="wide",
    )


def _row(comparison: PolicyComparison, name: str) -> list[Content]:
    difference = comparison.difference[name]
    is_shown = difference.low > 0 or difference.high < 0
    parent, _, part = name.partition("/")
    places = decimals_of(difference)
    return [
        tag("span", readable(part), class_="part")
        if part
        else tag("span", _NAMES.get(name, readable(parent)), tag("small", QUANTITIES[name])),
        value_of(comparison.sft[name], decimals=places),
        value_of(comparison.ppo[name], decimals=places),
        tag("b" if is_shown else "span", signed(difference)),
        bounds_of(difference),
    ]


def _other_languages(inputs: ReportInputs) -> Iterator[Html]:
    assert inputs.evaluation is not None
    for language, comparison in inputs.evaluation.others.items():
        names = [name for name in _IN_OTHER_LANGUAGES if name in comparison.difference]
        yield tag("h3", f"Language {language}", tag("small", " not part of the figures above"))
        yield table(
            ("Quantity", "SFT", "PPO", "Difference", "95% interval"),
            [_row(comparison, name) for name in names],
            caption=f"{comparison.prompts} prompts",
        )
    if inputs.evaluation.left_out:
        counted = ", ".join(f"{name}: {n}" for name, n in inputs.evaluation.left_out.items())
        yield tag("p", f"Left out, too few prompts for an interval: {counted}.", class_="how")
