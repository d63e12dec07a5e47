"""The bench's own mathematics: closed forms, fixed points, and DPO's minimum."""

from functools import partial

import pytest
import torch
from torch import Tensor
from toy_roles import ListSink

from alignment.config import OptimizerConfig, TrainingConfig
from alignment.dpo_config import DPOConfig
from alignment.experience import PreferenceBatch, batch_from_rows
from alignment.metrics import check_names
from alignment.objectives.kl import kl_estimate
from alignment.training.dpo import ReferredBatch, dpo_loss, num_dpo_steps, train_dpo
from alignment.training.roles import LogprobOutputs
from benchmarks.exact.fixed_points import own_optimum, progress
from benchmarks.exact.in_process import language_role, reference_role
from benchmarks.exact.recurrent import RecurrentLM, random_model
from benchmarks.exact.task import Task, make_task, response_logprobs

RATE = OptimizerConfig(learning_rate=1e-2, final_learning_rate_fraction=1.0)


@pytest.fixture(scope="module")
def model() -> RecurrentLM:
    return random_model(seed=1, vocabulary=3)


@pytest.fixture(scope="module")
def task(model: RecurrentLM) -> Task:
    return make_task(model, seed=2, vocabulary=3, length=3, prompts=2)


def test_task_is_a_distribution_with_standardised_rewards(model: RecurrentLM, task: Task) -> None:
    chance = task.reference_logprobs.exp()
    torch.testing.assert_close(chance.sum(1), torch.ones(2, dtype=torch.float64))
    assert (chance * task.rewards).sum(1).abs().max() < 1e-12
    assert ((chance * task.rewards.square()).sum(1) - 1).abs().max() < 1e-12
    batch = batch_from_rows([task.prompts[1].token_ids] * 27, task.responses().tolist())
    torch.testing.assert_close(task.reward_of(batch), task.rewards[1].float())
    by_role = reference_role(model).logprobs(batch).sum(1)
    torch.testing.assert_close(by_role, task.reference_logprobs[1].float())


@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_no_policy_beats_the_closed_form_and_kl_measures_the_distance(
    task: Task, beta: float
) -> None:
    best, start = task.optimum(beta), task.reference_logprobs
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(best.shape, generator=generator, dtype=torch.float64)
    policy = torch.log_softmax(best + 0.5 * noise, dim=1)
    top, low = task.objective(best, beta), task.objective(start, beta)
    assert task.objective(policy, beta) < top
    share = (task.objective(policy, beta) - low) / (top - low)
    assert progress(policy, start, best) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "reinforce++_baseline", "rloo"])
def test_expected_update_vanishes_at_a_methods_own_optimum(task: Task, method: str) -> None:
    """Free logits a prefix; the K -> infinity gradient, shrunk by (K - 1) / K where it applies."""
    beta, responses = 2.0, 4
    optimum = own_optimum(task, method, beta, responses_per_prompt=responses)
    logits = [t.clone().requires_grad_() for t in conditionals(optimum, task)]
    policy = [table.log_softmax(-1) for table in logits]
    reference = conditionals(task.reference_logprobs, task)
    chance = optimum.exp()
    centred = task.rewards - (chance * task.rewards).sum(1, keepdim=True)
    variance = (chance * centred.square()).sum(1, keepdim=True)
    shrink = (responses - 1) / responses
    new, old = along(policy, task), along(reference, task)
    if method == "rloo":
        reward = task.rewards - beta * (new - old).detach().sum(-1)
        advantage = reward - (chance * reward).sum(1, keepdim=True)
        kl = torch.zeros_like(new)
    else:
        scale = {
            "grpo": variance.sqrt(),
            "dr_grpo": torch.ones(1),
            "reinforce++_baseline": (variance.mean() * shrink).sqrt(),
        }[method]
        advantage = shrink * centred / scale
        kl = kl_estimate(new, old, estimator="k2" if "reinforce" in method else "k3")
    loss = (chance * (beta * kl - advantage.unsqueeze(-1) * new).sum(-1)).sum()
    gradients = torch.autograd.grad(loss, logits)
    terms = torch.autograd.grad((chance * (centred * along_sum(logits, task))).sum(), logits)
    assert max(float(g.abs().max()) for g in gradients) < 1e-6
    assert max(float(t.abs().max()) for t in terms) > 1e-3


def conditionals(logprobs: Tensor, task: Task) -> list[Tensor]:
    """log p(token | prefix) for each place, [P, V**t, V]."""
    tables, total = [], logprobs
    for _ in range(task.length):
        total = total.reshape(len(task.prompts), -1, task.vocabulary)
        tables.insert(0, total.log_softmax(-1))
        total = total.logsumexp(-1)
    return tables


def along(tables: list[Tensor], task: Task) -> Tensor:
    """The log-probability of each token of each response, [P, S, L]."""
    flat = [table.flatten(1) for table in tables]
    return torch.stack([f.repeat_interleave(task.size // f.shape[1], dim=1) for f in flat], dim=-1)


def along_sum(logits: list[Tensor], task: Task) -> Tensor:
    return along([table.log_softmax(-1) for table in logits], task).sum(-1)


def all_pairs(task: Task, rewards: Tensor) -> PreferenceBatch:
    """Each prompt's responses as one group, every pair compared, exact soft labels."""
    heads = [prompt.token_ids for prompt in task.prompts for _ in range(task.size)]
    tokens = batch_from_rows(heads, task.responses().repeat(len(task.prompts), 1).tolist())
    difference = rewards.unsqueeze(2) - rewards.unsqueeze(1)
    weight = torch.ones(task.size, task.size).triu(1)
    return PreferenceBatch(
        token_ids=tokens.token_ids,
        attention_mask=tokens.attention_mask,
        response_mask=tokens.response_mask,
        group=torch.arange(len(task.prompts)).repeat_interleave(task.size),
        member=torch.arange(task.size).repeat(len(task.prompts)),
        preference=torch.sigmoid(difference).flatten(0, 1).float(),
        pair_weight=weight.repeat(len(task.prompts), 1),
    )


def test_dpo_loss_is_minus_log_sigmoid_of_the_implicit_margin() -> None:
    tokens = batch_from_rows([[1], [1]], [[2, 3], [4]])
    new = torch.tensor([[0.0, -1.0, -2.0], [0.0, -0.5, 0.0]])
    reference = torch.tensor([[0.0, -1.5, -1.0], [0.0, -1.5, 0.0]])
    batch = ReferredBatch(
        token_ids=tokens.token_ids,
        attention_mask=tokens.attention_mask,
        response_mask=tokens.response_mask,
        group=torch.zeros(2, dtype=torch.int64),
        member=torch.tensor([0, 1]),
        preference=torch.tensor([[0.5, 1.0], [0.0, 0.5]]),
        pair_weight=torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
        reference_logprobs=reference,
    )
    outputs = LogprobOutputs(new_logprobs=new, entropy=torch.zeros(2, 3))
    margin = torch.tensor(0.3 * ((-3.0 + 2.5) - (-0.5 + 1.5)))
    expected = -torch.nn.functional.logsigmoid(margin)
    torch.testing.assert_close(dpo_loss(outputs, batch, beta=0.3).loss, expected)


def test_dpo_rests_where_pi_is_the_reference_times_exp_reward_over_beta(
    model: RecurrentLM, task: Task
) -> None:
    training = TrainingConfig(tokens_per_microbatch=10**6)
    policy = language_role(model, training, RATE, updates=10)
    generator = torch.Generator().manual_seed(4)
    for weight in policy.module.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    beta = 0.5
    implied = beta * (response_logprobs(policy.module.causal_lm, task) - task.reference_logprobs)
    norms = []
    for rewards in (implied, 2 * implied):
        comparisons = all_pairs(task, rewards)
        reference = reference_role(model).logprobs(comparisons)
        fields = vars(comparisons) | {"reference_logprobs": reference}
        loss = partial(dpo_loss, beta=beta)
        policy.forward_backward(ReferredBatch(**fields), loss, denominator=1.0)
        gradients = [p.grad for p in policy.module.parameters() if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        policy.optimizer.zero_grad(set_to_none=True)
    assert norms[0] < 1e-3 * norms[1]


def test_dpo_training_moves_towards_the_closed_form(model: RecurrentLM, task: Task) -> None:
    config = DPOConfig(
        beta=0.5, epochs=60, groups_per_minibatch=2, tokens_per_microbatch=10**6, optimizer=RATE
    )
    assert num_dpo_steps(config, 2) == 60
    policy = language_role(model, config, RATE, updates=60)
    reference, sink = reference_role(model), ListSink()
    comparisons = all_pairs(task, task.rewards)
    train_dpo(config, policy, reference, comparisons, seed=0, metrics=sink)
    check_names(set(sink.records[0]) - {"step"})
    assert sink.records[-1]["dpo/loss"] < sink.records[0]["dpo/loss"] - 0.05
    reached = response_logprobs(policy.module.causal_lm, task)
    assert progress(reached, task.reference_logprobs, task.optimum(0.5)) > 0.9
