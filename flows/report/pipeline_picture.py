"""The pipeline as a picture: its stages in order, how each was come by, and how long it took."""

from flows.progress import duration
from flows.report.inputs import ReportInputs
from flows.report.markup import Html, section, tag
from flows.run_record import stage_of

_STAGES = {
    "base_model": "base model",
    "data": "data",
    "sft": "SFT",
    "candidates": "candidates",
    "preferences": "preferences",
    "reward_model": "reward model",
    "ppo": "PPO",
    "evaluation": "evaluation",
}
_ONLY_WITH_RANKING = {"candidates", "preferences"}


def pipeline_section(inputs: ReportInputs) -> Html:
    """One card a stage, with arrows between them."""
    imported = inputs.config is not None and inputs.config.preferences.source == "imported"
    expected = [s for s in _STAGES if not (imported and s in _ONLY_WITH_RANKING)]
    further = [stage for stage in inputs.run.stages if stage not in _STAGES]
    return section(
        "pipeline",
        "Pipeline",
        "Each stage hands its result to the next; a reused stage was taken from the store as it "
        "was, and shows what it took when it was made.",
        tag("ol", *(_card(stage, inputs) for stage in [*expected, *further]), class_="pipeline"),
    )


def _shown(name: str) -> str:
    """A stage's title, with its round from the second on."""
    stage = stage_of(name)
    title = _STAGES.get(stage, stage)
    return title if name == stage else f"{title}, round {name.removeprefix(f'{stage}-')}"


def _card(stage: str, inputs: ReportInputs) -> Html:
    record = inputs.run.stages.get(stage)
    state = record.state if record else "not yet"
    timing = inputs.summary.timing.stages.get(stage) if inputs.summary else None
    seconds = record.seconds if record else None
    if timing is not None and not timing.reused and state != "reused":
        seconds = timing.wall_s
    who = None
    if stage_of(stage) == "preferences":
        who = "simulated panel ranks" if inputs.simulated else "people rank"
    return tag(
        "li",
        tag("b", _shown(stage)),
        tag("span", duration(seconds) if seconds is not None else "–", class_="time"),
        tag("span", state, class_=f"state {state.replace(' ', '-')}"),
        tag("small", who) if who else None,
        title=record.reason if record else None,
    )
