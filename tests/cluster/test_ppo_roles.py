"""The five roles on Ray, DeepSpeed and vLLM against the same roles in this process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from role_factory import (
    negative_logprob,
    random_batch,
    random_prompts,
    squared_value,
    trainable_spec,
)

from alignment.cluster import Cluster, weights_from_folder
from alignment.cluster.failures import log_tail
from alignment.cluster.generator import CPU_BATCHED_TOKENS
from alignment.cluster.roles import RemoteGenerator
from alignment.errors import ClusterError, DataError, ModelError
from alignment.experience import EncodedPrompt, Sampling
from alignment.models.loading import load_language_model
from alignment.models.tiny import make_tiny_model
from alignment.role_specs import FrozenSpec
from alignment.roles_local import start_roles as start_local_roles
from alignment.training.roles import PPORoles

pytestmark = pytest.mark.engines


def test_roles_say_what_runs_behind_them(ppo_roles: PPORoles) -> None:
    [policy] = ppo_roles.policy.describe()
    assert policy["engine"] == "DeepSpeedEngine"
    assert policy["deepspeed"] == "0.19.8"
    [generator] = ppo_roles.generator.describe()
    assert generator["engine"] == "LLMEngine"
    assert generator["vllm"] == "0.32.0"
    roles = (ppo_roles.policy, ppo_roles.critic, ppo_roles.reference, ppo_roles.reward_model)
    described = [role.describe()[0] for role in (*roles, ppo_roles.generator)]
    assert len({facts["pid"] for facts in described}) == 5
    assert all(facts["memory_mib"] > 10 for facts in described)
    assert all(facts["cuda_visible_devices"] == "" for facts in described)


def test_loading_a_model_leaves_no_progress_bar_in_the_log(
    cluster: Cluster, ppo_roles: PPORoles
) -> None:
    for role in (ppo_roles.policy, ppo_roles.reference):
        [facts] = role.describe()
        assert "Loading weights" not in log_tail(cluster.logs, facts["pid"])


def test_ray_starts_no_worker_that_no_role_is(cluster: Cluster, ppo_roles: PPORoles) -> None:
    logs = list(cluster.logs.glob("worker-*.out"))
    assert logs
    assert [log.name for log in logs if "-ffffffff-" in log.name] == []


def test_vllm_and_trainer_agree_after_a_real_update(ppo_roles: PPORoles) -> None:
    """Tied head, float32, prompts longer than a cache block of 128 tokens, three updates."""
    policy, generator = ppo_roles.policy, ppo_roles.generator
    prompts = random_prompts(12, tokens=140, seed=3)
    sampling = Sampling(max_response_tokens=128)
    for version in (1, 2, 3):
        generator.load_weights(policy.weights(), version=version)
        rollout = generator.generate(prompts, sampling, seeds=range(100, 112))
        mask = rollout.response_mask
        assert int(mask.sum()) >= 1000
        before = policy.logprobs(rollout)
        gap = (before - rollout.sampling_logprobs)[mask].abs()
        assert float(gap.max()) < 1e-4
        assert float(gap.mean()) < 2e-5
        assert rollout.policy_version.tolist() == [version] * 12

        tokens = float(mask.sum())
        sums = policy.forward_backward(rollout, negative_logprob, denominator=tokens)
        assert sums["tokens"] == tokens
        assert sums["loss"] == pytest.approx(-float(before[mask].mean()), rel=1e-5)
        policy.step()
        moved = (policy.logprobs(rollout) - before)[mask].abs()
        assert float(moved.max()) > 0.05, "the update must be large enough to be seen"


def test_prompts_may_together_be_longer_than_one_pass_of_the_engine(ppo_roles: PPORoles) -> None:
    """vLLM would cut a prompt there and rewind its random generator, which fails on CPU."""
    prompts = random_prompts(40, tokens=150, seed=5)
    assert sum(len(prompt.token_ids) for prompt in prompts) > 1.5 * CPU_BATCHED_TOKENS
    seeds, sampling = range(40), Sampling(max_response_tokens=2)
    together = ppo_roles.generator.generate(prompts, sampling, seeds=seeds)
    alone = ppo_roles.generator.generate(prompts[-3:], sampling, seeds=seeds[-3:])
    for row in range(3):
        expected = alone.token_ids[row][alone.response_mask[row]].tolist()
        found = together.token_ids[37 + row][together.response_mask[37 + row]].tolist()
        assert found == expected


def test_rollouts_say_how_responses_ended(ppo_roles: PPORoles) -> None:
    prompts = random_prompts(16, tokens=5, seed=4)
    prompts[1] = replace(prompts[0])
    generate = ppo_roles.generator.generate
    rollout = generate(prompts, Sampling(max_response_tokens=200), seeds=range(16))
    lengths = rollout.response_mask.sum(1)
    for row in range(16):
        response = rollout.token_ids[row][rollout.response_mask[row]]
        ends_turn = int(response[-1]) == 2
        assert bool(rollout.finished[row]) == ends_turn
        assert 2 not in response[:-1]
        assert ends_turn or int(lengths[row]) == 200
        assert tuple(rollout.token_ids[row, : len(prompts[row].token_ids)].tolist()) == (
            prompts[row].token_ids
        )
    assert rollout.finished.any()
    assert not rollout.finished.all()
    assert rollout.prompt_index[:3].tolist() == [0, 0, 1]
    assert rollout.sampling_logprobs[~rollout.response_mask].abs().max() == 0


def test_a_seed_decides_a_response_whatever_its_neighbours(ppo_roles: PPORoles) -> None:
    prompts = random_prompts(4, tokens=9, seed=5)
    sampling = Sampling(max_response_tokens=20)
    generate = ppo_roles.generator.generate
    first = generate(prompts, sampling, seeds=[1, 2, 3, 4])
    again = generate(prompts[2:], sampling, seeds=[3, 4])
    for row in (0, 1):
        expected = first.token_ids[row + 2][first.response_mask[row + 2]]
        assert torch.equal(again.token_ids[row][again.response_mask[row]], expected)
    other = generate(prompts[2:], sampling, seeds=[5, 6])
    assert not torch.equal(other.token_ids, again.token_ids)


def test_a_seeds_number_falls_into_the_interval_of_the_first_token(
    ppo_roles: PPORoles, tiny_model: Path
) -> None:
    """Cumulative probabilities of transformers' own model, and torch's own generator."""
    generator = ppo_roles.generator
    generator.load_weights(weights_from_folder(tiny_model), version=9)
    [prompt] = random_prompts(1, tokens=20, seed=8)
    seeds, temperature = range(24), 1.3
    sampling = Sampling(max_response_tokens=1, temperature=temperature)
    rollout = generator.generate([prompt] * 24, sampling, seeds=seeds)
    model = load_language_model(tiny_model).causal_lm
    with torch.no_grad():
        logits = model(torch.tensor([prompt.token_ids])).logits[0, -1].double()
    ends = (logits / temperature).softmax(-1).cumsum(-1)
    places = [
        torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    expected = torch.searchsorted(ends, torch.stack(places), right=True)
    assert torch.equal(rollout.token_ids[rollout.response_mask], expected)
    assert len(expected.unique()) > 10


def test_an_engine_has_the_cache_it_was_told(ppo_roles: PPORoles) -> None:
    """Two layers, keys and values of 32 float32 numbers: 512 bytes a token."""

    def cache_tokens(actor: Any) -> int:
        settings = actor._llm.llm_engine.vllm_config.cache_config
        return int(settings.num_gpu_blocks * settings.block_size)

    [engine] = ppo_roles.generator.group.actors  # type: ignore[attr-defined]
    cache = ray.get(engine.__ray_call__.remote(cache_tokens))
    assert cache == pytest.approx(2**30 / 512, rel=0.01)


def test_prompts_beyond_the_context_are_refused_with_numbers(ppo_roles: PPORoles) -> None:
    [prompt] = random_prompts(1, tokens=500, seed=6)
    with pytest.raises(DataError, match=r"p0 has 500 tokens; .* is 513, .* started for 512"):
        ppo_roles.generator.generate([prompt], Sampling(max_response_tokens=13), seeds=[0])
    with pytest.raises(DataError, match="1 prompts and 2 seeds"):
        ppo_roles.generator.generate([prompt], Sampling(max_response_tokens=2), seeds=[0, 1])


def test_remote_and_local_roles_say_the_same(ppo_roles: PPORoles, tiny_model: Path) -> None:
    specs = [
        FrozenSpec(name="reference", kind="language", model_folder=tiny_model),
        FrozenSpec(name="reward_model", kind="value", model_folder=tiny_model),
    ]
    local = start_local_roles(specs)
    batch = random_batch(9, seed=7)
    for name, question in (("reference", "logprobs"), ("reward_model", "scores")):
        remote = getattr(getattr(ppo_roles, name), question)(batch)
        expected = getattr(local[name], question)(batch)
        assert float(expected.abs().max()) > 0.1
        torch.testing.assert_close(remote, expected, atol=1e-5, rtol=0)


def test_the_critic_learns_like_the_local_one(ppo_roles: PPORoles, tiny_model: Path) -> None:
    critic = ppo_roles.critic
    local = start_local_roles([trainable_spec("critic", tiny_model, kind="value")])["critic"]
    batch = random_batch(9, seed=8)
    tokens = float(batch.response_mask.sum())
    for _ in range(3):
        expected = local.forward_backward(batch, squared_value, denominator=tokens)
        sums = critic.forward_backward(batch, squared_value, denominator=tokens)
        assert sums["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        remote_step, local_step = critic.step(), local.step()
        assert remote_step.gradient_norm == pytest.approx(local_step.gradient_norm, rel=1e-5)
        assert remote_step.learning_rate == pytest.approx(local_step.learning_rate)
    torch.testing.assert_close(critic.values(batch), local.values(batch), atol=1e-4, rtol=0)


def test_a_role_at_rest_gives_its_freed_memory_back(ppo_roles: PPORoles) -> None:
    def use_and_free(actor: Any) -> None:
        import torch

        torch.ones(50_000_000)  # 191 MiB

    for role in (ppo_roles.policy, ppo_roles.critic):
        [actor] = role.group.actors  # type: ignore[union-attr]
        ray.get(actor.__ray_call__.remote(use_and_free))
        [working] = role.describe()  # type: ignore[union-attr]
        role.rest()  # type: ignore[union-attr]
        [resting] = role.describe()  # type: ignore[union-attr]
        assert working["memory_mib"] - resting["memory_mib"] > 150


def test_an_engine_gives_its_freed_memory_back_after_a_rollout(ppo_roles: PPORoles) -> None:
    def use_and_free(actor: Any) -> float:
        import torch

        torch.ones(50_000_000)  # 191 MiB
        held: float = actor.describe()["memory_mib"]
        return held

    [actor] = ppo_roles.generator.group.actors  # type: ignore[attr-defined]
    held = ray.get(actor.__ray_call__.remote(use_and_free))
    prompts = [EncodedPrompt(id="a", token_ids=(3, 4, 5))]
    ppo_roles.generator.generate(prompts, Sampling(max_response_tokens=2), seeds=[0])
    [resting] = ppo_roles.generator.describe()
    assert held - resting["memory_mib"] > 150


def test_weights_arrive_whole_in_many_buckets(
    ppo_roles: PPORoles, copying: RemoteGenerator
) -> None:
    policy = ppo_roles.policy
    [actor] = policy.group.actors  # type: ignore[attr-defined]

    def in_small_buckets(actor: Any) -> int:
        from alignment.cluster.weights import in_buckets

        weights = [weight for bucket in actor._buckets for weight in bucket]
        actor._buckets = list(in_buckets(weights, size=2**16))
        return len(actor._buckets)

    assert ray.get(actor.__ray_call__.remote(in_small_buckets)) > 5
    policy.__dict__.pop("buckets", None)  # how many there were before
    policy.forward_backward(random_batch(6, seed=4), negative_logprob, denominator=50.0)
    policy.step()
    copying.load_weights(policy.weights(), version=5)
    prompts = random_prompts(4, tokens=140, seed=4)
    rollout = copying.generate(prompts, Sampling(max_response_tokens=30), seeds=range(4))
    assert rollout.policy_version.tolist() == [5] * 4
    gap = (policy.logprobs(rollout) - rollout.sampling_logprobs)[rollout.response_mask].abs()
    assert float(gap.max()) < 1e-4


def test_weights_of_before_a_step_are_refused(ppo_roles: PPORoles) -> None:
    policy, generator = ppo_roles.policy, ppo_roles.generator
    generator.load_weights(policy.weights(), version=6)
    stale = policy.weights()
    policy.forward_backward(random_batch(6, seed=4), negative_logprob, denominator=50.0)
    policy.step()
    with pytest.raises(ClusterError, match="weights of policy were asked for before its last step"):
        generator.load_weights(stale, version=7)
    prompts = random_prompts(2, tokens=20, seed=4)
    rollout = generator.generate(prompts, Sampling(max_response_tokens=3), seeds=range(2))
    assert rollout.policy_version.tolist() == [6] * 2, "a refusal changes nothing"


def test_an_engine_with_other_weights_than_the_policys_gives_no_rollout(
    ppo_roles: PPORoles,
) -> None:
    policy, generator = ppo_roles.policy, ppo_roles.generator
    [engine] = generator.group.actors  # type: ignore[attr-defined]

    def spoil(actor: Any) -> None:
        actor._llm.apply_model(lambda model: model.model.norm.weight.data.mul_(0.5))

    def sampled() -> list[int]:
        prompts = random_prompts(2, tokens=20, seed=4)
        rollout = generator.generate(prompts, Sampling(max_response_tokens=3), seeds=range(2))
        return rollout.policy_version.tolist()

    generator.load_weights(policy.weights(), version=8)
    ray.get(engine.__ray_call__.remote(spoil))
    for _ in range(2):
        with pytest.raises(ClusterError, match="version 8, log-probabilities differ from the pol"):
            sampled()
    begun = generator.begin(  # type: ignore[attr-defined]
        random_prompts(2, tokens=20, seed=4), Sampling(max_response_tokens=3), seeds=range(2)
    )
    generator.load_weights(policy.weights(), version=9)
    assert sampled() == [9, 9]
    with pytest.raises(ClusterError, match="of version 8, log-probabilities differ from the pol"):
        begun.wait()  # of the weights of then, whatever has been loaded since
    ray.get(engine.__ray_call__.remote(spoil))
    assert sampled() == [9, 9], "an engine answers once for the weights it took"
    generator.load_weights(policy.weights(), version=10)


def test_weights_of_a_folder_replace_the_policys(
    ppo_roles: PPORoles, tmp_path: Path, tiny_model: Path
) -> None:
    other = tmp_path / "other"
    make_tiny_model(other, seed=1)
    generator = ppo_roles.generator
    generator.load_weights(weights_from_folder(other), version=7)
    prompts = random_prompts(4, tokens=140, seed=9)
    rollout = generator.generate(prompts, Sampling(max_response_tokens=30), seeds=range(4))
    local = start_local_roles([FrozenSpec(name="r", kind="language", model_folder=other)])["r"]
    torch.testing.assert_close(
        rollout.sampling_logprobs, local.logprobs(rollout), atol=1e-4, rtol=0
    )
    assert rollout.policy_version.tolist() == [7] * 4

    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="lacks model"):
        weights_from_folder(tmp_path / "empty")
    untied = tmp_path / "untied"
    make_tiny_model(untied, seed=1, tied=False)
    with pytest.raises(ModelError, match=r"weight lm_head\.weight is .* absent in the engine"):
        generator.load_weights(weights_from_folder(untied), version=8)
    again = generator.generate(prompts, Sampling(max_response_tokens=30), seeds=range(4))
    assert torch.equal(again.token_ids, rollout.token_ids), "a refused folder changes nothing"


def test_an_exported_policy_is_a_folder_that_loads(ppo_roles: PPORoles, tmp_path: Path) -> None:
    ppo_roles.policy.export(tmp_path / "policy")
    specs = [FrozenSpec(name="r", kind="language", model_folder=tmp_path / "policy")]
    batch = random_batch(5, seed=10)
    torch.testing.assert_close(
        start_local_roles(specs)["r"].logprobs(batch),
        ppo_roles.policy.logprobs(batch),
        atol=1e-5,
        rtol=0,
    )


def test_a_role_is_started_once(cluster: Cluster, ppo_roles: PPORoles, tiny_model: Path) -> None:
    with pytest.raises(ClusterError, match="role policy is running already"):
        cluster.start_roles([trainable_spec("policy", tiny_model)])


def test_a_damaged_folder_is_the_error_the_user_sees(cluster: Cluster, tmp_path: Path) -> None:
    spec = FrozenSpec(name="broken", kind="value", model_folder=tmp_path / "nowhere")
    with pytest.raises(ModelError, match="nowhere does not exist"):
        cluster.start_roles([spec])
    assert "broken" not in cluster._roles
