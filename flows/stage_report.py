"""A finished stage as Markdown with a plot inside: what Prefect shows on the stage's task."""

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from flows.manifest import Artifact
from flows.metrics_log import read_metrics
from flows.progress import duration
from flows.run_context import ACTORS
from flows.run_record import METRICS_OUTPUT

PLOTTED = {
    "sft": ("sft/loss",),
    "reward_model": ("reward_model/loss", "reward_model/accuracy"),
    "ppo": ("ppo/score_mean", "ppo/kl_nats"),
}
"""Curves of each stage, one panel each."""
_PANEL_IN, _HEIGHT_IN, _DPI = 3.4, 2.1, 90
_LINE = "#1d4ed8"
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_EVALUATION = "evaluation.json"
_SIMULATED = "Gold is **simulated**: a rubric hidden from training, no people."


def stage_report(artifact: Artifact, *, reused: bool) -> str:
    """Figures, curves, inputs and outputs of a finished stage, as Markdown."""
    made = f"Reused, made by run `{artifact.run}`" if reused else "Made by this run"
    parts = [
        f"## {artifact.stage}",
        f"{made} on {artifact.created} in {duration(artifact.seconds)}. Key `{artifact.key[:16]}`,"
        f" stage version {artifact.stage_version}.",
        _table(("figure", "value"), _figures(artifact.metrics)),
        _plot(artifact),
        _comparison(artifact),
        "### Made from",
        _table(
            ("input", "from", "digest"),
            [
                (name, i.source or f"{i.stage} {(i.key or '')[:12]}", f"`{i.digest[:12]}`")
                for name, i in artifact.inputs.items()
            ],
        ),
        "### Outputs",
        _table(("folder or file", "files", "size"), _outputs(artifact)),
    ]
    actors = artifact.metrics.get(ACTORS, ())
    if actors:
        rows = [(a["role"], a["rank"], a["pid"], a["host"], a["engine"]) for a in actors]
        parts += ["### Processes", _table(("role", "rank", "pid", "host", "engine"), rows)]
    return "\n\n".join(part for part in parts if part)


def _figures(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in metrics.items()
        if isinstance(value, bool | int | float | str)
    ]


def _outputs(artifact: Artifact) -> list[tuple[str, int, str]]:
    by_name: dict[str, list[int]] = {}
    for path, file in artifact.outputs.items():
        by_name.setdefault(path.partition("/")[0], []).append(file.bytes)
    return [(f"`{name}`", len(sizes), _size_text(sum(sizes))) for name, sizes in by_name.items()]


def _size_text(number: int) -> str:
    """In the largest unit of which there is a whole one: 367,002 bytes are `358.4 KiB`."""
    for unit, size in _UNITS:
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


def _comparison(artifact: Artifact) -> str:
    """What an evaluation found on held-out prompts, with intervals; empty for other stages."""
    if _EVALUATION not in artifact.outputs:
        return ""
    found = json.loads(artifact.path(_EVALUATION).read_text(encoding="utf-8"))["headline"]
    rows = []
    for name, gain in found["difference"].items():
        sides = [f"{found[side][name]['value']:.4g}" for side in ("sft", "ppo")]
        interval = f"{gain['value']:+.4g} [{gain['low']:+.4g}, {gain['high']:+.4g}]"
        rows.append((name, *sides, interval))
    heads = ("held out", "SFT", "PPO", "PPO - SFT [95% interval by prompt]")
    told = f"### PPO against SFT, {found['prompts']} prompts\n\n{_table(heads, rows)}"
    simulated = any(name.startswith("gold") for name in found["difference"])
    return f"{told}\n\n{_SIMULATED}" if simulated else told


def _plot(artifact: Artifact) -> str:
    names = PLOTTED.get(artifact.stage, ())
    if METRICS_OUTPUT not in artifact.outputs or not names:
        return ""
    rows = read_metrics(artifact.path(METRICS_OUTPUT))
    curves = {
        name: [(r["step"], r[name]) for r in rows if r.get(name) is not None] for name in names
    }
    drawn = {name: points for name, points in curves.items() if points}
    if not drawn:
        return ""
    told = "; ".join(f"{name} ends at {points[-1][1]:.4g}" for name, points in drawn.items())
    return f"![{told}](data:image/png;base64,{_png(drawn)})"


def _png(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """The curves side by side, as base64 of a PNG; white ground, so it reads in a dark page too."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(_PANEL_IN * len(curves), _HEIGHT_IN), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (name, points) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(1, len(curves), panel)
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=_LINE, linewidth=1.6, marker="o", markersize=2.5)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
        axes.grid(True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    """Text that cannot leave its cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
