"""What was sampled on held-out prompts, and what the judges said of each response."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from alignment.errors import DataError, NumericsError

PolicyName = Literal["sft", "ppo"]
"""`sft` is the start and the KL reference, `ppo` the trained policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedSample:
    """One response of one policy to one held-out prompt.

    `sample` counts the responses of this policy to this prompt from 0. `response_tokens`
    includes the end-of-turn token; `finished` is False where the token limit ended the
    response. `gold_total` and `gold_components` are the hidden rubric's noise-free scores in
    [0, 1], None and empty where there is no rubric. `reward_score` is the reward model's,
    `kl_nats` the sum over response tokens of log p(policy) - log p(SFT).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    prompt_id: str
    prompt_text: str
    language: str
    policy: PolicyName
    sample: int
    text: str
    response_tokens: int
    finished: bool
    gold_total: float | None
    gold_components: Mapping[str, float] = field(default_factory=dict)
    reward_score: float
    kl_nats: float


_SAMPLE = TypeAdapter(EvaluatedSample)


def check_samples(samples: Sequence[EvaluatedSample]) -> None:
    """Refuse samples that cannot be compared prompt by prompt.

    Raises:
        DataError: none at all, a prompt that one policy lacks, a sample twice, or gold (or one
            of its components) on some samples only.
        NumericsError: a score or a KL is not finite.
    """
    if not samples:
        raise DataError("no evaluated samples; evaluation needs both policies on held-out prompts")
    seen: set[tuple[str, str, int]] = set()
    judged_by = _judges(samples[0])
    for sample in samples:
        where = f"prompt {sample.prompt_id!r}, policy {sample.policy}, sample {sample.sample}"
        if (key := (sample.prompt_id, sample.policy, sample.sample)) in seen:
            raise DataError(f"{where} occurs twice; each sample of a prompt needs its own number")
        seen.add(key)
        if _judges(sample) != judged_by:
            raise DataError(
                f"{where} has gold scores {sorted(_judges(sample))}, the first sample has "
                f"{sorted(judged_by)}; score every sample by the same rubric or none"
            )
        _check_finite(sample, where)
    for policy, other in (("sft", "ppo"), ("ppo", "sft")):
        lacking = {p for p, name, _ in seen if name == other} - {
            p for p, name, _ in seen if name == policy
        }
        if lacking:
            raise DataError(
                f"{len(lacking)} prompts have samples of {other} but none of {policy}, e.g. "
                f"{min(lacking)!r}; a paired comparison needs both policies on every prompt"
            )


def write_samples(samples: Iterable[EvaluatedSample], path: Path) -> None:
    """One JSON object a line, UTF-8."""
    with path.open("wb") as file:
        for sample in samples:
            file.write(_SAMPLE.dump_json(sample) + b"\n")


def read_samples(path: Path) -> list[EvaluatedSample]:
    """The samples that `write_samples` wrote.

    Raises:
        DataError: a line is not a sample; names file, line and field.
    """
    samples = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                samples.append(_SAMPLE.validate_json(line))
            except ValidationError as error:
                problem = error.errors()[0]
                name = ".".join(str(part) for part in problem["loc"]) or "the line"
                raise DataError(
                    f"{path}, line {number}, {name}: {problem['msg']}; the file is written whole "
                    "by the evaluation stage, run that stage again"
                ) from None
    return samples


def _judges(sample: EvaluatedSample) -> set[str]:
    return set() if sample.gold_total is None else {"total", *sample.gold_components}


def _check_finite(sample: EvaluatedSample, where: str) -> None:
    numbers = {
        "reward_score": sample.reward_score,
        "kl_nats": sample.kl_nats,
        "gold_total": sample.gold_total or 0.0,
        **{f"gold_components.{k}": v for k, v in sample.gold_components.items()},
    }
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise NumericsError(
                f"{name} is {number} at {where}; every score must be finite before policies are "
                "compared: look at this response and the model that scored it"
            )
