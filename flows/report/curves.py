"""Training curves: one small plot a metric, described by the metric table."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.metrics import SCORE_OF
from alignment.metrics import metric as declared
from flows.report.charts import Limit, curve
from flows.report.inputs import ReportInputs
from flows.report.markup import Html, section, tag
from flows.report.wording import number, readable

_SHOWN: dict[str, tuple[str, ...]] = {
    "sft": ("sft/loss", "sft/gradient_norm", "sft/tokens_per_s"),
    "reward_model": (
        "reward_model/loss",
        "reward_model/accuracy",
        "reward_model/gradient_norm",
    ),
    "ppo": (
        "ppo/score_mean",
        "ppo/reward_mean",
        "ppo/kl_nats",
        "ppo/entropy_nats",
        "ppo/clip_fraction",
        "ppo/explained_variance",
        "ppo/value_loss",
        "ppo/response_tokens_mean",
        "ppo/eos_rate",
        "ppo/repetition_mean",
        "ppo/disagreement_mean",
        "ppo/heldout_score_mean",
        "ppo/heldout_judge_mean",
        "ppo/sampler_gap_max",
        "ppo/gradient_norm",
        "ppo/learning_rate",
    ),
}
SHOWN_METRICS = tuple(name for names in _SHOWN.values() for name in names)

_NEAR = 0.3
"""A limit is drawn where the curve comes within this share of it: else it would be flattened."""

_TITLES = {
    "sft": "Supervised fine-tuning",
    "reward_model": "Reward model",
    "ppo": "PPO",
}


def curves_section(inputs: ReportInputs) -> Html | None:
    """All curves of the stages that have recorded something."""
    groups = [
        _group(stage, (*names, *_reward_sources(inputs.metrics[stage])), inputs)
        for stage, names in _SHOWN.items()
    ]
    if not any(groups):
        return None
    return section(
        "curves",
        "Training curves",
        "Each plot is one number an optimiser (or PPO) step, from left to right; the figure beside "
        "its name is the last value, a dashed line a limit to compare with.",
        *groups,
    )


def _reward_sources(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The mean score by each source where several are summed; one alone is the score itself."""
    names = sorted({name for row in rows for name in row if name.startswith(SCORE_OF)})
    return names if len(names) > 1 else []


def _group(stage: str, names: Sequence[str], inputs: ReportInputs) -> Html | None:
    rows = inputs.metrics[stage]
    plots = [
        _plot(name, rows, _limit(name, inputs))
        for name in names
        if any(row.get(name) is not None for row in rows)
    ]
    if not plots:
        return None
    return tag(
        "div",
        tag("h3", _TITLES[stage], tag("small", f" {len(rows)} steps")),
        tag("div", *plots, class_="plots"),
    )


def _plot(name: str, rows: Sequence[Mapping[str, Any]], limit: Limit | None) -> Html:
    metric = declared(name)
    values = [row.get(name) for row in rows]
    known = [value for value in values if value is not None]
    unit = "" if metric.unit == "share" else metric.unit
    near = limit is not None and max(known) > _NEAR * limit.value
    far = f"; {limit.label}, far above" if limit is not None and not near else ""
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", readable(name.partition("/")[2].removesuffix("_nats").removesuffix("_mean"))),
            tag("span", f"{number(known[-1])} {unit}".strip(), class_="last"),
            tag("small", metric.description + far),
        ),
        curve(
            [row["step"] for row in rows],
            values,
            label=f"{name} by step",
            limit=limit if near else None,
        ),
    )


def _limit(name: str, inputs: ReportInputs) -> Limit | None:
    if name == "reward_model/accuracy":
        return Limit(value=0.5, label="guessing")
    if name == "ppo/kl_nats" and inputs.config is not None:
        budget = inputs.config.ppo.kl_budget_nats
        return Limit(value=budget, label=f"budget {budget:g}")
    return None
