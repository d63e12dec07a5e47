"""A lineage as indented text, for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from alignment.records import Ranking
from flows.lineage import RANKINGS_OUTPUT, Identity, Lineage, rankings_of
from flows.manifest import Artifact, InputReference

_DIGITS_SHOWN = 12


def render_text(lineage: Lineage, *, rankings: bool = False) -> str:
    """The graph from its ends down; what has been shown once is referred to, not repeated.

    `rankings` lists each ranking below the stage `preferences`.
    """
    return "\n".join(_lines(lineage, rankings))


def facts(artifact: Artifact) -> str:
    """An artifact's headline numbers on one line."""
    metrics: Mapping[str, Any] = artifact.metrics
    plain = {k: v for k, v in metrics.items() if isinstance(v, int | float | str)}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in plain.items()
    )


def order_of(ranking: Ranking) -> str:
    """A ranking's responses from best to worst, e.g. `b > a = c`."""
    tiers: dict[int, list[str]] = {}
    for response, tier in zip(ranking.response_ids, ranking.tiers, strict=True):
        tiers.setdefault(tier, []).append(response)
    return " > ".join(" = ".join(tiers[tier]) for tier in sorted(tiers))


def _lines(lineage: Lineage, rankings: bool) -> Iterator[str]:
    shown: set[Identity] = set()
    # Each entry: name, reference, and the two indents. A list, since a run of many rounds is
    # deeper than Python's own stack.
    to_show: list[tuple[str, InputReference, str, str]] = [
        (end.stage, end.reference(), "", "") for end in reversed(lineage.ends)
    ]
    while to_show:
        name, reference, first, indent = to_show.pop()
        artifact = lineage.behind(reference)
        if artifact is None:
            yield f"{first}{_headline(name, reference)}"
            continue
        identity = (artifact.stage, artifact.key)
        above = identity in shown
        yield f"{first}{_headline(name, reference, artifact)}{'  (above)' if above else ''}"
        if above:
            continue
        shown.add(identity)
        bar = f"{indent}{'│' if artifact.inputs else ' '}  "
        if facts(artifact):
            yield bar + facts(artifact)
        if rankings and RANKINGS_OUTPUT in artifact.outputs:
            for ranking in rankings_of(artifact):
                yield f"{bar}{ranking.labeler} ranked {ranking.prompt_id}: {order_of(ranking)}"
        children = sorted(artifact.inputs.items())
        for index, (child, below) in reversed(list(enumerate(children))):
            last = index == len(children) - 1
            to_show.append(
                (
                    child,
                    below,
                    indent + ("└─ " if last else "├─ "),
                    indent + ("   " if last else "│  "),
                )
            )


def _headline(name: str, reference: InputReference, artifact: Artifact | None = None) -> str:
    digest = f"sha256 {reference.digest[:_DIGITS_SHOWN]}"
    if reference.stage is None:
        return f"{name}: {reference.source or 'given'}, {digest}"
    stage = "" if name == reference.stage else f"{name}: "
    where = f"{stage}{reference.stage} {(reference.key or '')[:_DIGITS_SHOWN]}"
    if artifact is None:
        return f"{where}, {digest}, no longer in the store"
    return f"{where}, made {artifact.created} by run {artifact.run or '?'}, {digest}"
