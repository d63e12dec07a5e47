"""One training of one method on one task, watched by enumeration."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.config import METHODS, OptimizerConfig, PPOConfig
from alignment.dpo_config import DPOConfig
from alignment.experience import PreferenceBatch, batch_from_rows
from alignment.training.dpo import num_dpo_steps, train_dpo
from alignment.training.ppo import train_ppo
from benchmarks.exact.fixed_points import own_optimum, progress
from benchmarks.exact.in_process import (
    Curve,
    NothingKept,
    NothingSaved,
    language_role,
    make_roles,
    reference_role,
)
from benchmarks.exact.recurrent import RecurrentLM, random_model
from benchmarks.exact.task import PROMPTS, VOCABULARY, Task, make_task

ALL_METHODS = (*METHODS, "dpo")
BETAS = (0.05, 0.2, 1.0)
"""KL coefficients, in units of the reward's standard deviation under the reference, which is 1."""
POINTS = 12
DPO_PAIRS = 6144


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a method came: shares of the way from the reference (0) to an optimum (1).

    `shared` is (J(p) - J(p_ref)) / (J* - J(p_ref)) of the KL-regularised reward; `own` the same
    towards the method's own optimum, `at_own` is `shared` of that optimum. Curves are
    (optimiser step, value).
    """

    method: str
    beta: float
    seed: int
    shared: list[tuple[int, float]]
    own: list[tuple[int, float]]
    at_own: float
    seconds: float


def run_method(method: str, beta: float, seed: int) -> Outcome:
    """Train from the reference and look at every response's probability on the way."""
    torch.set_num_threads(1)
    started = time.process_time()
    causal_lm = random_model(seed=seed, vocabulary=VOCABULARY)
    task = make_task(causal_lm, seed=seed)
    if method == "dpo":
        curve = train_by_comparisons(causal_lm, task, beta, seed)
    else:
        curve = train_online(causal_lm, task, ppo_settings(method, beta), seed)
    start, best = task.reference_logprobs, task.optimum(beta)
    own = own_optimum(task, method, beta, responses_per_prompt=RESPONSES)
    lowest = task.objective(start, beta)
    gain = task.objective(best, beta) - lowest

    def shared(logprobs: Tensor) -> float:
        return (task.objective(logprobs, beta) - lowest) / gain

    return Outcome(
        method=method,
        beta=beta,
        seed=seed,
        shared=[(step, shared(logprobs)) for step, logprobs in curve.points],
        own=[(step, progress(logprobs, start, own)) for step, logprobs in curve.points],
        at_own=shared(own),
        seconds=time.process_time() - started,
    )


def ppo_settings(method: str, beta: float) -> PPOConfig:
    """The same for every method and coefficient, but for what the method itself is."""
    settings = {
        "method": method,
        "steps": STEPS,
        "prompts_per_step": PROMPTS,
        "responses_per_prompt": RESPONSES,
        "sequences_per_minibatch": PROMPTS * RESPONSES // MINIBATCHES,
        "epochs": EPOCHS,
        "max_response_tokens": 4,
        "kl_coefficient": beta,
        "kl_budget_nats": 1e9,
        "optimizer": RATE,
        "tokens_per_microbatch": 1_000_000,
        "checkpoint_every_steps": STEPS,
    }
    if METHODS[method].has_critic:
        settings |= {
            "critic_optimizer": CRITIC_RATE,
            "critic_warmup_steps": 5,
            "gae_lambda": 1.0,
            "value_clip": None,
        }
    return PPOConfig.model_validate(settings)


STEPS, RESPONSES, MINIBATCHES, EPOCHS = 60, 256, 4, 4
RATE = OptimizerConfig(learning_rate=1e-2, warmup_steps=20)
"""Of policies; it decays to 0.

Fast and with several epochs, so that the clip decides how far a step goes: every token's
probability then changes by about the same factor, rare tokens as well as common ones. Where the
clip does not act, common tokens grow first, and at small coefficients the policy settles on one
good response before it has tried the best (docs/log.md, 2026-11-25).
"""
CRITIC_RATE = OptimizerConfig(learning_rate=1e-2, final_learning_rate_fraction=0.1)


def train_online(causal_lm: RecurrentLM, task: Task, config: PPOConfig, seed: int) -> Curve:
    """`alignment.training.ppo` itself, its roles in this process."""
    roles = make_roles(causal_lm, task, config)
    curve = Curve(task, roles.policy, max(1, config.steps // POINTS))
    curve.look(0)
    train_ppo(
        config,
        roles,
        task.prompts,
        seed=seed,
        checkpoints=NothingSaved(),
        journal=NothingKept(),
        metrics=curve,
    )
    return curve


def train_by_comparisons(causal_lm: RecurrentLM, task: Task, beta: float, seed: int) -> Curve:
    """DPO on pairs that the reference sampled and Bradley-Terry labeled by the same rewards."""
    config = DPOConfig(
        beta=beta,
        epochs=4,
        groups_per_minibatch=64,
        tokens_per_microbatch=1_000_000,
        optimizer=RATE,
    )
    steps = num_dpo_steps(config, DPO_PAIRS)
    policy = language_role(causal_lm, config, config.optimizer, updates=steps)
    curve = Curve(task, policy, max(1, steps // POINTS))
    curve.look(0)
    comparisons = sample_comparisons(task, DPO_PAIRS, seed=seed)
    reference = reference_role(causal_lm)
    train_dpo(config, policy, reference, comparisons, seed=seed, metrics=curve)
    return curve


def sample_comparisons(task: Task, pairs: int, *, seed: int) -> PreferenceBatch:
    """Two responses of the reference each; the first wins with probability s(r1 - r2)."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.arange(pairs) % len(task.prompts)
    chances = task.reference_logprobs.exp()[prompt]
    drawn = torch.multinomial(chances, 2, replacement=True, generator=generator)
    rewards = task.rewards[prompt.unsqueeze(1), drawn]
    chance = torch.sigmoid(rewards[:, 0] - rewards[:, 1])
    first_wins = torch.rand(pairs, generator=generator, dtype=torch.float64) < chance
    responses = task.responses()[drawn.flatten()].tolist()
    heads = [task.prompts[index].token_ids for index in prompt.repeat_interleave(2).tolist()]
    tokens = batch_from_rows(heads, responses)
    preference = torch.full((2 * pairs, 2), 0.5)
    preference[0::2, 1] = first_wins.float()
    preference[1::2, 0] = 1 - first_wins.float()
    pair_weight = torch.zeros(2 * pairs, 2)
    pair_weight[0::2, 1] = 1.0
    return PreferenceBatch(
        token_ids=tokens.token_ids,
        attention_mask=tokens.attention_mask,
        response_mask=tokens.response_mask,
        group=torch.arange(pairs).repeat_interleave(2),
        member=torch.arange(2).repeat(pairs),
        preference=preference,
        pair_weight=pair_weight,
    )
