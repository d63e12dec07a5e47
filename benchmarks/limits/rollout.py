"""Sampled tokens a second: our rollout engine against transformers' own `generate`."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from alignment.cluster import Cluster
from alignment.config import ClusterConfig
from alignment.experience import EncodedPrompt, Sampling
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec
from benchmarks.ppo.our_side import never_stop
from benchmarks.ppo.workload import MAX_PROMPT_TOKENS, RESPONSE_TOKENS, bench_prompts

SIZES = (32, 64)


def measure_rollout(
    models: tuple[Path, Path], scratch: Path, *, rounds: int, threads: int
) -> Iterator[dict[str, Any]]:
    """One record a round and number of sequences, each of 64 sampled tokens."""
    prompts = bench_prompts(models[0])
    specs: list[RoleSpec] = [
        GeneratorSpec(
            name="generator",
            model_folder=models[0],
            max_sequence_tokens=MAX_PROMPT_TOKENS + RESPONSE_TOKENS,
        ),
        FrozenSpec(name="transformers", kind="language", model_folder=models[0]),
    ]
    sampling = Sampling(max_response_tokens=RESPONSE_TOKENS)
    with Cluster.open(ClusterConfig(threads=threads), log_folder=scratch / "logs") as cluster:
        roles = cluster.start_roles(specs)
        [engine], [plain] = roles["generator"].group.actors, roles["transformers"].group.actors
        ray.get(engine.__ray_call__.remote(never_stop))
        for number in range(rounds + 1):
            for size in SIZES:
                batch = (prompts * 2)[:size]
                began = time.perf_counter()
                roles["generator"].generate(batch, sampling, seeds=list(range(size)))
                ours = time.perf_counter() - began
                theirs = ray.get(plain.__ray_call__.remote(generate_plainly, batch))
                if number:
                    yield {
                        "part": "rollout",
                        "sequences": size,
                        "ours_tokens_per_s": size * RESPONSE_TOKENS / ours,
                        "transformers_tokens_per_s": size * RESPONSE_TOKENS / theirs,
                        "ratio": theirs / ours,
                    }


def generate_plainly(actor: Any, prompts: Sequence[EncodedPrompt]) -> float:
    """Seconds of `generate` within the process of a frozen language model."""
    import torch

    longest = max(len(prompt.token_ids) for prompt in prompts)
    rows = [[0] * (longest - len(p.token_ids)) + list(p.token_ids) for p in prompts]
    mask = [[0] * (longest - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts]
    model = actor._module.causal_lm
    model.set_attn_implementation("sdpa")
    began = time.perf_counter()
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            do_sample=True,
            top_k=0,
            min_new_tokens=RESPONSE_TOKENS,
            max_new_tokens=RESPONSE_TOKENS,
        )
    assert output.shape[1] == longest + RESPONSE_TOKENS
    return time.perf_counter() - began
