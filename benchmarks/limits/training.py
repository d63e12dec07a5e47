"""Fine-tuning and reward-model steps: operations of valid tokens over what products alone do."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from alignment.cluster import Cluster
from alignment.config import ClusterConfig, OptimizerConfig, Precision, TrainingConfig
from alignment.data.batching import preference_batch, sft_batch
from alignment.data.chat import EncodedExample, encode_example
from alignment.data.starter import load_starter
from alignment.experience import PreferenceBatch, TokenBatch
from alignment.models.loading import load_tokenizer
from alignment.planning.model_shapes import read_model_shape
from alignment.records import Comparison, PreferenceGroup, Prompt, Response
from alignment.role_specs import TrainableSpec
from alignment.training.reward_model import reward_model_loss
from alignment.training.sft import demonstration_loss
from benchmarks.limits.products import Products, product_rate
from benchmarks.operations import WITH_BACKWARD, Sequences, language_pass, value_pass

TOKENS_PER_MICROBATCH = 2048
RESPONSES_PER_GROUP = 6


def measure_training(
    kind: str,
    models: tuple[Path, Path],
    scratch: Path,
    *,
    sequences: int,
    precision: Precision,
    rounds: int,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """One record a round: seconds of an optimiser step, and the rate of its products alone.

    `kind` is `sft` or `reward_model`, which takes `sequences` in groups of six.
    """
    language = kind == "sft"
    folder, batch = models[0] if language else models[1], _batch(kind, models[0], sequences)
    shape, lengths = read_model_shape(models[0]), _lengths(batch)
    operations = WITH_BACKWARD * (language_pass if language else value_pass)(shape, lengths)
    spec = TrainableSpec(
        name=kind,
        kind="language" if language else "value",
        model_folder=folder,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        training=TrainingConfig(precision=precision, tokens_per_microbatch=TOKENS_PER_MICROBATCH),
        total_steps=rounds + 2,
        seed=0,
    )
    products = _products(lengths, precision, head=language)
    denominator = float(lengths.response_tokens if language else lengths.tokens)
    loss = demonstration_loss if language else reward_model_loss
    config = ClusterConfig(threads=threads)
    with Cluster.open(config, log_folder=scratch / "logs") as cluster:
        role = cluster.start_roles([spec])[kind]
        [actor] = role.group.actors
        for number in range(rounds + 2):
            began = time.perf_counter()
            role.forward_backward(batch, loss, denominator=denominator)
            middle = time.perf_counter()
            role.step()
            seconds = time.perf_counter() - began
            rate = ray.get(actor.__ray_call__.remote(product_rate, products))
            if number > 1:
                yield {
                    "part": kind,
                    "precision": precision,
                    "sequences": len(batch.token_ids),
                    "tokens": lengths.tokens,
                    "seconds": seconds,
                    "optimiser_s": seconds - (middle - began),
                    "product_gflops": rate / 1e9,
                    "used": operations / seconds / rate,
                }


def _products(lengths: Sequences, precision: Precision, *, head: bool) -> Products:
    """As many tokens at a time as a microbatch has."""
    pieces = -(-lengths.tokens // TOKENS_PER_MICROBATCH)
    return Products(
        tokens=lengths.tokens // pieces,
        head_tokens=lengths.response_tokens // pieces if head else 0,
        backward=True,
        precision=precision,
    )


def _batch(kind: str, folder: Path, sequences: int) -> TokenBatch | PreferenceBatch:
    tokenizer, demonstrations = load_tokenizer(folder), load_starter().demonstrations

    def encode(prompt: Prompt, response: Response) -> EncodedExample:
        return encode_example(tokenizer, prompt, response, max_prompt_tokens=256)

    responses = [Response(id=d.prompt.id, text=d.response) for d in demonstrations]
    if kind == "sft":
        prompts = [d.prompt for d in demonstrations[:sequences]]
        return sft_batch([encode(*pair) for pair in zip(prompts, responses, strict=False)])
    groups = []
    for first in range(0, sequences, RESPONSES_PER_GROUP):
        members = tuple(responses[first : first + RESPONSES_PER_GROUP])
        pairs = [(a, b) for a in range(len(members)) for b in range(a)]
        comparisons = tuple(Comparison(first=a, second=b, preference=1.0) for a, b in pairs)
        groups.append(
            PreferenceGroup(
                prompt=demonstrations[first].prompt, responses=members, comparisons=comparisons
            )
        )
    return preference_batch(groups, encode)


def _lengths(batch: TokenBatch) -> Sequences:
    responses = batch.response_mask.sum(1)
    prompts = batch.attention_mask.sum(1) - responses
    return Sequences(tuple(prompts.tolist()), tuple(responses.tolist()))
