"""Expected gradients, by enumerating every response, against the exact gradient of the objective.

Two prompts, 3 tokens, length 2: 9 responses a prompt. Modules are float64; what roles hand out
is float32, which bounds the agreement.
"""

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from alignment.config import OptimizerConfig, PPOConfig
from alignment.experience import Experience, Rollout, batch_from_rows, select_rows
from alignment.objectives.running_moments import RunningMoments
from alignment.training.ppo_experience import build_experience
from alignment.training.ppo_objective import policy_objective
from alignment.training.ppo_report import PhaseClock
from alignment.training.ppo_scoring import score_rollout
from alignment.training.roles import PPORoles
from benchmarks.exact.in_process import make_roles
from benchmarks.exact.recurrent import RecurrentLM, random_model
from benchmarks.exact.task import Task, make_task, next_token_logprobs

BETA = 0.3
TOLERANCE = 2e-6
RATE = OptimizerConfig(learning_rate=1e-3)


class Setting:
    """A policy away from its reference, and every group of K responses of each prompt."""

    def __init__(self, model: RecurrentLM, task: Task, **settings: object) -> None:
        self.task = task
        options = {"prompts_per_step": 2, "kl_coefficient": BETA, "sequences_per_minibatch": 2}
        options |= {"kl_budget_nats": 1e9, "tokens_per_microbatch": 10**6, "optimizer": RATE}
        self.config = PPOConfig.model_validate(options | settings)
        self.roles: PPORoles = make_roles(model, task, self.config)
        generator = torch.Generator().manual_seed(5)
        for role in filter(None, (self.roles.policy, self.roles.critic)):
            role.module.double()
            for weight in role.module.parameters():
                noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                weight.data += 0.1 * noise

    def groups(self) -> tuple[Rollout, Tensor]:
        """Every ordered group of K responses of each prompt, and each row's probability."""
        responses = self.task.responses().tolist()
        size = self.config.responses_per_prompt
        rows, weights = [], []
        probability = self.logprobs().exp()
        for p, prompt in enumerate(self.task.prompts):
            for group in product(range(len(responses)), repeat=size):
                chance = float(torch.stack([probability[p, y] for y in group]).prod())
                rows += [(prompt.token_ids, responses[y]) for y in group]
                weights += [chance] * size
        batch = batch_from_rows([head for head, _ in rows], [tail for _, tail in rows])
        index = torch.arange(len(rows)) // size
        rollout = Rollout(
            token_ids=batch.token_ids,
            attention_mask=batch.attention_mask,
            response_mask=batch.response_mask,
            sampling_logprobs=self.roles.policy.logprobs(batch),
            finished=torch.ones(len(rows), dtype=torch.bool),
            prompt_index=index,
            policy_version=torch.zeros(len(rows)),
        )
        return rollout, torch.tensor(weights, dtype=torch.float64)

    def expected_gradient(self, beta: float = BETA) -> Tensor:
        """Gradient of a step's loss, averaged over everything the step might have sampled."""
        rollout, weights = self.groups()
        everything = [list(range(len(rollout.token_ids)))]
        scored = score_rollout(self.config, self.roles, rollout, everything, PhaseClock())
        experience = build_experience(
            scored, self.config, kl_coefficient=beta, moments=RunningMoments()
        )
        policy, objective = self.roles.policy, policy_objective(self.config, kl_coefficient=beta)
        for rows, weight in self._rows_of_equal_weight(experience, weights):
            policy.forward_backward(rows, objective, denominator=1 / weight)
        per_step = len(self.task.prompts) * self.config.responses_per_prompt
        if self.config.aggregation == "token-mean":
            per_step *= self.task.length
        return self._take_gradient() / per_step

    def exact_gradient(self, beta: float = BETA) -> Tensor:
        """Gradient of -J, J = mean over prompts of E[r] - beta KL(policy || reference)."""
        logprobs = self.logprobs()
        penalty = beta * (logprobs - self.task.reference_logprobs)
        objective = (logprobs.exp() * (self.task.rewards - penalty)).sum(1).mean()
        (-objective).backward()
        return self._take_gradient()

    def logprobs(self) -> Tensor:
        tables = next_token_logprobs(self.roles.policy.module.causal_lm, self.task)
        first, second = tables
        return (first.unsqueeze(-1) + second.view(*first.shape, -1)).flatten(1)

    def _rows_of_equal_weight(
        self, experience: Experience, weights: Tensor
    ) -> Iterator[tuple[Experience, float]]:
        for weight in weights.unique().tolist():
            yield select_rows(experience, (weights == weight).nonzero().flatten()), weight

    def _take_gradient(self) -> Tensor:
        parameters = list(self.roles.policy.module.parameters())
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        self.roles.policy.optimizer.zero_grad(set_to_none=True)
        return gradient.clone()


@pytest.fixture(scope="module")
def model() -> RecurrentLM:
    return random_model(seed=1, vocabulary=3)


@pytest.fixture(scope="module")
def task(model: RecurrentLM) -> Task:
    return make_task(model, seed=2, vocabulary=3, length=2, prompts=2)


def relative(gradient: Tensor, exact: Tensor) -> float:
    return float((gradient - exact).norm() / exact.norm())


def ppo(model: RecurrentLM, task: Task, **settings: object) -> Setting:
    options = {"whiten_advantages": False, "gae_lambda": 1.0}
    return Setting(model, task, **options | settings)


def test_expected_gradient_of_ppo_is_the_exact_policy_gradient(
    model: RecurrentLM, task: Task
) -> None:
    setting = ppo(model, task)
    exact = setting.exact_gradient() / task.length  # a token mean is a sequence's sum over L
    assert exact.norm() > 0.01
    assert relative(setting.expected_gradient(), exact) < TOLERANCE


def test_a_wrong_critic_biases_the_gradient_where_lambda_is_below_one(
    model: RecurrentLM, task: Task
) -> None:
    setting = ppo(model, task, gae_lambda=0.5)
    exact = setting.exact_gradient() / task.length
    assert relative(setting.expected_gradient(), exact) > 0.01


def test_expected_gradient_of_reinforce_plus_plus_is_exact_without_whitening(
    model: RecurrentLM, task: Task
) -> None:
    setting = Setting(model, task, method="reinforce++", whiten_advantages=False)
    exact = setting.exact_gradient() / task.length
    assert relative(setting.expected_gradient(), exact) < TOLERANCE


def test_leave_one_out_is_unbiased(model: RecurrentLM, task: Task) -> None:
    setting = Setting(model, task, method="rloo", responses_per_prompt=2)
    assert relative(setting.expected_gradient(), setting.exact_gradient()) < TOLERANCE


def test_group_mean_shrinks_the_gradient(model: RecurrentLM, task: Task) -> None:
    setting = Setting(
        model,
        task,
        method="dr_grpo",
        responses_per_prompt=2,
        kl_placement="reward",
        kl_estimator="k1",
    )
    exact = setting.exact_gradient() / 2
    assert relative(setting.expected_gradient(), exact) < TOLERANCE


def test_grpo_weighs_prompts_by_their_deviation(model: RecurrentLM, task: Task) -> None:
    """Ten times the rewards of one prompt: ten times its gradient, but the same in GRPO."""
    louder = Task(
        vocabulary=task.vocabulary,
        length=task.length,
        prompts=task.prompts,
        rewards=task.rewards * torch.tensor([[10.0], [1.0]]),
        reference_logprobs=task.reference_logprobs,
    )
    options = {"method": "grpo", "responses_per_prompt": 2}
    quiet, loud = (Setting(model, some, **options) for some in (task, louder))
    assert relative(loud.expected_gradient(), quiet.expected_gradient()) < 1e-4
    assert relative(loud.exact_gradient(), quiet.exact_gradient()) > 1.0


def test_grpo_is_no_multiple_of_the_policy_gradient(model: RecurrentLM, task: Task) -> None:
    setting = Setting(model, task, method="grpo", responses_per_prompt=2, kl_coefficient=0.0)
    gradient, exact = setting.expected_gradient(beta=0.0), setting.exact_gradient(beta=0.0)
    cosine = float(gradient @ exact / gradient.norm() / exact.norm())
    assert 0.5 < cosine < 0.99
