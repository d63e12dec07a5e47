"""Engines of a policy's host read its weights where it trains them; others get copies."""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from role_factory import negative_logprob, random_batch, random_prompts, trainable_spec

from alignment.cluster import Cluster
from alignment.cluster.lent_weights import Borrower, Lender, LentWeights, can_lend
from alignment.cluster.roles import RemoteGenerator, RemotePolicy
from alignment.config import LoRAConfig
from alignment.experience import Sampling
from alignment.models.loading import load_language_model, load_trainable_module
from alignment.models.lora import PublishedWeight
from alignment.models.modules import LanguageModel
from alignment.training.roles import PPORoles


def lent_by(lender: Lender) -> LentWeights:
    lent = lender.lent()
    assert lent is not None
    return lent


def test_a_model_computes_the_same_where_it_is_lent(tiny_model: Path) -> None:
    model, batch = load_language_model(tiny_model), random_batch(3, seed=1)
    before = model(batch.token_ids, batch.response_mask).new_logprobs
    plain = {name: value.clone() for name, value in model.named_weights()}
    lent = lent_by(Lender(model.published_weights()))
    assert torch.equal(model(batch.token_ids, batch.response_mask).new_logprobs, before)
    read = dict(Borrower().read(lent))
    assert read.keys() == plain.keys()
    for name, weight in plain.items():
        assert torch.equal(read[name], weight), name
        assert read[name].data_ptr() % 64 == 0


def test_a_borrower_sees_each_update_as_it_is_made(tiny_model: Path) -> None:
    model = load_language_model(tiny_model)
    lender, borrower = Lender(model.published_weights()), Borrower()
    lent = lent_by(lender)
    seen = dict(borrower.read(lent))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    batch = random_batch(3, seed=1)
    model(batch.token_ids, batch.response_mask).new_logprobs.sum().backward()
    optimizer.step()
    assert lender.lent() == lent
    for name, weight in model.named_weights():
        assert torch.equal(seen[name], weight), name
    tied = model.causal_lm.get_output_embeddings().weight
    assert tied.data_ptr() == model.causal_lm.get_input_embeddings().weight.data_ptr()


def test_weights_that_were_moved_away_are_not_lent(tiny_model: Path) -> None:
    model = load_language_model(tiny_model)
    lender = Lender(model.published_weights())
    last = model.published_weights()[-1].parameters[0]
    at_home, last.data = last.data, last.data.clone()
    assert lender.lent() is None
    last.data = at_home
    assert lender.lent() is not None


def _of_nobody(lent: LentWeights) -> LentWeights:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    return replace(lent, pid=ended.pid)


def _of_another_file(lent: LentWeights) -> LentWeights:
    other = Lender([PublishedWeight("w", (torch.nn.Parameter(torch.ones(10**7)),))])
    _of_another_file.kept = other  # type: ignore[attr-defined]
    return replace(lent_by(other), secret=lent.secret)


def _longer(lent: LentWeights) -> LentWeights:
    return replace(lent, size=lent.size + 2**20)


def _a_pipe(lent: LentWeights) -> LentWeights:
    """Who opens it to read waits for a writer, unless told not to."""
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(f"{folder}/pipe")
        return replace(lent, descriptor=os.open(f"{folder}/pipe", os.O_RDONLY | os.O_NONBLOCK))


def _not_open(lent: LentWeights) -> LentWeights:
    return replace(lent, descriptor=10**5)


@pytest.mark.parametrize("other", [_of_nobody, _of_another_file, _longer, _a_pipe, _not_open])
def test_what_is_not_the_lenders_file_is_not_read(tiny_model: Path, other: Any) -> None:
    lent = lent_by(Lender(load_language_model(tiny_model).published_weights()))
    borrower = Borrower()
    assert not borrower.can_read(other(lent))
    assert Borrower().can_read(lent)


def test_only_plain_float32_weights_can_be_lent(tiny_model: Path) -> None:
    spec = trainable_spec("policy", tiny_model, lora=LoRAConfig(r=4))
    adapted = load_trainable_module(spec)
    assert isinstance(adapted, LanguageModel)
    assert not can_lend(adapted.published_weights())
    plain = load_language_model(tiny_model)
    assert can_lend(plain.published_weights())
    assert not can_lend(plain.bfloat16().published_weights())


def test_the_memory_goes_with_the_process(tmp_path: Path) -> None:
    """Of a killed lender nothing is left, and who has it mapped reads on."""
    code = f"""
import pickle, sys, time, torch
from alignment.cluster.lent_weights import Lender
from alignment.models.lora import PublishedWeight
lender = Lender([PublishedWeight("w", (torch.nn.Parameter(torch.full((1000,), 3.0)),))])
open({str(tmp_path / "lent")!r}, "wb").write(pickle.dumps(lender.lent()))
print("ready", flush=True)
time.sleep(120)
"""
    lender = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert lender.stdout is not None
    assert lender.stdout.readline() == b"ready\n"
    import pickle

    lent: LentWeights = pickle.loads((tmp_path / "lent").read_bytes())
    borrower, named = Borrower(), set(os.listdir("/dev/shm"))
    assert borrower.can_read(lent)
    lender.kill()
    lender.wait()
    assert torch.equal(dict(borrower.read(lent))["w"], torch.full((1000,), 3.0))
    assert not Borrower().can_read(lent)
    assert set(os.listdir("/dev/shm")) <= named


@pytest.mark.engines
def test_lent_and_copied_weights_sample_the_same(
    ppo_roles: PPORoles, copying: RemoteGenerator
) -> None:
    policy, generator = ppo_roles.policy, ppo_roles.generator
    assert isinstance(policy, RemotePolicy)
    assert policy.lent() is not None
    prompts, sampling = random_prompts(4, tokens=9, seed=5), Sampling(max_response_tokens=20)
    batch, rollouts = random_batch(3, seed=1), []
    for version in (1, 2):
        policy.forward_backward(batch, negative_logprob, denominator=10.0)
        policy.step()
        for way in (generator, copying):
            way.load_weights(policy.weights(), version=version)
            rollouts.append(way.generate(prompts, sampling, seeds=range(4)))
    lent, copied, later, copied_later = rollouts
    assert torch.equal(lent.token_ids, copied.token_ids)
    assert torch.equal(lent.sampling_logprobs, copied.sampling_logprobs)
    assert torch.equal(later.sampling_logprobs, copied_later.sampling_logprobs)
    assert not torch.equal(lent.token_ids, later.token_ids)


@pytest.mark.engines
def test_nothing_goes_through_the_store_where_weights_are_lent(
    ppo_roles: PPORoles, copying: RemoteGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy: Any = ppo_roles.policy
    submit, asked = policy.group.submit, []

    def recording(operation: str, arguments: Any) -> Any:
        asked.append(operation)
        return submit(operation, arguments)

    monkeypatch.setattr(policy.group, "submit", recording)
    ppo_roles.generator.load_weights(policy.weights(), version=1)
    assert asked == ["lent_weights", "probe"]
    copying.load_weights(policy.weights(), version=1)
    assert "copy_bucket" in asked


@pytest.mark.engines
def test_an_engine_samples_what_it_loaded_whatever_the_policy_becomes(
    ppo_roles: PPORoles,
) -> None:
    policy, generator = ppo_roles.policy, ppo_roles.generator
    prompts, sampling = random_prompts(4, tokens=9, seed=5), Sampling(max_response_tokens=20)
    generator.load_weights(policy.weights(), version=1)
    before = generator.generate(prompts, sampling, seeds=range(4))
    policy.forward_backward(random_batch(3, seed=1), negative_logprob, denominator=10.0)
    policy.step()
    after = generator.generate(prompts, sampling, seeds=range(4))
    assert torch.equal(after.sampling_logprobs, before.sampling_logprobs)


@pytest.mark.engines
def test_a_loaded_checkpoint_is_what_engines_read_next(ppo_roles: PPORoles, tmp_path: Path) -> None:
    policy, generator = ppo_roles.policy, ppo_roles.generator
    prompts, sampling = random_prompts(4, tokens=9, seed=5), Sampling(max_response_tokens=20)

    def sampled(version: int) -> torch.Tensor:
        generator.load_weights(policy.weights(), version=version)
        return generator.generate(prompts, sampling, seeds=range(4)).sampling_logprobs

    policy.save_checkpoint(tmp_path)
    saved = sampled(1)
    policy.forward_backward(random_batch(3, seed=1), negative_logprob, denominator=10.0)
    policy.step()
    assert not torch.equal(sampled(2), saved)
    policy.load_checkpoint(tmp_path)
    assert torch.equal(sampled(3), saved)


@pytest.mark.engines
def test_an_engine_that_may_not_look_in_gets_copies(
    cluster: Cluster, ppo_roles: PPORoles, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, engines = ppo_roles.policy, ppo_roles.generator
    assert isinstance(policy, RemotePolicy)
    assert isinstance(engines, RemoteGenerator)
    lent = policy.lent()
    assert lent is not None
    elsewhere = replace(lent, pid=2**22 - 1, secret=bytes(64))
    other = RemoteGenerator(engines.group)
    monkeypatch.setattr(policy, "lent", lambda: elsewhere)
    other.load_weights(policy.weights(), version=5)
    assert other._lender == (elsewhere.secret, False)
    rollout = other.generate(
        random_prompts(2, tokens=5, seed=1), Sampling(max_response_tokens=4), seeds=[1, 2]
    )
    assert rollout.policy_version.tolist() == [5, 5]
