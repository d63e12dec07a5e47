"""Small records that evaluation tests start from."""

from dataclasses import replace

from alignment.evaluation.pair_accuracy import ScoredCandidate
from alignment.evaluation.resampling import Resampling
from alignment.evaluation.samples import EvaluatedSample

RESAMPLING = Resampling(seed=0, resamples=200)


def sampled(prompt: str, policy: str, sample: int = 0, **changes) -> EvaluatedSample:
    plain = EvaluatedSample(
        prompt_id=prompt,
        prompt_text=f"question {prompt}",
        language="en",
        policy=policy,
        sample=sample,
        text="one two three",
        response_tokens=4,
        finished=True,
        gold_total=0.5,
        gold_components={"finished": 1.0},
        reward_score=0.0,
        kl_nats=0.0,
    )
    return replace(plain, **changes)


def two_prompts(**changes) -> list[EvaluatedSample]:
    return [
        sampled(prompt, policy, **changes) for prompt in ("p", "q") for policy in ("sft", "ppo")
    ]


def candidate(prompt: str = "p", **changes) -> ScoredCandidate:
    plain = ScoredCandidate(
        prompt_id=prompt,
        language="en",
        text="some words",
        response_tokens=10,
        finished=True,
        is_probe=False,
        gold_total=0.5,
        reward_score=0.0,
    )
    return replace(plain, **changes)
