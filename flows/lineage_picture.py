"""A lineage as a picture: SVG, data on the left, what the run made last on the right."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from flows.lineage import Lineage
from flows.lineage_text import facts
from flows.manifest import Artifact, InputReference

_WIDTH, _HEIGHT = 230, 66
_LANE = 14
_GAP_X, _GAP_Y, _MARGIN = 70, 26, 24
_LONGEST_LINE = 36
_SWEEPS = 4
_COLOURS = {"stage": "#eaf1fb", "end": "#dff3e4", "given": "#fbf3df", "missing": "#fbe3e1"}
_STYLE = (
    "text{font:12px sans-serif;fill:#1d2733}.name{font-weight:bold;font-size:14px}"
    ".small{font-size:11px;fill:#4a5868}rect{stroke:#7d8b9b;rx:7}"
    "path{fill:none;stroke:#7d8b9b;stroke-width:1.4}"
)


_Route = tuple[str, list[str]]
"""Name of an input, and what its arrow touches from the box that made it to its reader."""


@dataclass(frozen=True, slots=True)
class _Box:
    """One node: `key` tells it from others, `lines` are below its name."""

    key: str
    name: str
    lines: tuple[str, ...]
    kind: str
    inputs: tuple[tuple[str, str], ...]
    """(name of the input, key of the box it comes from)."""


def render_picture(lineage: Lineage) -> str:
    """The graph as one SVG document that needs nothing else."""
    boxes = _boxes(lineage)
    columns, routes = _columns(boxes)
    columns = _ordered(columns, routes)
    tallest = max(_tall(column, boxes) for column in columns)
    places = _places(columns, boxes, tallest)
    width = 2 * _MARGIN + len(columns) * (_WIDTH + _GAP_X) - _GAP_X
    height = 2 * _MARGIN + tallest
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" role="img">',
            f"<title>Lineage of {escape(', '.join(end.stage for end in lineage.ends))}</title>",
            f"<style>{_STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#7d8b9b"/>'
            "</marker></defs>",
            f'<rect width="{width:g}" height="{height:g}" style="fill:#fff;stroke:none;rx:0"/>',
            *(_arrow(name, [places[key] for key in route]) for name, route in routes),
            *(_drawn(box, *places[key]) for key, box in boxes.items()),
            "</svg>\n",
        ]
    )


def _boxes(lineage: Lineage) -> dict[str, _Box]:
    boxes: dict[str, _Box] = {}
    ends = {(end.stage, end.key) for end in lineage.ends}
    for identity, artifact in lineage.artifacts.items():
        key = _key(artifact.reference())
        inputs = tuple((name, _key(ref)) for name, ref in sorted(artifact.inputs.items()))
        boxes[key] = _Box(
            key, artifact.stage, _lines(artifact), "end" if identity in ends else "stage", inputs
        )
    for artifact in lineage.artifacts.values():
        for name, reference in artifact.inputs.items():
            if _key(reference) not in boxes:
                boxes[_key(reference)] = _leaf(name, reference)
    return boxes


def _key(reference: InputReference) -> str:
    return f"{reference.stage}/{reference.key}" if reference.stage else reference.digest


def _lines(artifact: Artifact) -> tuple[str, ...]:
    made = f"{artifact.key[:12]}, {artifact.created[:16].replace('T', ' ')}"
    return made, f"run {artifact.run or '?'}; {facts(artifact)}".rstrip("; ")


def _leaf(name: str, reference: InputReference) -> _Box:
    digest = f"sha256 {reference.digest[:12]}"
    if reference.stage:
        lines = (f"{(reference.key or '')[:12]}, {digest}", "no longer in the store")
        return _Box(_key(reference), reference.stage, lines, "missing", ())
    return _Box(reference.digest, name, (reference.source or "given", digest), "given", ())


def _columns(boxes: dict[str, _Box]) -> tuple[list[list[str]], list[_Route]]:
    """Each box one column right of the last of its inputs, and the way of each arrow.

    An arrow that passes columns has a place of its own in each, shared by all arrows from the
    same box, so that none runs behind a box.
    """
    depth = _depths(boxes)
    columns: list[list[str]] = [[] for _ in range(1 + max(depth.values()))]
    for key in sorted(depth):
        columns[depth[key]].append(key)
    routes: list[_Route] = []
    lanes: set[str] = set()
    for box in boxes.values():
        for name, source in box.inputs:
            passed = [
                (f"{source} at {column}", column)
                for column in range(depth[source] + 1, depth[box.key])
            ]
            for lane, column in passed:
                if lane not in lanes:
                    lanes.add(lane)
                    columns[column].append(lane)
            routes.append((name, [source, *(lane for lane, _ in passed), box.key]))
    return columns, routes


def _depths(boxes: dict[str, _Box]) -> dict[str, int]:
    depth: dict[str, int] = {}
    to_place = list(boxes)
    while to_place:
        key = to_place[-1]
        waiting = [source for _, source in boxes[key].inputs if source not in depth]
        if waiting:
            to_place += waiting
            continue
        depth[key] = 1 + max((depth[source] for _, source in boxes[key].inputs), default=-1)
        to_place.pop()
    readers: dict[str, list[str]] = defaultdict(list)
    for box in boxes.values():
        for _, source in box.inputs:
            readers[source].append(box.key)
    for key, box in boxes.items():
        # What has no inputs of its own stands beside its reader, not at the far left.
        if not box.inputs and readers[key]:
            depth[key] = min(depth[reader] for reader in readers[key]) - 1
    return {key: column - min(depth.values()) for key, column in depth.items()}


def _ordered(columns: list[list[str]], routes: Sequence[_Route]) -> list[list[str]]:
    """Columns sorted so that few arrows cross: each box near the mean height of its neighbours."""
    neighbours: dict[str, list[str]] = defaultdict(list)
    for _, route in routes:
        for left, right in pairwise(route):
            neighbours[left].append(right)
            neighbours[right].append(left)
    height = _heights(columns)

    def mean(key: str) -> float:
        near = neighbours[key]
        return sum(height[n] for n in near) / len(near) if near else height[key]

    for sweep in range(_SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            column.sort(key=mean)
            height |= _heights([column])
    return columns


def _heights(columns: Sequence[Sequence[str]]) -> dict[str, float]:
    """Distance of each box from the middle of its column, in boxes."""
    return {
        key: index - (len(column) - 1) / 2 for column in columns for index, key in enumerate(column)
    }


def _tall(column: Sequence[str], boxes: dict[str, _Box]) -> float:
    return sum(_HEIGHT if key in boxes else _LANE for key in column) + _GAP_Y * (len(column) - 1)


def _places(
    columns: Sequence[Sequence[str]], boxes: dict[str, _Box], tallest: float
) -> dict[str, tuple[float, float]]:
    """Top left corner of each box, and start of each passing arrow, in pixels."""
    places: dict[str, tuple[float, float]] = {}
    for number, column in enumerate(columns):
        y = _MARGIN + (tallest - _tall(column, boxes)) / 2
        for key in column:
            places[key] = (_MARGIN + number * (_WIDTH + _GAP_X), y)
            y += (_HEIGHT if key in boxes else _LANE) + _GAP_Y
    return places


def _arrow(name: str, corners: Sequence[tuple[float, float]]) -> str:
    (x, y), *passed, (to_x, to_y) = corners
    y += _HEIGHT / 2
    path, bend = f"M{x + _WIDTH:g} {y:g}", _GAP_X * 0.6
    ahead = [(px, py + _LANE / 2) for px, py in passed] + [(to_x, to_y + _HEIGHT / 2)]
    for next_x, next_y in ahead:
        path += f"C{x + _WIDTH + bend:g} {y:g} {next_x - bend:g} {next_y:g} {next_x:g} {next_y:g}"
        if next_x != to_x:
            path += f"H{next_x + _WIDTH:g}"
        x, y = next_x, next_y
    return f'<path d="{path}" marker-end="url(#tip)"><title>{escape(name)}</title></path>'


def _drawn(box: _Box, x: float, y: float) -> str:
    lines = "".join(
        f'<text class="small" x="{x + 10:g}" y="{y + 38 + 16 * index:g}">{escape(_cut(line))}'
        "</text>"
        for index, line in enumerate(box.lines)
    )
    hint = escape("\n".join((box.name, *box.lines)))
    return (
        f'<g><title>{hint}</title><rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'style="fill:{_COLOURS[box.kind]}"/>'
        f'<text class="name" x="{x + 10:g}" y="{y + 20:g}">{escape(_cut(box.name))}</text>'
        f"{lines}</g>"
    )


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 1]}…"
