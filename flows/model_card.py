"""The model card of a released policy, in Markdown."""

from collections.abc import Iterator

from flows.lineage import Lineage
from flows.manifest import Artifact
from flows.summary import Summary, Target

_HEADLINE = (
    "gain/",
    "win_rate/",
    "ppo/kl",
    "reward_model/accuracy",
    "reward_model/cross_validated",
)
_DIGITS = 12

_FRONT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [rlhf, ppo]
---
"""

_LOADING = """\
## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

`vllm serve FOLDER` serves it. The weights are whole: no adapter is needed. Apply the chat template
that is in the folder, once, and no other.
"""


def model_card(summary: Summary, policy: Artifact, graph: Lineage) -> str:
    """What the policy is, what it was made of, what was measured, and what was not."""
    return "\n".join(
        [_FRONT, *_opening(summary, policy, graph), *_results(summary), _LOADING, *_made_of(graph)]
    )


def _opening(summary: Summary, policy: Artifact, graph: Lineage) -> Iterator[str]:
    base = next((a for a in graph.artifacts.values() if a.stage == "base_model"), None)
    origin = [
        str(base.metrics[name]) for name in ("origin", "weights") if base and name in base.metrics
    ]
    licence = base.metrics.get("licence") if base else None
    yield f"# Policy of run {summary.run}\n"
    yield f"- Trained from {', '.join(origin) or 'a base model that the lineage names'}."
    yield f"- Licence of the base model: {licence or 'not recorded; ask where it came from'}."
    yield (
        "- Ranked by a simulated panel, not by people."
        if summary.simulated_labels
        else "- Ranked by people; who they are is not part of this folder."
    )
    yield f"- Finished {summary.finished}, seed {summary.seed}, key `{policy.key}`.\n"
    failed = [name for name, check in summary.checks.items() if not check.passed]
    if failed:
        yield f"**Released although its run failed the check {', '.join(failed)}.**\n"


def _results(summary: Summary) -> Iterator[str]:
    yield "## Measured\n"
    yield "| figure | value | 95% interval | n |\n|---|---|---|---|"
    shown = {n: t for n, t in summary.targets.items() if n.startswith(_HEADLINE)}
    for name, target in (shown or summary.targets).items():
        yield f"| {name} | {target.value:.4g} {target.unit} | {_interval(target)} | {target.n} |"
    yield "\nOn held-out prompts of the run's own data: nothing is known about other uses."
    yield "Truth, harm and bias were not measured unless a figure above says so.\n"
    for name, check in summary.checks.items():
        yield f"- {'passed' if check.passed else 'FAILED'}: {name}, {check.detail}"
    yield ""


def _interval(target: Target) -> str:
    return "" if target.low is None else f"[{target.low:.4g}, {target.high:.4g}]"


def _made_of(graph: Lineage) -> Iterator[str]:
    yield "## Made of\n"
    yield "`lineage.json` holds every setting, seed, version and digest; `lineage.svg` draws it.\n"
    yield "| stage | key | made | commit |\n|---|---|---|---|"
    for artifact in sorted(graph.artifacts.values(), key=lambda a: (a.created, a.stage)):
        commit = (artifact.versions.get("commit") or "")[:_DIGITS]
        yield f"| {artifact.stage} | {artifact.key[:_DIGITS]} | {artifact.created} | {commit} |"
    for stage, key in sorted(graph.missing):
        yield f"| {stage} | {key[:_DIGITS]} | no longer in the store | |"
    yield ""
