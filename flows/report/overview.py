"""The top of the report: what came out, whether it is what was wanted, what to beware of."""

from collections.abc import Iterator
from dataclasses import dataclass

from alignment.evaluation.policy_comparison import GOLD, REWARD, PolicyComparison
from alignment.statistics.bootstrap import Interval
from flows.progress import duration
from flows.report.inputs import ReportInputs
from flows.report.markup import Content, Html, section, table, tag
from flows.report.wording import bounds_of, moment, number, readable, signed, value_of

SIMULATED_NOTICE = (
    "The rankings are SIMULATED. A panel of programs with a hidden rubric and random errors stands "
    "in for people; gold is that rubric without the errors. Nothing here says what people prefer."
)
_ACCURACY_GOAL = 0.60


@dataclass(frozen=True, kw_only=True)
class _Figure:
    """A row of the headline table; `met` is None where nothing was promised."""

    name: str
    about: str
    interval: Interval
    goal: str = ""
    met: bool | None = None
    is_difference: bool = False


def title(inputs: ReportInputs) -> Html:
    """Name of the run, verdict, and when and where it ran."""
    comparison = inputs.evaluation.headline if inputs.evaluation else None
    facts = [f"seed {inputs.config.run.seed}"] if inputs.config else []
    if inputs.summary is not None:
        machine = inputs.summary.machine
        facts += [
            f"finished {moment(inputs.summary.finished)}",
            f"took {duration(inputs.summary.timing.wall_s)}",
            f"{machine.cores} cores, {number(machine.memory_gib)} GiB",
        ]
    else:
        facts += [f"started {moment(inputs.run.started)}"]
    return tag(
        "header",
        tag("p", "alignflow report", class_="kicker"),
        tag("h1", inputs.run.name),
        tag("p", verdict(comparison), class_="verdict"),
        tag("p", " · ".join(facts), class_="facts"),
    )


def verdict(comparison: PolicyComparison | None) -> str:
    """One sentence on the gain, no stronger than its interval."""
    if comparison is None:
        return "This run has no results on held-out prompts yet."
    judge = GOLD if GOLD in comparison.difference else REWARD
    gain = comparison.difference[judge]
    words = "the simulated gold score" if judge == GOLD else "the reward model's own score"
    if gain.low > 0:
        finding = f"PPO raised {words} by {value_of(gain)}"
    elif gain.high < 0:
        finding = f"PPO lowered {words}: {signed(gain)}"
    else:
        finding = f"No change of {words} was shown: {signed(gain)}"
    kl = comparison.ppo["kl_nats"]
    return (
        f"{finding} (95% interval {bounds_of(gain)}) on {comparison.prompts} held-out prompts; "
        f"its KL to SFT is {value_of(kl)} nats a sequence."
    )


def notices(inputs: ReportInputs) -> Html:
    """What the reader must know before any number."""
    notes: list[Content] = []
    if inputs.simulated:
        notes.append(tag("p", SIMULATED_NOTICE, class_="notice simulated", role="note"))
    if inputs.run.state not in ("done", "running"):
        state = f"The run is {inputs.run.state}. {inputs.run.detail}"
        failed = inputs.run.state == "failed"
        notes.append(tag("p", state, class_="notice bad" if failed else "notice", role="note"))
    if inputs.gaps:
        lines = tag("ul", *(tag("li", gap) for gap in inputs.gaps))
        notes.append(
            tag("div", tag("b", "This report is partial."), lines, class_="notice", role="note")
        )
    return tag("div", *notes)


def results_section(inputs: ReportInputs) -> Html | None:
    """The headline table and the run's own checks."""
    figures = list(_figures(inputs))
    checks = inputs.summary.checks if inputs.summary else {}
    if not figures and not checks:
        return None
    rows = [
        (
            tag("span", figure.name, tag("small", figure.about)),
            tag("b", (signed if figure.is_difference else value_of)(figure.interval)),
            bounds_of(figure.interval),
            f"{figure.interval.clusters} prompts, {figure.interval.n:,} values",
            _goal(figure),
        )
        for figure in figures
    ]
    passed = sum(check.passed for check in checks.values())
    return section(
        "results",
        "Results",
        "Value, then the range in which it lies with 95% confidence when prompts are drawn anew; a "
        "difference whose range excludes 0 is one that the prompts can show.",
        table(("Measured on held-out prompts", "Value", "95% interval", "n", "Goal"), rows)
        if rows
        else None,
        tag("h3", "Checks of the run", tag("small", f" {passed} of {len(checks)} passed"))
        if checks
        else None,
        tag(
            "ul",
            *(
                tag(
                    "li",
                    _badge(check.passed, "passed", "failed"),
                    tag("span", readable(name), tag("small", check.detail)),
                )
                for name, check in checks.items()
            ),
            class_="checks",
        )
        if checks
        else None,
    )


def _figures(inputs: ReportInputs) -> Iterator[_Figure]:
    evaluation = inputs.evaluation
    if evaluation is None:
        return
    headline = evaluation.headline
    if gain := headline.difference.get(GOLD):
        yield _Figure(
            name="Gold gain, simulated",
            about="hidden rubric, PPO minus SFT, paired by prompt",
            interval=gain,
            goal="interval above 0",
            met=gain.low > 0,
            is_difference=True,
        )
    budget = inputs.config.ppo.kl_budget_nats if inputs.config else None
    yield _Figure(
        name="KL to SFT",
        about="nats a sequence",
        interval=headline.ppo["kl_nats"],
        goal=f"at most {budget:g}" if budget else "",
        met=headline.ppo["kl_nats"].value <= budget if budget else None,
    )
    yield from _win_rates(headline)
    yield _Figure(
        name="Reward-model score gain",
        about="PPO minus SFT, by the model that PPO was trained on",
        interval=headline.difference[REWARD],
        is_difference=True,
    )
    yield from _reward_model_figures(inputs)


def _win_rates(headline: PolicyComparison) -> Iterator[_Figure]:
    for judge, words in ((GOLD, "simulated gold"), (REWARD, "the reward model")):
        if judge in headline.win_rate:
            yield _Figure(
                name=f"Win rate by {words}",
                about="PPO against SFT responses to one prompt, ties half",
                interval=headline.win_rate[judge],
            )


def _reward_model_figures(inputs: ReportInputs) -> Iterator[_Figure]:
    accuracy = inputs.evaluation.reward_model if inputs.evaluation else None
    if accuracy is not None and accuracy.all_pairs is not None:
        own, over = accuracy.all_pairs.accuracy, accuracy.all_pairs.difference
        yield _Figure(
            name="Reward-model accuracy",
            about="held-out pairs ordered as noise-free gold does",
            interval=own,
            goal=f"interval above {_ACCURACY_GOAL:.2f}",
            met=own.low > _ACCURACY_GOAL,
        )
        yield _Figure(
            name="Accuracy over the length baseline",
            about="against calling the shorter response better, same pairs",
            interval=over,
            goal="interval above 0",
            met=over.low > 0,
            is_difference=True,
        )
    people = inputs.evaluation.cross_validated if inputs.evaluation else None
    if people is not None:
        yield _Figure(
            name="Accuracy on people's pairs",
            about=f"{len(people.by_fold)}-fold, prompts never seen in training",
            interval=people.pooled.accuracy,
        )
        yield _Figure(
            name="People's pairs over the length baseline",
            about="same pairs, paired",
            interval=people.pooled.difference,
            is_difference=True,
        )


def _goal(figure: _Figure) -> Content:
    if figure.met is None:
        return "–"
    return tag("span", _badge(figure.met, "met", "not met"), tag("small", figure.goal))


def _badge(good: bool, yes: str, no: str) -> Html:
    return tag("span", yes if good else no, class_="badge good" if good else "badge bad")
