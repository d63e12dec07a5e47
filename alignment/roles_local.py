"""Every role in this process: plain torch, no Ray, DeepSpeed or vLLM.

For debugging, unit tests and exact benches. The loops cannot tell these from the Ray actors of
`alignment.cluster`; both go through the same passes of `alignment.models`.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.data.chat import end_of_turn_id
from alignment.errors import CheckpointError
from alignment.exactness import arithmetic_facts
from alignment.experience import EncodedPrompt, Rollout, Sampling, TokenBatch, batch_from_rows
from alignment.models.loading import (
    load_frozen_module,
    load_language_model,
    load_tokenizer,
    load_trainable_module,
)
from alignment.models.modules import LanguageModel, ValueModel
from alignment.models.optimizer import build_optimizer, build_schedule, trained_state_bytes
from alignment.models.passes import (
    KeptPass,
    accumulate_gradients,
    first_pass,
    logprobs_of,
    microbatches,
    scores_of,
    values_of,
)
from alignment.models.weight_average import WeightAverage
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec, TrainableSpec
from alignment.training.roles import Loss, StepReport

CHECKPOINT_FILE = "state.pt"


class LocalTrainable:
    """A language or value model with AdamW; satisfies Policy, Critic and RewardModelTrainable."""

    def __init__(self, module: LanguageModel | ValueModel, spec: TrainableSpec) -> None:
        self.module = module
        self.spec = spec
        self.optimizer = build_optimizer(module, spec.optimizer)
        self.schedule = build_schedule(self.optimizer, spec.optimizer, spec.total_steps)
        self.average = WeightAverage(module, spec.ema_decay)
        self._kept: KeptPass | None = None

    def forward_backward(
        self, batch: TokenBatch, loss: Loss, *, denominator: float
    ) -> dict[str, float]:
        """Add the gradient of the whole batch's loss; see `Trainable.forward_backward`."""
        training = self.spec.training
        return accumulate_gradients(
            self.module,
            microbatches(self.module, batch, tokens=training.tokens_per_microbatch),
            loss,
            denominator=denominator,
            backward=lambda total, _last: total.backward(),
            precision=training.precision,
            kept=self._take_kept(),
        )

    def step(self) -> StepReport:
        """Clip, update weights and average, advance the schedule, clear the gradients."""
        norm = torch.nn.utils.clip_grad_norm_(
            self.module.parameters(), self.spec.optimizer.max_gradient_norm
        )
        learning_rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        self.average.update()
        self._kept = None
        self.optimizer.zero_grad(set_to_none=True)
        return StepReport(gradient_norm=float(norm), learning_rate=learning_rate)

    def rest(self) -> None:
        """Nothing is given back: the process is everybody's."""

    def logprobs(self, batch: TokenBatch, *, trained_next: bool = False) -> Tensor:
        """Log-probability of each response token; see `Policy.logprobs`."""
        self._keep_pass(batch, trained_next)
        return logprobs_of(self.module, batch, **self._limits(), kept=self._kept)

    def values(self, batch: TokenBatch, *, trained_next: bool = False) -> Tensor:
        """Value before each response token; see `Critic.values`."""
        self._keep_pass(batch, trained_next)
        return values_of(self.module, batch, **self._limits(), kept=self._kept)

    def scores(self, batch: TokenBatch) -> Tensor:
        """Score of each sequence."""
        return scores_of(self.module, batch, **self._limits())

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights under their published names."""
        assert isinstance(self.module, LanguageModel)
        return {name: weight.clone() for name, weight in self.module.named_weights()}

    def save_checkpoint(self, folder: Path) -> None:
        """Weights (not frozen ones), optimiser, schedule and torch's random state."""
        folder.mkdir(parents=True, exist_ok=True)
        self.average.save(folder)
        state = {name: part.state_dict() for name, part in self._parts().items()}
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                del state["module"][name]
        torch.save({**state, "torch_rng": torch.get_rng_state()}, folder / CHECKPOINT_FILE)

    def load_checkpoint(self, folder: Path) -> None:
        """Restore all of it, or name what is missing."""
        path = folder / CHECKPOINT_FILE
        if not path.is_file():
            raise CheckpointError(f"checkpoint {folder} has no {CHECKPOINT_FILE}; delete it")
        state = torch.load(path, weights_only=True)
        missing = [n for n in (*self._parts(), "torch_rng") if n not in state]
        if missing:
            raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}; delete it")
        self.average.load(folder)
        self._kept = None
        is_whole = all(parameter.requires_grad for parameter in self.module.parameters())
        self.module.load_state_dict(state["module"], strict=is_whole)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["torch_rng"])

    def export(self, folder: Path) -> None:
        """Write the weights, or their average where one is kept, as a loadable folder."""
        folder.mkdir(parents=True, exist_ok=True)
        with self.average.in_place():
            self.module.save(folder)

    def describe(self) -> list[dict[str, Any]]:
        """What runs behind this role."""
        facts = describe_local(self.spec.name)
        size = trained_state_bytes(self.module, averaged=self.spec.ema_decay is not None)
        return [facts | {"checkpoint_bytes": size}]

    def _keep_pass(self, batch: TokenBatch, trained_next: bool) -> None:
        self._kept = first_pass(self.module, batch, **self._limits()) if trained_next else None

    def _take_kept(self) -> KeptPass | None:
        kept, self._kept = self._kept, None
        return kept

    def _parts(self) -> dict[str, Any]:
        return {"module": self.module, "optimizer": self.optimizer, "schedule": self.schedule}

    def _limits(self) -> dict[str, Any]:
        training = self.spec.training
        return {"tokens": training.tokens_per_microbatch, "precision": training.precision}


class LocalFrozen:
    """A frozen language model (reference) or value model (reward model)."""

    def __init__(self, module: LanguageModel | ValueModel, spec: FrozenSpec) -> None:
        self.module = module.requires_grad_(False)
        self.spec = spec

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probability of each response token."""
        return logprobs_of(self.module, batch, **self._limits())

    def scores(self, batch: TokenBatch) -> Tensor:
        """Normalised score of each sequence."""
        return scores_of(self.module, batch, **self._limits())

    def describe(self) -> list[dict[str, Any]]:
        """What runs behind this role."""
        return [describe_local(self.spec.name)]

    def _limits(self) -> dict[str, Any]:
        return {"tokens": self.spec.tokens_per_microbatch, "precision": self.spec.precision}


@dataclass(frozen=True, slots=True)
class SampledRollout:
    """A rollout that was begun and is there already."""

    rollout: Rollout

    def wait(self) -> Rollout:
        """The rollout."""
        return self.rollout


class LocalGenerator:
    """Samples token by token without a cache: slow on long responses, and easy to check.

    Each sequence draws its tokens from its own seed by inverting the cumulative distribution, so
    its neighbours in the batch change it by no more than the rounding of its logits.
    """

    def __init__(self, causal_lm: Any, *, end_of_turn: int) -> None:
        self.causal_lm = causal_lm
        self.end_of_turn = end_of_turn
        self.version = 0
        self.sampled_versions: set[int] = set()

    def generate(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, *, seeds: Sequence[int]
    ) -> Rollout:
        """One response for each prompt, each from its own seed; equal lengths side by side."""
        rows_of_length: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows_of_length.setdefault(len(prompt.token_ids), []).append(row)
        draws = torch.stack([_uniform(seed, sampling.max_response_tokens) for seed in seeds])
        pairs: list[tuple[list[int], list[float]]] = [([], [])] * len(prompts)
        for rows in rows_of_length.values():
            tokens = torch.tensor([prompts[row].token_ids for row in rows])
            for row, pair in zip(rows, self._sample(tokens, sampling, draws[rows]), strict=True):
                pairs[row] = pair
        self.sampled_versions.add(self.version)
        responses = [tokens for tokens, _ in pairs]
        batch = batch_from_rows([p.token_ids for p in prompts], responses)
        sampling_logprobs = torch.zeros(batch.token_ids.shape)
        sampling_logprobs[batch.response_mask] = torch.tensor(
            [logprob for _, logprobs in pairs for logprob in logprobs]
        )
        return Rollout(
            token_ids=batch.token_ids,
            attention_mask=batch.attention_mask,
            response_mask=batch.response_mask,
            sampling_logprobs=sampling_logprobs,
            finished=torch.tensor([tokens[-1] == self.end_of_turn for tokens in responses]),
            prompt_index=prompt_index(prompts),
            policy_version=torch.full((len(prompts),), self.version),
        )

    def begin(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, *, seeds: Sequence[int]
    ) -> "SampledRollout":
        """Sample at once: one process has nobody to leave it to."""
        return SampledRollout(self.generate(prompts, sampling, seeds=seeds))

    def load_weights(self, weights: dict[str, Tensor], *, version: int) -> None:
        """Use these weights from now on."""
        self.causal_lm.load_state_dict(weights, strict=False)
        self.causal_lm.tie_weights()
        self.version = version

    def describe(self) -> list[dict[str, Any]]:
        """What runs behind this role."""
        sampled = sorted(self.sampled_versions)
        return [describe_local("generator") | {"policy_versions": sampled}]

    def _sample(
        self, tokens: Tensor, sampling: Sampling, draws: Tensor
    ) -> list[tuple[list[int], list[float]]]:
        """Tokens and log-probabilities of a response to each row of equally long prompts."""
        prompt_length = tokens.shape[1]
        logprobs = torch.zeros(len(tokens), 0)
        is_open = torch.ones(len(tokens), dtype=torch.bool)
        for step in range(sampling.max_response_tokens):
            with torch.no_grad():
                logits = self.causal_lm(tokens).logits[:, -1].float()
            distribution = torch.log_softmax(logits / sampling.temperature, dim=-1)
            cumulative = distribution.double().exp().cumsum(1)
            reached = draws[:, step, None] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, reached, right=True)
            token = token.clamp(max=distribution.shape[1] - 1)
            tokens = torch.cat([tokens, token], dim=1)
            logprobs = torch.cat([logprobs, distribution.gather(1, token)], dim=1)
            is_open &= token.squeeze(1) != self.end_of_turn
            if not bool(is_open.any()):
                break
        responses = tokens[:, prompt_length:].tolist()
        return [
            (row[: self._length(row)], numbers[: self._length(row)])
            for row, numbers in zip(responses, logprobs.tolist(), strict=True)
        ]

    def _length(self, response: list[int]) -> int:
        """Tokens up to the end of the turn, that one included."""
        ended = self.end_of_turn in response
        return response.index(self.end_of_turn) + 1 if ended else len(response)


def _uniform(seed: int, count: int) -> Tensor:
    """Numbers in [0, 1) from one seed, float64."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def describe_local(role: str) -> dict[str, Any]:
    """The record of a role that is held by this very process."""
    return {
        "role": role,
        "rank": 0,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "engine": "torch in process",
        "exactness": arithmetic_facts(),
    }


def prompt_index(prompts: Sequence[EncodedPrompt]) -> Tensor:
    """Number prompts by first appearance: repeats of one prompt share a number, int64 [B]."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(prompt.id, len(first)) for prompt in prompts])


def start_roles(specs: Sequence[RoleSpec]) -> dict[str, Any]:
    """Start each spec's role in this process and return them by name."""
    return {spec.name: _start(spec) for spec in specs}


def _start(spec: RoleSpec) -> LocalTrainable | LocalFrozen | LocalGenerator:
    if isinstance(spec, GeneratorSpec):
        tokenizer = load_tokenizer(spec.model_folder)
        language_model = load_language_model(spec.model_folder)
        return LocalGenerator(language_model.causal_lm, end_of_turn=end_of_turn_id(tokenizer))
    if isinstance(spec, FrozenSpec):
        return LocalFrozen(load_frozen_module(spec), spec)
    return LocalTrainable(load_trainable_module(spec), spec)
