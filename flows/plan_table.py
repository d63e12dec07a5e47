"""A plan on the console: memory of each role, placement, seconds of a PPO step, what would fit."""

import json
from collections import Counter
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignment.planning.machines import GIB
from alignment.planning.plan import RoleFit, StagePlan, Verdict, gib_text
from flows.planning import RunPlan
from flows.progress import duration

_STYLES: Mapping[Verdict, str] = {"fits": "green", "tight": "yellow", "too large": "red"}
_PARTS = {
    "weights": ("weights",),
    "grads": ("gradients",),
    "AdamW": ("optimizer",),
    "activ.": ("activations",),
    "KV": ("kv_cache",),
    "other": ("buffers", "overhead"),
}


def print_plan(console: Console, plan: RunPlan) -> None:
    """Print everything a person decides by."""
    console.print(Text(_headline(plan)), soft_wrap=True)
    for stage in plan.stages:
        console.print(_stage_table(stage))
        for line in _placement(stage):
            console.print(line, soft_wrap=True)
    for line in (*_time(plan), *_alternatives(plan)):
        console.print(line, soft_wrap=True)
    if plan.refusal is not None:
        console.print(Text.assemble("refused  ", (plan.refusal, "red")), soft_wrap=True)
    for note in plan.notes:
        console.print(Text(f"note     {note}"), soft_wrap=True)


def _headline(plan: RunPlan) -> str:
    nodes = plan.machines.nodes
    kinds = Counter((node.gpus, node.gpu.name if node.gpu else "") for node in nodes)
    machines = ", ".join(
        f"{count} machine{'s' if count > 1 else ''}"
        + (f" with {gpus} {gpu}" if gpus else " without GPUs")
        for (gpus, gpu), count in kinds.items()
    )
    return (
        f"{plan.run}: {plan.shape.name}, {plan.shape.parameters / 1e6:,.0f} million parameters, on "
        f"{machines}"
    )


def _stage_table(stage: StagePlan) -> Table:
    on_gpus = any(fit.available is not None for fit in stage.roles)
    table = Table(
        title=f"{stage.stage}: GiB of each rank",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("role x ranks", no_wrap=True)
    table.add_column("on", no_wrap=True)
    for heading in (*_PARTS, "most", *(("of",) if on_gpus else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for fit in stage.roles:
        table.add_row(*_role_cells(fit, on_gpus=on_gpus))
    return table


def _role_cells(fit: RoleFit, *, on_gpus: bool) -> list[Text | str]:
    memory = fit.memory
    sizes = [sum(getattr(memory, part) for part in parts) for parts in _PARTS.values()]
    cells: list[Text | str] = [
        f"{memory.role} x {memory.ranks}",
        f"{memory.gpus} GPU{'s' if memory.gpus > 1 else ''}" if memory.gpus else "CPU",
        *(_gib(size) if size else "" for size in sizes),
        Text(_gib(memory.needed), style=_STYLES[fit.verdict]),
    ]
    if on_gpus:
        cells.append(_gib(fit.available) if fit.available is not None else "")
    return cells


def _gib(size: int) -> str:
    gib = size / GIB
    return f"{gib:.1f}" if gib < 99.95 else f"{gib:.0f}"


def _placement(stage: StagePlan) -> list[Text]:
    if stage.refusal:
        return [Text.assemble("placed   ", ("no: ", "red"), stage.refusal)]
    lines = []
    for node in stage.nodes:
        of = "unknown" if node.available is None else gib_text(node.available)
        lines.append(
            Text.assemble(
                f"placed   {node.node}: {', '.join(node.roles)}; system memory "
                f"{gib_text(node.used)} of {of}, ",
                (node.verdict, _STYLES[node.verdict]),
            )
        )
    return lines


def _time(plan: RunPlan) -> list[Text]:
    if not plan.phases_s:
        return []
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in plan.phases_s.items())
    share = plan.phases_s[str(plan.bottleneck)] / plan.step_s
    return [
        Text(
            f"time     a PPO step about {duration(plan.step_s)}, {plan.steps} steps about "
            f"{duration(plan.steps * plan.step_s)}, at {plan.lengths.mean_prompt:.0f} + "
            f"{plan.lengths.mean_response:.0f} tokens a sequence"
        ),
        Text(f"         seconds: {phases}"),
        Text(f"         most of it: {plan.bottleneck}, {share:.0%}"),
    ]


def _alternatives(plan: RunPlan) -> list[Text]:
    if not plan.alternatives:
        if plan.fits:
            return [Text("instead  no other ranks, ZeRO stages or microbatches would be faster")]
        return [
            Text(
                "instead  nothing fits these machines by other ranks, ZeRO stages or microbatches: "
                "use a smaller model or larger machines",
                style="red",
            )
        ]
    lines = []
    for alternative, settings in plan.alternatives:
        chosen = " ".join(f"--set {k}={json.dumps(v)}" for k, v in settings.items())
        lines.append(
            Text.assemble(
                f"instead  {duration(alternative.step_s)} a step on {alternative.gpus} GPUs, ",
                (alternative.plan.verdict, _STYLES[alternative.plan.verdict]),
                f": {chosen}",
            )
        )
    return lines
