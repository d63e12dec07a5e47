"""Training starts from the forward pass that scored its first microbatch, and from no other."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from role_factory import negative_logprob, random_batch, squared_value, trainable_spec

from alignment.config import LoRAConfig
from alignment.experience import TokenBatch
from alignment.models.loading import load_trainable_module
from alignment.models.passes import microbatches
from alignment.roles_local import LocalTrainable

LOSSES: dict[str, Any] = {"language": negative_logprob, "value": squared_value}


class Counted(LocalTrainable):
    """The in-process role, counting its forward passes, and those that could be trained on."""

    def __init__(
        self, folder: Path, kind: Literal["language", "value"] = "language", **training: Any
    ) -> None:
        spec = trainable_spec("trained", folder, kind=kind, **training)
        super().__init__(load_trainable_module(spec), spec)
        self.passes = 0
        self.with_graph = 0
        self.module.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.passes += 1
        self.with_graph += torch.is_grad_enabled()

    def answers(self, batch: TokenBatch, *, trained_next: bool) -> torch.Tensor:
        ask = self.logprobs if self.spec.kind == "language" else self.values
        return ask(batch, trained_next=trained_next)

    def gradient(self, batch: TokenBatch) -> torch.Tensor:
        """Of the kind's loss; clears it."""
        self.forward_backward(batch, LOSSES[self.spec.kind], denominator=3.0)
        given = [p.grad for p in self.module.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in given])
        self.optimizer.zero_grad()
        return flat


@pytest.mark.parametrize("kind", ["language", "value"])
@pytest.mark.parametrize(
    "training",
    [{}, {"gradient_checkpointing": True}, {"precision": "bfloat16"}, {"lora": LoRAConfig(r=4)}],
)
def test_answers_and_gradient_are_the_same_bits_with_one_pass_less(
    tiny_model: Path, kind: Literal["language", "value"], training: dict[str, Any]
) -> None:
    role, batch = Counted(tiny_model, kind, **training), random_batch(5, seed=10)
    pieces = len(microbatches(role.module, batch, tokens=64))
    assert pieces > 1
    answers, gradient = role.answers(batch, trained_next=False), role.gradient(batch)
    assert role.passes == 2 * pieces

    role.passes = role.with_graph = 0
    assert torch.equal(role.answers(batch, trained_next=True), answers)
    assert (role.passes, role.with_graph) == (pieces, 1), "memory of one microbatch, not of all"
    assert torch.equal(role.gradient(batch), gradient)
    assert role.passes == 2 * pieces - 1

    role.passes = 0
    assert torch.equal(role.gradient(batch), gradient), "a graph is good for one backward pass"
    assert role.passes == pieces


def _other_tokens(role: Counted, batch: TokenBatch) -> TokenBatch:
    swapped = random_batch(5, seed=10)
    swapped.token_ids[:, 0] = 7
    return swapped


def _longer_responses(role: Counted, batch: TokenBatch) -> TokenBatch:
    whole = random_batch(5, seed=10)
    whole.response_mask[:, 1:] = whole.attention_mask[:, 1:]
    return whole


def _after_a_step(role: Counted, batch: TokenBatch) -> TokenBatch:
    role.forward_backward(random_batch(2, seed=3), negative_logprob, denominator=1.0)
    role.step()
    return batch


def _asked_again(role: Counted, batch: TokenBatch) -> TokenBatch:
    role.logprobs(random_batch(2, seed=3))
    return batch


@pytest.mark.parametrize(
    "meanwhile", [_other_tokens, _longer_responses, _after_a_step, _asked_again]
)
def test_another_batch_or_other_weights_get_a_pass_of_their_own(
    tiny_model: Path, meanwhile: Any
) -> None:
    with_kept, without = Counted(tiny_model), Counted(tiny_model)
    batch = random_batch(5, seed=10)
    with_kept.logprobs(batch, trained_next=True)
    gradients = [role.gradient(meanwhile(role, batch)) for role in (with_kept, without)]
    assert torch.equal(*gradients)


def test_a_loaded_checkpoint_ends_what_was_kept(tiny_model: Path, tmp_path: Path) -> None:
    role, batch = Counted(tiny_model), random_batch(5, seed=10)
    role.gradient(batch)
    role.save_checkpoint(tmp_path)
    role.forward_backward(batch, negative_logprob, denominator=1.0)
    role.step()
    expected = role.gradient(batch)
    role.save_checkpoint(tmp_path / "later")
    role.load_checkpoint(tmp_path)
    role.logprobs(batch, trained_next=True)
    role.load_checkpoint(tmp_path / "later")
    assert torch.equal(role.gradient(batch), expected)


def test_nothing_is_kept_where_training_drops_out_inputs(tiny_model: Path) -> None:
    role = Counted(tiny_model, lora=LoRAConfig(r=4, dropout=0.5))
    role.logprobs(random_batch(5, seed=10), trained_next=True)
    assert role.with_graph == 0
