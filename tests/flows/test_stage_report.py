"""A stage's report for Prefect's pages: figures, a plot that is an image, and cells that hold."""

import base64
import json
import re

from flows.manifest import Artifact, InputReference, OutputFile
from flows.stage_report import stage_report


def finished(folder, metrics=()):
    """A finished PPO stage whose metrics lie in its folder."""
    (folder / "outputs").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in metrics)
    (folder / "outputs" / "metrics.jsonl").write_text(text)
    return Artifact(
        folder=folder,
        stage="ppo",
        stage_version=3,
        key="k" * 64,
        settings={},
        seed=0,
        versions={},
        inputs={"rankings": InputReference(digest="a" * 64, source="a | b")},
        outputs={
            "metrics.jsonl": OutputFile(path="metrics.jsonl", bytes=len(text), sha256="0" * 64)
        },
        metrics={"score": 0.25, "nested": {"left": "out"}},
        run="r",
        created="2026-01-01T00:00:00+00:00",
        seconds=61.0,
    )


def test_report_has_figures_plot_and_whole_cells(tmp_path):
    rows = [{"step": n, "ppo/score_mean": n / 2, "ppo/kl_nats": None} for n in (1, 2)]
    text = stage_report(finished(tmp_path, rows), reused=True)
    assert "Reused, made by run `r`" in text
    assert "1m01s" in text
    assert "| score | 0.25 |" in text
    assert "nested" not in text
    assert r"a \| b" in text
    image = re.search(r"!\[ppo/score_mean ends at 1\]\(data:image/png;base64,([^)]+)\)", text)[1]
    assert base64.b64decode(image).startswith(b"\x89PNG")


def test_stage_without_curves_has_no_plot(tmp_path):
    assert "image/png" not in stage_report(finished(tmp_path), reused=False)


def test_evaluation_shows_each_difference_with_its_interval(tmp_path):
    artifact = finished(tmp_path)
    sides = {side: {"gold": {"value": value}} for side, value in (("sft", 0.8), ("ppo", 0.9))}
    gain = {"gold": {"value": 0.1, "low": 0.05, "high": 0.15}}
    told = json.dumps({"headline": {"prompts": 46, "difference": gain} | sides})
    (tmp_path / "outputs" / "evaluation.json").write_text(told)
    artifact.outputs["evaluation.json"] = OutputFile(
        path="evaluation.json", bytes=3 * 2**19, sha256="0" * 64
    )
    text = stage_report(artifact, reused=False)
    assert "### PPO against SFT, 46 prompts" in text
    assert "| gold | 0.8 | 0.9 | +0.1 [+0.05, +0.15] |" in text
    assert "Gold is **simulated**" in text
    assert "| `evaluation.json` | 1 | 1.5 MiB |" in text
    assert "| `metrics.jsonl` | 1 | 0 bytes |" in text
