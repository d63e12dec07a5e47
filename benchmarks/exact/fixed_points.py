"""Where each method comes to rest on the enumerable task: the optimum of its own objective.

KL in the reward: pi* = pi_ref exp(r / beta) / Z. KL as a loss term, differentiated at fixed
samples, knows nothing of the KL of later tokens: with Q(s, a) the expected reward after token a
and b the effective coefficient, the policy gradient vanishes at
k2: p(a|s) proportional to q(a|s) exp(Q / b);   k3: p(a|s) = b q(a|s) / (lambda(s) - Q).
Advantages divided by a deviation sigma of the rewards under the policy itself make b = beta sigma,
so policy and sigma are found together. docs/numerics.md, "Methods", derives all of it.
"""

import torch
from torch import Tensor

from benchmarks.exact.task import Task

ROUNDS = 300
SMALLEST = 1e-3
"""A deviation that shrinks to nothing, and the weight of KL with it, ends here: a greedy policy."""


def own_optimum(task: Task, method: str, beta: float, *, responses_per_prompt: int) -> Tensor:
    """Log-probability of every response at the method's own optimum, float64 [P, S].

    Exact for KL in the reward. For GRPO the deviation of K responses is taken for that of the
    policy, which is off by order 1 / K.
    """
    if method in ("ppo", "rloo", "reinforce++", "dpo"):
        return task.optimum(beta)
    shrink = responses_per_prompt / (responses_per_prompt - 1)
    estimator = "k2" if method == "reinforce++_baseline" else "k3"
    coefficient = torch.full((len(task.prompts),), beta * shrink, dtype=torch.float64)
    if method == "dr_grpo":
        return _induction(task, coefficient, estimator)
    spread = torch.ones_like(coefficient)
    for _ in range(ROUNDS):
        logprobs = _induction(task, coefficient * spread, estimator)
        variance = _variance(task, logprobs)
        if method == "reinforce++_baseline":
            variance = variance.mean().expand_as(variance) / shrink
        if bool(((variance.sqrt() - spread).abs() < 1e-9).all() or (spread <= SMALLEST).all()):
            break
        spread = (0.5 * spread + 0.5 * variance.sqrt()).clamp(min=SMALLEST)
    return logprobs


def _variance(task: Task, logprobs: Tensor) -> Tensor:
    probability = logprobs.exp()
    mean = (probability * task.rewards).sum(1, keepdim=True)
    return (probability * (task.rewards - mean).square()).sum(1)


def _induction(task: Task, coefficient: Tensor, estimator: str) -> Tensor:
    """From the last token back: the policy at each prefix given the values after it."""
    prompts, v = len(task.prompts), task.vocabulary
    total = task.reference_logprobs.view(prompts, -1, v)
    values = task.rewards
    tables = []
    for _ in range(task.length):
        values = values.reshape(prompts, -1, v)
        prefix = total.logsumexp(-1)
        conditional = total - prefix.unsqueeze(-1)
        solve = _exponential if estimator == "k2" else _hyperbolic
        table = solve(conditional, values, coefficient.view(-1, 1, 1))
        tables.append(table)
        values = (table.exp() * values).sum(-1)
        total = prefix.view(prompts, -1, v) if prefix.shape[1] > 1 else prefix
    joint = tables.pop()
    while tables:
        deeper = tables.pop()
        joint = joint.reshape(prompts, -1, 1) + deeper
    return joint.reshape(prompts, -1)


def _exponential(reference: Tensor, values: Tensor, coefficient: Tensor) -> Tensor:
    return torch.log_softmax(reference + values / coefficient, dim=-1)


def _hyperbolic(reference: Tensor, values: Tensor, coefficient: Tensor) -> Tensor:
    """`p = b q / (lambda - Q)` with the lambda above every Q at which p sums to 1, by bisection."""
    best = values.amax(-1, keepdim=True)
    low, high = best, best + coefficient
    for _ in range(55):
        middle = (low + high) / 2
        is_too_large = (coefficient * reference.exp() / (middle - values)).sum(-1, keepdim=True) > 1
        low, high = torch.where(is_too_large, middle, low), torch.where(is_too_large, high, middle)
    policy = coefficient * reference.exp() / (high - values)
    return torch.log_softmax(policy.log(), dim=-1)


def progress(logprobs: Tensor, start: Tensor, optimum: Tensor) -> float:
    """`1 - KL(p || optimum) / KL(start || optimum)`, KL averaged over prompts.

    For KL in the reward this is (J(p) - J(start)) / (J(optimum) - J(start)) exactly, because
    J(optimum) - J(p) = beta KL(p || optimum).
    """

    def divergence(policy: Tensor) -> float:
        return float((policy.exp() * (policy - optimum)).sum(1).mean())

    return 1.0 - divergence(logprobs) / divergence(start)
