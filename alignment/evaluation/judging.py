"""The judges' verdicts on responses: the hidden rubric's, the reward model's, and the KL.

The rubric judges only where a simulated panel ranked by it: for people's rankings it means
nothing. Every judge sees the tokens that were sampled.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from alignment.data.chat import EncodedExample
from alignment.evaluation.pair_accuracy import ScoredCandidate
from alignment.evaluation.samples import EvaluatedSample, PolicyName
from alignment.experience import TokenBatch, batch_from_rows
from alignment.gold_rubric import GoldScore, gold_score
from alignment.records import CandidateSet, Prompt, Response
from alignment.training.roles import LogprobModel, ScoreModel

Encode = Callable[[Prompt, Response], EncodedExample]
"""A prompt and a response as tokens, chat template applied."""


def judge_samples(
    policy_name: PolicyName,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    *,
    encode: Encode,
    reward_model: ScoreModel,
    policy: LogprobModel | None = None,
    reference: LogprobModel | None = None,
    by_gold: bool,
) -> list[EvaluatedSample]:
    """Each response of one policy with every judge's verdict, in the order given.

    Args:
        policy_name: whose responses these are.
        prompts: P held-out prompts.
        responses: for each prompt, its K responses.
        encode: turns prompt and response into tokens.
        reward_model: gives one score a response.
        policy: with `reference`, for the KL in nats a sequence; without, it is 0, as for the
            policy that is the reference itself.
        reference: the SFT policy.
        by_gold: judge by the hidden rubric too.
    """
    flat = [(p, n, r) for p, own in zip(prompts, responses, strict=True) for n, r in enumerate(own)]
    batch = _batch([(prompt, response) for prompt, _, response in flat], encode)
    scores = reward_model.scores(batch).tolist()
    kl_nats = [0.0] * len(flat)
    if policy is not None and reference is not None:
        kl_nats = _sequence_sums(policy.logprobs(batch) - reference.logprobs(batch))
    samples = []
    for (prompt, number, response), score, kl in zip(flat, scores, kl_nats, strict=True):
        gold = gold_of(prompt, response) if by_gold else None
        samples.append(
            EvaluatedSample(
                prompt_id=prompt.id,
                prompt_text=prompt.messages[-1].content,
                language=prompt.language,
                policy=policy_name,
                sample=number,
                text=response.text,
                response_tokens=len(response.token_ids),
                finished=response.finish_reason == "stop",
                gold_total=gold.total if gold else None,
                gold_components=gold.components if gold else {},
                reward_score=score,
                kl_nats=kl,
            )
        )
    return samples


def judge_candidates(
    sets: Sequence[CandidateSet], *, encode: Encode, reward_model: ScoreModel
) -> list[ScoredCandidate]:
    """Held-out candidates, probes included, by the reward model and by gold."""
    flat = [(s.prompt, response) for s in sets for response in s.responses]
    batch = _batch(flat, encode)
    tokens = batch.response_mask.sum(1).tolist()
    scores = reward_model.scores(batch).tolist()
    return [
        _candidate(prompt, response, score=score, tokens=length)
        for (prompt, response), score, length in zip(flat, scores, tokens, strict=True)
    ]


def gold_candidates(sets: Sequence[CandidateSet]) -> list[ScoredCandidate]:
    """Candidates by gold alone, their reward-model score left at 0."""
    return [
        _candidate(s.prompt, response, score=0.0, tokens=max(1, len(response.token_ids)))
        for s in sets
        for response in s.responses
    ]


def gold_of(prompt: Prompt, response: Response) -> GoldScore:
    """The hidden rubric's noise-free verdict on one response."""
    finished = response.finish_reason == "stop"
    return gold_score(prompt.messages[-1].content, response.text, finished)


def _candidate(prompt: Prompt, response: Response, *, score: float, tokens: int) -> ScoredCandidate:
    gold = gold_of(prompt, response)
    return ScoredCandidate(
        prompt_id=prompt.id,
        language=prompt.language,
        text=response.text,
        response_tokens=tokens,
        finished=response.finish_reason == "stop",
        is_probe=response.origin.startswith("probe"),
        gold_total=gold.total,
        gold_components=gold.components,
        reward_score=score,
    )


def _batch(pairs: Sequence[tuple[Prompt, Response]], encode: Encode) -> TokenBatch:
    examples = [encode(prompt, response) for prompt, response in pairs]
    return batch_from_rows(
        [example.prompt_ids for example in examples],
        [example.response_ids for example in examples],
    )


def _sequence_sums(gaps: Tensor) -> list[float]:
    sums: list[float] = gaps.sum(1).tolist()
    return sums
