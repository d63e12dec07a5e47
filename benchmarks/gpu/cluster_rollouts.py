"""A rollout engine on the GPU: vLLM's log-probabilities held to the model's own on the CPU."""

import shutil
import time
from typing import Any

import torch

from alignment import roles_local
from alignment.config import Precision, RoleResources
from alignment.experience import EncodedPrompt, Sampling, select_rows
from alignment.models.tiny import make_tiny_model
from alignment.role_specs import FrozenSpec, GeneratorSpec
from benchmarks.gpu.cluster_checks import Bench

ACCEPTED_GAP_NATS: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.3}
PROMPTS, PROMPT_TOKENS, RESPONSE_TOKENS, COMPARED = 64, 32, 64, 4


def check_rollouts(bench: Bench) -> dict[str, Any]:
    """In both precisions: log-probabilities are the model's own, and whether samples repeat.

    They need not: what is computed beside a sequence differs from call to call, and in bf16 its
    rounding with that. A resumed run replays its journal and does not sample again.
    """
    _give_tokenizer(bench)
    figures: dict[str, Any] = {"passed": True}
    precisions: tuple[Precision, ...] = ("bfloat16", "float32")
    for precision in precisions:
        seen = _sampled(bench, precision)
        figures[precision] = seen
        figures["passed"] &= seen["gap_nats"] < ACCEPTED_GAP_NATS[precision]
    return figures


def _sampled(bench: Bench, precision: Precision) -> dict[str, Any]:
    spec = GeneratorSpec(
        name="generator",
        model_folder=bench.model,
        max_sequence_tokens=PROMPT_TOKENS + RESPONSE_TOKENS,
        precision=precision,
        resources=RoleResources(gpus_per_rank=bench.gpus),
    )
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(bench.size.shape.vocabulary, (PROMPTS, PROMPT_TOKENS), generator=drawn)
    prompts = [
        EncodedPrompt(id=str(row), token_ids=tuple(ids)) for row, ids in enumerate(tokens.tolist())
    ]
    sampling, seeds = Sampling(max_response_tokens=RESPONSE_TOKENS), list(range(PROMPTS))
    began = time.perf_counter()
    with bench.started(spec) as role:
        start_s = time.perf_counter() - began
        role.generate(prompts, sampling, seeds=seeds)
        began = time.perf_counter()
        rollout = role.generate(prompts, sampling, seeds=seeds)
        seconds = time.perf_counter() - began
        again = role.generate(prompts, sampling, seeds=seeds)
        [facts] = role.describe()
    reference = FrozenSpec(name="reference", kind="language", model_folder=bench.model)
    few = select_rows(rollout, range(COMPARED))
    [model] = roles_local.start_roles([reference]).values()
    gaps = (model.logprobs(few) - few.sampling_logprobs)[few.response_mask].abs()
    same = rollout.token_ids.shape == again.token_ids.shape and torch.equal(
        rollout.token_ids, again.token_ids
    )
    return {
        "vllm": facts["vllm"],
        "start_s": start_s,
        "tokens_per_s": float(rollout.response_mask.sum()) / seconds,
        "gap_nats": float(gaps.mean()),
        "largest_gap_nats": float(gaps.max()),
        "samples_repeat": same,
    }


def _give_tokenizer(bench: Bench) -> None:
    """A folder that engines load needs one; only its end-of-turn token is asked for."""
    tiny = bench.work / "tiny"
    make_tiny_model(tiny)
    for path in tiny.glob("*token*"):
        if not (bench.model / path.name).exists():
            shutil.copy(path, bench.model)
    shutil.rmtree(tiny)
