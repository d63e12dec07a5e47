"""Watching a training for a policy that games its reward; it changes nothing that is computed.

`RewardWatch` stands between the loop and where its metrics go. For each step it adds what every
reward source said, evaluates on held-out prompts where asked to, applies the rules of
`monitors`, and hands on alarms with the texts behind them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignment.experience import EncodedPrompt, Sampling, TokenBatch
from alignment.metrics import SCORE_OF
from alignment.reward_config import MonitorsConfig
from alignment.rewards.alarms import Alarm
from alignment.rewards.combined import CombinedReward, ScoredTexts
from alignment.rewards.monitors import (
    Reading,
    disagreement_rise,
    judge_divergence,
    length_drift,
    repetition_rise,
    token_repetition,
)
from alignment.seeds import derive_seed
from alignment.training.roles import Generator, MetricSink


@dataclass(frozen=True, kw_only=True)
class HeldoutEvaluation:
    """Responses to held-out prompts, judged by the reward model and perhaps by another judge.

    judges: by metric name, `ppo/heldout_score_mean` first, what gives a score [B] for a batch.
    """

    generator: Generator
    prompts: Sequence[EncodedPrompt]
    sampling: Sampling
    judges: Mapping[str, Callable[[TokenBatch], Tensor]]
    seed: int
    every_steps: int

    def at(self, step: int) -> dict[str, float]:
        """Each judge's mean over one response a prompt, by the generator's current weights."""
        if step % self.every_steps:
            return {}
        seeds = [derive_seed(self.seed, "heldout", step, i) for i in range(len(self.prompts))]
        rollout = self.generator.generate(self.prompts, self.sampling, seeds=seeds)
        return {name: float(judge(rollout).mean()) for name, judge in self.judges.items()}


class RewardWatch:
    """A `MetricSink` that adds the reward's own metrics and alarms before it hands them on.

    `history` holds the metrics of earlier steps of a resumed training, in order.
    """

    def __init__(
        self,
        sink: MetricSink,
        reward: CombinedReward,
        config: MonitorsConfig,
        *,
        history: Sequence[Mapping[str, float]] = (),
        heldout: HeldoutEvaluation | None = None,
        on_alarm: Callable[[Alarm], None],
    ) -> None:
        self._sink = sink
        self._reward = reward
        self._config = config
        self._history = [dict(step) for step in history]
        self._heldout = heldout
        self._on_alarm = on_alarm

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand on the step's metrics with those of the reward and the monitors."""
        scored = self._reward.last
        assert scored is not None, "the loop scores before it records"
        numbers = {**metrics, **source_metrics(scored)}
        if self._heldout is not None:
            numbers |= self._heldout.at(step)
        self._history.append(numbers)
        readings = monitor_readings(self._history, self._config)
        for name, reading in readings.items():
            numbers[f"ppo/{name}_reading"] = reading.value
            numbers[f"ppo/alarm_{name}"] = float(reading.alarm)
        self._sink.record(step, numbers)
        for name, reading in readings.items():
            if reading.alarm:
                self._on_alarm(self._alarm(step, name, reading, scored))

    def _alarm(self, step: int, name: str, reading: Reading, scored: ScoredTexts) -> Alarm:
        before = self._history[-2] if len(self._history) > 1 else {}
        return Alarm(
            step=step,
            monitor=name,
            reading=reading.value,
            is_new=not before.get(f"ppo/alarm_{name}"),
            texts=suspicious_texts(name, reading, scored, count=self._config.texts_per_alarm),
        )


def source_metrics(scored: ScoredTexts) -> dict[str, float]:
    """Each source's mean score before its weight, disagreement and repetition of a step."""
    metrics = {
        f"{SCORE_OF}{name}": float(said.scores.mean()) for name, said in scored.by_source.items()
    }
    if scored.disagreement is not None:
        metrics["ppo/disagreement_mean"] = float(scored.disagreement.mean())
    repetitions = [token_repetition(tokens) for tokens in scored.tokens]
    metrics["ppo/repetition_mean"] = sum(repetitions) / len(repetitions)
    return metrics


def monitor_readings(
    history: Sequence[Mapping[str, float]], config: MonitorsConfig
) -> dict[str, Reading]:
    """What each monitor reads at the newest step; one that cannot say yet is left out."""

    def values(name: str, steps: Sequence[Mapping[str, float]] = history) -> list[float]:
        return [step[name] for step in steps if step.get(name) is not None]

    readings: dict[str, Reading | None] = {
        "length": length_drift(
            values("ppo/response_tokens_mean"),
            baseline_steps=config.baseline_steps,
            factor=config.length_factor,
        ),
        "repetition": repetition_rise(
            values("ppo/repetition_mean"),
            baseline_steps=config.baseline_steps,
            rise=config.repetition_rise,
        ),
        "disagreement": disagreement_rise(
            values("ppo/disagreement_mean"),
            baseline_steps=config.baseline_steps,
            factor=config.disagreement_factor,
        ),
    }
    judge = _judge_metric(history[-1])
    if judge is not None:
        evaluated = [step for step in history if step.get(judge) is not None]
        readings["judge"] = judge_divergence(
            values("ppo/score_mean", evaluated),
            values(judge, evaluated),
            evaluations=config.judge_evaluations,
            fall=config.judge_fall,
        )
    return {name: reading for name, reading in readings.items() if reading is not None}


def _judge_metric(step: Mapping[str, float]) -> str | None:
    """The held-out judge of a step that was evaluated: the second judge where there is one."""
    names = ("ppo/heldout_judge_mean", "ppo/heldout_score_mean")
    return next((name for name in names if step.get(name) is not None), None)


def suspicious_texts(
    monitor: str, reading: Reading, scored: ScoredTexts, *, count: int
) -> list[dict[str, Any]]:
    """The best-paid `count` responses of those that show the sign most: the upper half by it.

    The sign is a response's length (shortness where lengths fell), repetition or disagreement;
    where the judge falls it is the score alone.
    """
    repetitions = [token_repetition(tokens) for tokens in scored.tokens]
    lengths = torch.tensor([float(len(tokens)) for tokens in scored.tokens])
    signs = {
        "length": lengths if reading.value > 1 else -lengths,
        "repetition": torch.tensor(repetitions),
        "disagreement": scored.disagreement,
    }
    sign = signs.get(monitor)
    rows = torch.arange(len(scored.texts))
    if sign is not None:
        rows = sign.argsort(descending=True, stable=True)[: -(-len(rows) // 2)]
    best = rows[scored.totals[rows].argsort(descending=True, stable=True)][:count]
    return [
        {
            "prompt": scored.texts[row].prompt_text,
            "response": scored.texts[row].response,
            "score": float(scored.totals[row]),
            "by_source": {name: float(said.scores[row]) for name, said in scored.by_source.items()},
            "tokens": len(scored.tokens[row]),
            "repetition": repetitions[row],
            **(
                {"disagreement": float(scored.disagreement[row])}
                if scored.disagreement is not None
                else {}
            ),
        }
        for row in best.tolist()
    ]
