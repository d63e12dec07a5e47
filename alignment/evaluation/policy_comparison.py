"""PPO against SFT on the same held-out prompts: levels, paired differences and win rates.

Intervals resample prompts, because samples of one prompt are not independent. Each language is
compared on its own prompts alone: the headline language's figures know nothing of the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from alignment.evaluation.resampling import Resampling
from alignment.evaluation.samples import EvaluatedSample, PolicyName, check_samples
from alignment.evaluation.texts import words
from alignment.statistics.bootstrap import Interval
from alignment.statistics.repetition import distinct_n, repetition_rate

GOLD = "gold"
REWARD = "reward_score"
DISTINCT_2 = "distinct_2"

QUANTITIES: dict[str, str] = {
    GOLD: "simulated panel's hidden rubric, 0 to 1, higher is better",
    REWARD: "reward-model score; 0 is the mean of the SFT candidates",
    "kl_nats": "KL against the SFT policy, nats a sequence (k1)",
    "response_tokens": "tokens of the response, end-of-turn included",
    "response_words": "words of the response; a Chinese character is a word",
    "eos_rate": "share of responses that ended by themselves within the limit",
    "repetition": "share of word trigrams that occurred before in the response",
    DISTINCT_2: "different word bigrams over all, among the responses to one prompt",
}
"""Name and meaning of each quantity of a comparison."""

_Measure = Callable[[EvaluatedSample], float]

_MEASURES: dict[str, _Measure] = {
    REWARD: lambda sample: sample.reward_score,
    "kl_nats": lambda sample: sample.kl_nats,
    "response_tokens": lambda sample: sample.response_tokens,
    "response_words": lambda sample: len(words(sample.text)),
    "eos_rate": lambda sample: sample.finished,
    "repetition": lambda sample: repetition_rate(words(sample.text)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyComparison:
    """Both policies on the prompts of one language.

    `sft` and `ppo` hold each quantity's level, `difference` ppo - sft paired by prompt.
    `win_rate` holds, by `gold` and by `reward_score`, how often a PPO response beats an SFT
    response to the same prompt, over all pairs of them, a tie counting one half.
    """

    language: str
    prompts: int
    sft: Mapping[str, Interval]
    ppo: Mapping[str, Interval]
    difference: Mapping[str, Interval]
    win_rate: Mapping[str, Interval]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """Values [n] of one quantity and policy, with the prompt of each."""

    values: Sequence[float]
    prompts: Sequence[str]


def compare_policies(
    samples: Sequence[EvaluatedSample], *, language: str, resampling: Resampling
) -> PolicyComparison:
    """Compare both policies on the prompts in `language`, at least two of them.

    Raises:
        DataError: the samples do not pair up by prompt, or there are fewer than two prompts.
        NumericsError: a score is not finite.
    """
    chosen = [sample for sample in samples if sample.language == language]
    check_samples(chosen)
    sft, ppo = _by_prompt(chosen, "sft"), _by_prompt(chosen, "ppo")
    before, after = _all_series(sft), _all_series(ppo)
    return PolicyComparison(
        language=language,
        prompts=len(sft),
        sft={name: resampling.mean(s.values, s.prompts) for name, s in before.items()},
        ppo={name: resampling.mean(s.values, s.prompts) for name, s in after.items()},
        difference={
            name: resampling.difference(
                after[name].values, after[name].prompts, series.values, series.prompts
            )
            for name, series in before.items()
        },
        win_rate={
            judge: resampling.mean(wins.values, wins.prompts)
            for judge, wins in _all_wins(sft, ppo).items()
        },
    )


_ByPrompt = Mapping[str, Sequence[EvaluatedSample]]


def _by_prompt(samples: Sequence[EvaluatedSample], policy: PolicyName) -> _ByPrompt:
    grouped: dict[str, list[EvaluatedSample]] = {}
    for sample in samples:
        if sample.policy == policy:
            grouped.setdefault(sample.prompt_id, []).append(sample)
    return grouped


def _all_series(responses: _ByPrompt) -> dict[str, _Series]:
    flat = [sample for samples in responses.values() for sample in samples]
    prompts = [sample.prompt_id for sample in flat]
    series = {
        name: _Series(values=[measure(sample) for sample in flat], prompts=prompts)
        for name, measure in (_gold_measures(flat[0]) | _MEASURES).items()
    }
    diversity = [distinct_n([words(s.text) for s in samples], 2) for samples in responses.values()]
    return series | {DISTINCT_2: _Series(values=diversity, prompts=list(responses))}


def _gold_measures(example: EvaluatedSample) -> dict[str, _Measure]:
    """The rubric's total and parts as measures; none where the samples have no gold."""
    if example.gold_total is None:
        return {}

    def component(name: str) -> _Measure:
        return lambda sample: sample.gold_components[name]

    parts = {f"{GOLD}/{name}": component(name) for name in example.gold_components}
    return {GOLD: _gold_total, **parts}


def _gold_total(sample: EvaluatedSample) -> float:
    assert sample.gold_total is not None  # check_samples: every sample has gold or none has
    return sample.gold_total


def _all_wins(sft: _ByPrompt, ppo: _ByPrompt) -> dict[str, _Series]:
    """By judge: 1, 1/2 or 0 for each pair of a PPO and an SFT response to one prompt."""
    pairs = [(p, s) for prompt, samples in ppo.items() for p, s in product(samples, sft[prompt])]
    prompts = [winner.prompt_id for winner, _ in pairs]
    judges = {REWARD: _MEASURES[REWARD]}
    if pairs[0][0].gold_total is not None:
        judges = {GOLD: _gold_total, **judges}
    return {
        judge: _Series(
            values=[win_share(score(p), score(s)) for p, s in pairs],
            prompts=prompts,
        )
        for judge, score in judges.items()
    }


def win_share(first: float, second: float) -> float:
    """1 if `first` is greater, 0 if `second` is, 0.5 for a tie."""
    return 0.5 + 0.5 * ((first > second) - (first < second))
