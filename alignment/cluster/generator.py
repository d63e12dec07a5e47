"""A rollout engine's process: vLLM, token in and token out.

Log-probabilities are vLLM's *processed* ones, at the sampling temperature. After new weights
arrive, two things that vLLM leaves stale are put right: on CPU, the packed copy of a head that
is tied to the embeddings; everywhere, the prefix cache.
"""

import gc
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.cluster.carried_folders import ActorOfSomeHost, kept_model
from alignment.cluster.lent_weights import LentWeights
from alignment.cluster.processes import actor_device, describe_process, gives_memory_back
from alignment.cluster.weights import (
    FolderWeights,
    WeightBucket,
    WeightProbe,
    probe_tokens,
    require_same_shapes,
    weight_shapes,
)
from alignment.config import ClusterConfig, Precision
from alignment.errors import ClusterError, DataError
from alignment.experience import EncodedPrompt, Sampling
from alignment.role_specs import GeneratorSpec

ACCEPTED_GAP_NATS: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.3}
"""Mean difference to the policy on the probe that rounding explains (measured: 5e-6, 0.04)."""

CPU_BATCHED_TOKENS = 4096
"""Tokens of whole prompts that vLLM takes into one pass on CPU; a longer prompt raises it."""


SMALL_CACHE = ("KV cache is needed", "No available memory for the cache blocks")
"""What vLLM says where less than one sequence, or one block of it, has room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedResponse:
    """One response: tokens (end-of-turn included if finished) and vLLM's log-probabilities."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """What an engine with weights of a version made of the probe, maybe cut to its context."""

    version: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    accepted_gap_nats: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One engine's responses, and its answer to the probe if its weights are a policy's."""

    responses: list[GeneratedResponse]
    answer: ProbeAnswer | None


def require_same_answer(answer: ProbeAnswer | None, probe: WeightProbe, *, engine: str) -> None:
    """Raise ClusterError unless the engine said of the probe what the policy says."""
    if answer is None or answer.token_ids != probe.token_ids[: len(answer.token_ids)]:
        raise ClusterError(
            f"{engine} was asked {'nothing' if answer is None else answer.token_ids} where the "
            f"policy was asked {probe.token_ids}: whether it has the policy's weights is unknown. "
            "Load weights again, from a policy of the engine's own vocabulary"
        )
    pairs = zip(answer.logprobs, probe.logprobs, strict=False)
    gaps = [abs(said - wanted) for said, wanted in pairs]
    mean_gap = sum(gaps) / len(gaps)
    if not mean_gap <= answer.accepted_gap_nats:
        raise ClusterError(
            f"{engine}: after loading weights of version {answer.version}, log-probabilities "
            f"differ from the policy's by {mean_gap:.3g} nats a token on average; accepted: "
            f"{answer.accepted_gap_nats:g}. The engine did not take the weights over completely: "
            "do not train on its samples"
        )


class GeneratorActor(ActorOfSomeHost):
    """One vLLM engine on no GPU, one, or several (tensor parallel)."""

    def __init__(self, spec: GeneratorSpec, config: ClusterConfig, *, rank: int) -> None:
        self.spec = spec
        self.config = config
        self.rank = rank
        self._version: int | None = 0
        self._sampled_versions: set[int] = set()
        self._llm: Any = None
        self._is_updating = False
        self._is_probed = False
        self._answer: ProbeAnswer | None = None

    def start(self) -> None:
        """Load the model into vLLM.

        Raises:
            ClusterError: the cache would not hold one sequence of full length.
        """
        spec = self.spec
        self.device = actor_device(spec.name, self.rank, gpus=spec.resources.gpus_per_rank)
        from alignment.data.chat import end_of_turn_id
        from alignment.models.loading import load_tokenizer

        self._end_of_turn = end_of_turn_id(load_tokenizer(spec.model_folder))
        self._shapes = weight_shapes(spec.model_folder)
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would go before the argument
        engine = _vllm_engine()
        # It would log a traceback about the tokenizer that it is told not to load.
        logging.getLogger("vllm.renderers.base").setLevel(logging.ERROR)
        try:
            self._llm = engine(**engine_arguments(spec, self.config))
        except ValueError as error:
            is_small = any(said in str(error) for said in SMALL_CACHE)
            if is_small and self.device.type == "cpu":
                raise ClusterError(_small_cache(spec, self.config, error)) from error
            raise
        if self.device.type == "cpu":
            from alignment.cluster.vllm_sampling import draw_by_inversion

            self._llm.collective_rpc(draw_by_inversion)

    @gives_memory_back
    def generate(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, seeds: Sequence[int]
    ) -> Sampled:
        """One response a prompt, in order, each drawn with its own seed.

        The first after a policy's weights came answers the probe before: a weight update need not
        wait for it, and every rollout of these weights brings the answer along.

        Raises:
            DataError: a prompt and its response would not fit the context.
            ClusterError: an earlier weight update broke off.
        """
        version = self._usable_version()
        self._require_room(prompts, sampling)
        if self._is_probed and self._answer is None:
            self._answer = self._answer_probe(version)
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts],
            [self._sampling_parameters(sampling, seed) for seed in seeds],
            use_tqdm=False,
        )
        self._sampled_versions.add(version)
        responses = [_response(output.outputs[0], version) for output in outputs]
        return Sampled(responses=responses, answer=self._answer)

    def load_folder(self, weights: FolderWeights, version: int) -> None:
        """Replace the weights by a folder's, and everything computed from the old ones.

        Raises:
            ModelError: the weights are of another shape; nothing was changed.
        """
        self._load_folder(kept_model(weights.folder))
        self.adopt_weights(version, False)

    def begin_update(self) -> None:
        """Refuse to generate until `adopt_weights`, and let every layer wait for its weights."""
        self._version = None
        if self._is_updating:  # its policy died before the last piece
            self._llm.finish_weight_update()
        self._llm.init_weight_transfer_engine({"init_info": {}})
        self._llm.start_weight_update()
        self._is_updating = True

    def can_read(self, lent: LentWeights) -> bool:
        """Whether a policy's weights can be read where it trains them."""
        from alignment.cluster.weight_transfer import BORROWER

        return BORROWER.can_read(lent)

    def load_lent(self, lent: LentWeights, version: int) -> None:
        """Load a policy's weights from where it trains them, while it does not.

        Raises:
            ClusterError: weights were missing.
        """
        self.begin_update()
        self.load_bucket(lent)
        self.finish_update(version)

    def load_bucket(self, bucket: WeightBucket | LentWeights) -> None:
        """Load one piece of the weights, or all that are lent."""
        self._is_updating = False  # where loading fails, vLLM ends the update itself
        self._llm.update_weights({"update_info": {"bucket": bucket}})
        self._is_updating = True

    def finish_update(self, version: int) -> None:
        """Repack every layer for its kernels, and adopt the weights of a policy.

        Raises:
            ClusterError: weights were missing.
        """
        self._is_updating = False
        self._llm.finish_weight_update(weight_version=str(version))
        for missing in self._llm.collective_rpc(_missing_weights):
            if missing:
                raise ClusterError(
                    f"{self.spec.name} rank {self.rank}: weights of version {version} lack "
                    f"{len(missing)} of the engine's parameters, {missing[0]} first; load complete "
                    "weights before generating"
                )
        self.adopt_weights(version, True)

    def synchronise(self, operation: str, *arguments: Any) -> None:
        """One of vLLM's four weight-update calls, made by a policy that sends over NCCL."""
        self._version = None
        getattr(self._llm, operation)(*arguments)

    def adopt_weights(self, version: int, is_probed: bool) -> None:
        """Put right what a weight update leaves stale, and use the result.

        `is_probed`: a policy will say what these weights make of the probe.
        """
        if self.device.type == "cpu":
            self._llm.apply_model(_repack_tied_head)
        self._llm.reset_prefix_cache()
        self._is_probed, self._answer = is_probed, None
        self._version = version

    def describe(self) -> dict[str, Any]:
        """What runs behind this rank."""
        facts = {"role": self.spec.name, "rank": self.rank, **describe_process()}
        if self._llm is None:
            return facts
        import vllm

        settings = self._llm.llm_engine.vllm_config
        facts["exactness"] |= {
            "vllm": vllm.__version__,
            "precision": self.spec.precision,
            "prefix_caching": settings.cache_config.enable_prefix_caching,
            "async_scheduling": settings.scheduler_config.async_scheduling,
            "parallel_sequences": settings.scheduler_config.max_num_seqs,
            "gpus_per_rank": self.spec.resources.gpus_per_rank,
        }
        return {
            **facts,
            "engine": type(self._llm.llm_engine).__name__,
            "vllm": vllm.__version__,
            "policy_version": self._version,
            "policy_versions": sorted(self._sampled_versions),
            "device": str(self.device),
        }

    def _load_folder(self, folder: Path) -> None:
        given = weight_shapes(folder)
        require_same_shapes(self._shapes, given, source=f"model folder {folder}")
        self._version = None
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})

    def _answer_probe(self, version: int) -> ProbeAnswer:
        from vllm import SamplingParams

        vocabulary = self._llm.llm_engine.model_config.get_vocab_size()
        tokens = probe_tokens(vocabulary)[: self.spec.max_sequence_tokens - 1]
        [output] = self._llm.generate(
            {"prompt_token_ids": tokens},
            SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
            use_tqdm=False,
        )
        pairs = zip(tokens[1:], output.prompt_logprobs[1:], strict=True)
        return ProbeAnswer(
            version=version,
            token_ids=tuple(tokens),
            logprobs=tuple(float(by_token[token].logprob) for token, by_token in pairs),
            accepted_gap_nats=ACCEPTED_GAP_NATS[self.spec.precision],
        )

    def _usable_version(self) -> int:
        if self._version is None:
            raise ClusterError(
                f"{self.spec.name} rank {self.rank}: the last weight update broke off, so its "
                "weights are partly old; load weights again or restart the role"
            )
        return self._version

    def _require_room(self, prompts: Sequence[EncodedPrompt], sampling: Sampling) -> None:
        limit = self.spec.max_sequence_tokens
        for prompt in prompts:
            wanted = len(prompt.token_ids) + sampling.max_response_tokens
            if wanted > limit:
                raise DataError(
                    f"prompt {prompt.id} has {len(prompt.token_ids)} tokens; with a response of "
                    f"up to {sampling.max_response_tokens} that is {wanted}, and {self.spec.name} "
                    f"was started for {limit}; shorten the prompt, or start the role for more"
                )

    def _sampling_parameters(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_response_tokens,
            seed=seed,
            logprobs=0,
            stop_token_ids=[self._end_of_turn],
            ignore_eos=True,
            detokenize=False,
        )


def engine_arguments(spec: GeneratorSpec, config: ClusterConfig) -> dict[str, Any]:
    """Arguments of `vllm.LLM`; nothing that would change what is sampled is left to defaults."""
    arguments: dict[str, Any] = {
        "model": str(spec.model_folder),
        "dtype": spec.precision,
        "max_model_len": spec.max_sequence_tokens,
        "max_num_seqs": spec.max_parallel_sequences,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # not the folder's: it may set top-p or a penalty
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "async_scheduling": False,  # what runs beside a sequence must not depend on timing
        "disable_log_stats": True,
        "seed": 0,  # each request has its own
    }
    gpus = spec.resources.gpus_per_rank
    if gpus:
        return arguments | {
            "weight_transfer_config": {"backend": "nccl"},
            "tensor_parallel_size": gpus,
            "gpu_memory_utilization": config.gpu_memory_fraction,
        }
    from alignment.cluster import vllm_kernels, weight_transfer

    weight_transfer.register()
    return arguments | {
        "ir_op_priority": vllm_kernels.register(),
        "weight_transfer_config": {"backend": weight_transfer.BACKEND},
        "enforce_eager": True,
        "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        # A prompt that is cut rewinds the request's random generator, which CPU ones refuse.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, spec.max_sequence_tokens),
    }


def _vllm_engine() -> Any:
    """The class `vllm.LLM`, imported and ready sooner than by a plain import.

    Nothing that an import makes is garbage, but each collection walks all of it, and so would the
    five that vLLM does while it starts.
    """
    gc.disable()
    try:
        from vllm import LLM
    finally:
        gc.freeze()
        gc.enable()
    return LLM


def _small_cache(spec: GeneratorSpec, config: ClusterConfig, error: ValueError) -> str:
    """In place of vLLM's own error, which advises on arguments that are not ours."""
    found = re.search(r"[0-9.]+ GiB KV cache is needed", str(error))
    needed = found[0] if found else "not even one block of it"
    return (
        f"{spec.name}: `cluster.kv_cache_gib` is {config.kv_cache_gib:g}, which does not hold one "
        f"sequence of {spec.max_sequence_tokens} tokens ({needed}); raise it, to some sequences' "
        "worth to sample them together, or let prompts and responses be shorter"
    )


def _response(completion: Any, version: int) -> GeneratedResponse:
    tokens = tuple(completion.token_ids)
    logprobs = tuple(
        float(by_token[token].logprob)
        for token, by_token in zip(tokens, completion.logprobs, strict=True)
    )
    return GeneratedResponse(
        token_ids=tokens,
        logprobs=logprobs,
        finished=completion.finish_reason == "stop",
        policy_version=version,
    )


def _missing_weights(worker: Any) -> list[str]:
    missing: list[str] = worker.weight_transfer_engine.missing
    return missing


def _repack_tied_head(model: Any) -> None:
    """On CPU a linear layer computes with a packed copy, which a reload rebuilds only if the
    layer has weights of its own; a tied head has none and would stay stale (vLLM 0.32).
    """
    head = getattr(model, "lm_head", None)
    if head is not None:
        head.quant_method.process_weights_after_loading(head)
