"""Texts before and after, side by side. Every text is a stranger's and is treated so."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from alignment.evaluation.samples import EvaluatedSample
from flows.report.inputs import ReportInputs
from flows.report.markup import Html, minus, model_text, section, tag
from flows.report.wording import number

_UNSEEN, _EXTREMES, _FURTHER = 6, 2, 60


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The first sample of each policy on one prompt."""

    before: EvaluatedSample
    after: EvaluatedSample

    @property
    def gain(self) -> float:
        if self.before.gold_total is None or self.after.gold_total is None:
            return self.after.reward_score - self.before.reward_score
        return self.after.gold_total - self.before.gold_total


def texts_section(inputs: ReportInputs) -> Html | None:
    """Some prompts chosen without looking, the extremes, and the rest folded."""
    pairs = _pairs(inputs.samples)
    if not pairs:
        return None
    unseen = sorted(pairs, key=lambda pair: _digest(pair.before.prompt_id))[:_UNSEEN]
    rest = [pair for pair in pairs if pair not in unseen]
    by_gain = sorted(rest, key=lambda pair: pair.gain)
    worst = [pair for pair in by_gain if pair.gain < 0][:_EXTREMES]
    best = [pair for pair in reversed(by_gain) if pair.gain > 0][:_EXTREMES]
    further = [pair for pair in rest if pair not in [*worst, *best]]
    judge = "gold" if pairs[0].before.gold_total is not None else "reward-model score"
    return section(
        "texts",
        "Texts before and after",
        "The first response of each policy, as it was sampled; invisible characters are shown by "
        "their code point. Models of this size are often wrong in fact.",
        *_group("Chosen without looking, by a hash of the prompt", unseen),
        *_group(f"Largest gains in {judge}", best),
        *_group(f"Largest losses in {judge}", worst),
        tag(
            "details",
            tag("summary", f"{min(len(further), _FURTHER)} of {len(further)} further prompts"),
            *(_card(pair) for pair in further[:_FURTHER]),
        )
        if further
        else None,
    )


def _pairs(samples: Sequence[EvaluatedSample]) -> list[_Pair]:
    first: dict[tuple[str, str], EvaluatedSample] = {}
    for sample in sorted(samples, key=lambda s: s.sample):
        first.setdefault((sample.prompt_id, sample.policy), sample)
    prompts = dict.fromkeys(sample.prompt_id for sample in samples)
    return [
        _Pair(before=first[prompt, "sft"], after=first[prompt, "ppo"])
        for prompt in prompts
        if (prompt, "sft") in first and (prompt, "ppo") in first
    ]


def _digest(prompt_id: str) -> str:
    return hashlib.sha256(prompt_id.encode(errors="replace")).hexdigest()


def _group(heading: str, pairs: Sequence[_Pair]) -> list[Html]:
    return [tag("h3", heading), *(_card(pair) for pair in pairs)] if pairs else []


def _card(pair: _Pair) -> Html:
    return tag(
        "article",
        model_text(pair.before.prompt_text, language=pair.before.language),
        tag(
            "div",
            _response("Before, SFT", pair.before, "before"),
            _response("After, PPO", pair.after, "after"),
            class_="sides",
        ),
    )


def _response(heading: str, sample: EvaluatedSample, side: str) -> Html:
    facts = [f"reward {number(sample.reward_score)}", f"{sample.response_tokens} tokens"]
    if sample.gold_total is not None:
        facts.insert(0, f"gold {sample.gold_total:.2f}")
    if sample.policy == "ppo":
        facts.append(minus(f"KL {sample.kl_nats:+.1f}"))
    if not sample.finished:
        facts.append("cut off at the limit")
    return tag(
        "div",
        tag("h4", heading),
        model_text(sample.text, language=sample.language),
        tag("p", " · ".join(facts), class_="facts"),
        class_=f"side {side}",
    )
