"""What the reward's monitors saw during PPO, and the texts behind their alarms."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.rewards.alarms import ALARMS
from flows.alarms import SUSPICIOUS_NAME, read_suspicious
from flows.report.inputs import ReportInputs
from flows.report.markup import Content, Html, model_text, section, table, tag
from flows.report.wording import number

_TEXTS_SHOWN = 12


def alarms_section(inputs: ReportInputs) -> Html | None:
    """One row a monitor, then the texts of the newest alarms; None where nothing was watched."""
    steps = inputs.metrics["ppo"]
    rows = [row for name in ALARMS if (row := _row(name, steps))]
    if not rows:
        return None
    texts = read_suspicious(inputs.folder / SUSPICIOUS_NAME)
    newest = texts[-_TEXTS_SHOWN:][::-1]
    return section(
        "alarms",
        "Was the reward gamed?",
        "A policy can learn what a reward pays for without becoming better. These monitors look "
        "for the usual signs; an alarm is a reason to read the texts, not a proof.",
        table(("Monitor", "Steps watched", "Steps with alarm", "Last reading"), rows),
        tag("h3", f"Best-paid responses behind the alarms, {len(newest)} of {len(texts)}")
        if newest
        else None,
        *(_card(text) for text in newest),
    )


def _row(name: str, steps: Sequence[Mapping[str, Any]]) -> list[Content] | None:
    seen = [step for step in steps if step.get(f"ppo/alarm_{name}") is not None]
    if not seen:
        return None
    on = [str(step["step"]) for step in seen if step[f"ppo/alarm_{name}"]]
    reading = seen[-1].get(f"ppo/{name}_reading")
    return [
        ALARMS[name],
        str(len(seen)),
        f"{len(on)}: {', '.join(on[:10])}{' …' if len(on) > 10 else ''}" if on else "none",
        number(reading) if reading is not None else "–",
    ]


def _card(text: Mapping[str, Any]) -> Html:
    facts = [
        f"step {text['step']}",
        ALARMS.get(text["monitor"], text["monitor"]),
        f"score {number(text['score'])}",
        f"{text['tokens']} tokens",
        f"repetition {text['repetition']:.2f}",
    ]
    return tag(
        "article",
        model_text(text["prompt"]),
        model_text(text["response"]),
        tag("p", " · ".join(facts), class_="facts"),
    )
