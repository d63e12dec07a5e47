"""A made-up run folder with every file that a report is built from."""

import math
import random
from pathlib import Path

from alignment.config import PipelineConfig
from alignment.evaluation.label_statistics import label_statistics
from alignment.evaluation.pair_accuracy import (
    ScoredCandidate,
    ScoredPair,
    cross_validated_accuracy,
)
from alignment.evaluation.resampling import Resampling
from alignment.evaluation.result import EvaluationResult, evaluate, write_evaluation
from alignment.evaluation.samples import EvaluatedSample, write_samples
from alignment.gold_rubric import gold_score
from alignment.records import Ranking
from flows.metrics_log import JsonlMetrics
from flows.run_record import RunFile, StageRecord
from flows.summary import Summary, write_summary

HOSTILE = (
    '</div><script>alert(1)</script><img src=x onerror="alert(2)"> & \'"`',
    "\u202egnihton si siht\u202c and zero\u200bwidth \x07 \ufeff",
    "Z\u0335\u0336\u0337a\u0335\u0336\u0337l\u0335\u0336\u0337g\u0335\u0336\u0337o " * 4,
    "longwordwithoutanyspace" * 30,
    "<!-- --><style>*{display:none}</style><base href=//evil.example>",
    "",
)
_STAGES = {
    "base_model": 3.1,
    "data": 2.4,
    "sft": 41.7,
    "candidates": 63.0,
    "preferences": 1.2,
    "reward_model": 96.5,
    "ppo": 251.3,
    "evaluation": 71.9,
}
_RESAMPLING = Resampling(seed=0, resamples=100)
_SUBJECTS = [
    "ocean",
    "moon",
    "bread",
    "river",
    "train",
    "garden",
    "winter",
    "music",
    "paper",
    "bridge",
]
_ENDINGS = (
    "is something many people like to think about.",
    "has been known for a long time, and it is still useful today in many ways because of that",
    "works because of the sun and the wind.",
    "comes in many forms: 1. the first form 2. the second form 3. the third",
)


def write_run(
    folder: Path, *, prompts: int = 40, simulated: bool = True, metrics: bool = True
) -> Path:
    """Write run.json, metrics, evaluation.json, samples.jsonl and summary.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = PipelineConfig.model_validate(
        {"preferences": {"source": "panel" if simulated else "people"}}
    )
    samples = made_samples(prompts, with_gold=simulated)
    write_run_file(folder, config)
    if metrics:
        write_metrics(folder)
    write_samples(samples, folder / "samples.jsonl")
    write_evaluation(made_evaluation(samples, simulated), folder / "evaluation.json")
    write_summary(folder, made_summary(simulated))
    return folder


def write_run_file(folder: Path, config: PipelineConfig, **changes) -> None:
    stages = {
        name: StageRecord(
            state="reused" if name in ("base_model", "data") else "done",
            key="0" * 64,
            finished_key="0" * 64,
            reason="never run",
            seconds=seconds,
        )
        for name, seconds in _STAGES.items()
    }
    run = RunFile(
        name="quickstart",
        state="done",
        command="alignflow run flows/configs/quickstart.toml",
        pid=4242,
        host="machine",
        store="store",
        started="2025-01-01T10:00:00+00:00",
        config=config.model_dump(mode="json"),
        stages=stages,
    )
    text = run.model_copy(update=changes).model_dump_json(indent=2)
    (folder / "run.json").write_text(text, encoding="utf-8")


def made_samples(prompts: int, *, with_gold: bool) -> list[EvaluatedSample]:
    draw = random.Random(1)
    samples = []
    for number in range(prompts):
        chinese = number % 12 == 11
        subject = _SUBJECTS[number % len(_SUBJECTS)]
        question = "怎样学好英语？" if chinese else f"Why is the {subject} important? ({number})"
        for policy, limit in (("sft", 26), ("ppo", 13)):
            for sample in range(2):
                words = f"The {subject} {draw.choice(_ENDINGS)} {draw.choice(_ENDINGS)}".split()
                text = " ".join(words[: draw.randint(limit // 2, limit)])
                if draw.random() < (0.5 if policy == "sft" else 0.8):
                    text = text.rstrip(".,:") + "."
                if sample == 0 and policy == "ppo" and number < len(HOSTILE):
                    text = HOSTILE[number]
                finished = text.endswith(".")
                gold = gold_score(question, text, finished)
                samples.append(
                    EvaluatedSample(
                        prompt_id=f"{'zh' if chinese else 'en'}-{number:03d}",
                        prompt_text=question,
                        language="zh" if chinese else "en",
                        policy=policy,
                        sample=sample,
                        text=text,
                        response_tokens=len(text.split()) + 2,
                        finished=finished,
                        gold_total=gold.total if with_gold else None,
                        gold_components=gold.components if with_gold else {},
                        reward_score=2 * gold.total - 1 + draw.gauss(0, 0.2),
                        kl_nats=0.0 if policy == "sft" else draw.gauss(1.6, 0.8),
                    )
                )
    return samples


def made_evaluation(samples: list[EvaluatedSample], simulated: bool) -> EvaluationResult:
    if not simulated:
        pairs = [
            ScoredPair(
                prompt_id=f"human-{number}",
                better_score=0.4 if number % 5 else -0.4,
                worse_score=0.0,
                better_tokens=20 + number % 7,
                worse_tokens=23,
                fold=number % 5,
            )
            for number in range(100)
        ]
        accuracy = cross_validated_accuracy(pairs, resampling=_RESAMPLING)
        return evaluate(samples, resampling=_RESAMPLING, cross_validated=accuracy)
    candidates = [
        ScoredCandidate(
            prompt_id=s.prompt_id,
            language=s.language,
            text=s.text,
            response_tokens=s.response_tokens,
            finished=s.finished,
            is_probe=s.sample == 1 and s.policy == "ppo",
            gold_total=s.gold_total or 0.0,
            gold_components=s.gold_components,
            reward_score=s.reward_score,
        )
        for s in samples
    ]
    gold = {f"{s.prompt_id}/{s.policy}/{s.sample}": s.gold_total or 0.0 for s in samples}
    return evaluate(
        samples,
        resampling=_RESAMPLING,
        heldout_candidates=candidates,
        sft_candidates=candidates,
        labels=label_statistics(
            _rankings(gold), panel="simulated panel", gold=gold, resampling=_RESAMPLING
        ),
    )


def _rankings(gold: dict[str, float]) -> list[Ranking]:
    draw = random.Random(2)
    groups: dict[str, list[str]] = {}
    for response in gold:
        groups.setdefault(response.split("/")[0], []).append(response)
    rankings = []
    for labeler, noise in (("sim-1", 0.1), ("sim-2", 0.15), ("sim-spammer-1", 9.0)):
        for prompt, responses in groups.items():
            noisy = [round(gold[r] + draw.gauss(0, noise), 1) for r in responses]
            order = sorted(set(noisy), reverse=True)
            rankings.append(
                Ranking(
                    annotation_id=f"{labeler}/{prompt}",
                    prompt_id=prompt,
                    labeler=labeler,
                    response_ids=tuple(responses),
                    tiers=tuple(order.index(score) for score in noisy),
                )
            )
    return rankings


def write_metrics(folder: Path) -> None:
    draw = random.Random(3)
    sft = JsonlMetrics(folder / "metrics" / "sft.jsonl")
    for step in range(1, 41):
        sft.record(
            step,
            {
                "sft/loss": 1.1 + 1.6 * math.exp(-step / 9) + draw.gauss(0, 0.05),
                "sft/gradient_norm": 2.4 + draw.gauss(0, 0.3),
                "sft/learning_rate": 4e-5 * (1 - step / 41),
                "sft/tokens_per_s": 420 + draw.gauss(0, 20),
            },
        )
    reward_model = JsonlMetrics(folder / "metrics" / "reward_model.jsonl")
    for step in range(1, 17):
        reward_model.record(
            step,
            {
                "reward_model/loss": 0.69 - 0.012 * step + draw.gauss(0, 0.02),
                "reward_model/accuracy": 0.52 + 0.018 * step + draw.gauss(0, 0.03),
                "reward_model/gradient_norm": 3.0 + draw.gauss(0, 0.4),
                "reward_model/tokens_per_s": 610 + draw.gauss(0, 30),
            },
        )
    ppo = JsonlMetrics(folder / "metrics" / "ppo.jsonl")
    for step in range(1, 8):
        ppo.record(step, _ppo_step(step, draw))


def _ppo_step(step: int, draw: random.Random) -> dict[str, float]:
    phases = {"generate": 11.2, "old_logprobs": 2.6, "reference_logprobs": 2.5, "score": 0.9}
    phases |= {"values": 0.9, "update_policy": 9.3, "update_critic": 3.8, "sync_weights": 0.6}
    times = {f"time/{name}_s": s * (1 + draw.gauss(0, 0.05)) for name, s in phases.items()}
    return {
        "ppo/score_mean": 0.12 * step + draw.gauss(0, 0.05),
        "ppo/reward_mean": 0.09 * step + draw.gauss(0, 0.05),
        "ppo/kl_nats": 0.02 + 0.24 * (step - 1) + abs(draw.gauss(0, 0.03)),
        "ppo/entropy_nats": 2.3 - 0.06 * step,
        "ppo/clip_fraction": 0.02 + 0.012 * step,
        "ppo/approx_kl_nats": 0.004 + 0.0004 * step,
        "ppo/explained_variance": float("nan") if step == 1 else 0.1 + 0.07 * step,
        "ppo/policy_loss": -0.01 - 0.001 * step,
        "ppo/value_loss": 0.4 - 0.03 * step,
        "ppo/response_tokens_mean": 31.0 - 1.7 * step,
        "ppo/eos_rate": 0.5 + 0.04 * step,
        "ppo/sampler_gap_max": 3e-5 + 1e-6 * step,
        "ppo/gradient_norm": 1.4 + draw.gauss(0, 0.1),
        "ppo/learning_rate": 4e-5 * (1 - 0.1 * step),
        "ppo/first_ratio_max_deviation": 0.0,
        "ppo/policy_version": float(step - 1),
        **times,
        "time/step_s": sum(times.values()) + 0.7,
    }


def made_summary(simulated: bool) -> Summary:
    stages = {
        name: {
            "wall_s": 0.1 if name in ("base_model", "data") else seconds,
            "reused": name in ("base_model", "data"),
            "model_start_s": seconds * 0.2 if seconds > 30 else 0.0,
            "model_work_s": seconds * 0.7 if seconds > 30 else 0.0,
        }
        for name, seconds in _STAGES.items()
    }
    start = sum(stage["model_start_s"] for stage in stages.values())
    work = sum(stage["model_work_s"] for stage in stages.values())
    roles = ("policy", "critic", "reference", "reward_model", "generator")
    figure = {"seed": 0, "command": "alignflow run flows/configs/quickstart.toml"}
    return Summary.model_validate(
        {
            "run": "quickstart",
            "command": "alignflow run flows/configs/quickstart.toml",
            "finished": "2025-01-01T10:09:00+00:00",
            "seed": 0,
            "simulated_labels": simulated,
            "targets": {
                "gain/gold": {"value": 0.1, "n": 37, "low": 0.04, "high": 0.16, **figure},
                "wall_s": {"value": 540.2, "n": 1, "unit": "s", "about": "whole run", **figure},
            },
            "checks": {
                "all_finite": {"passed": True, "detail": "161 recorded values of 7 PPO steps"},
                "first_ratio_is_one": {"passed": True, "detail": "largest |ratio - 1| is 0.0e+00"},
                "kl_under_budget": {"passed": True, "detail": "highest 1.487 nats, budget 8"},
                "roles_in_processes_of_their_own": {"passed": False, "detail": "4 processes"},
            },
            "versions": {
                "ray": "2.60.0",
                "vllm": "0.32.0",
                "deepspeed": "0.19.8",
                "prefect": "3.7.7",
                "gradio": None,
                "other": {"python": "3.11.9", "torch": "2.13.0+cpu", "commit": "0123abc"},
            },
            "actors": [
                {
                    "role": role,
                    "rank": 0,
                    "pid": 5000 + i,
                    "engine": "LLM" if role == "generator" else "DeepSpeedEngine",
                    "steps": 14 if role in ("policy", "critic") else 0,
                    "policy_versions": list(range(7)) if role == "generator" else [],
                }
                for i, role in enumerate(roles)
            ],
            "timing": {
                "wall_s": 540.2,
                "model_start_s": start,
                "model_work_s": work,
                "waiting_for_people_s": 0.0,
                "orchestration_s": 540.2 - start - work,
                "stages": stages,
            },
            "memory": {
                "period_s": 1.0,
                "samples": 540,
                "start_gib": 1.9,
                "peak_rise_gib": 9.4,
                "peak_pss_gib": {
                    "driver": 0.71,
                    "policy/0": 2.94,
                    "critic/0": 1.62,
                    "reference/0": 1.05,
                    "reward_model/0": 0.74,
                    "generator/0": 2.31,
                },
            },
            "machine": {
                "cores": 2,
                "memory_gib": 24.0,
                "platform": "Linux-6.1-x86_64",
                "load_average_at_start": 0.1,
            },
            "reused": ["base_model", "data"],
        }
    )
