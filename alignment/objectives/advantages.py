"""How much better than expected: by a critic over tokens, or by comparing whole responses."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignment.errors import DataError


def generalized_advantages(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    discount: float,
    gae_lambda: float,
    gaps: Literal["skip", "count"] = "skip",
    end_values: Float[Tensor, " B"] | None = None,
    end_rewards: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Advantages and returns (= advantages + values, before any whitening); 0 outside the mask.

    values[b, t] is the value before token t is emitted; after the last response token it is 0,
    unless there is one more step there, of value `end_values` and reward `end_rewards`, after
    which it is 0 (where TRL pays the score).
    Gaps in the mask, such as tool output, are no steps: the next value and advantage are carried
    over them, so the result equals that of the sequence with the gap cut out. With `gaps`
    "count" each token of a gap is a step of value and reward 0, as OpenRLHF has it. Each row is
    one sequence; do not pack.

    Source: Schulman et al. 2016, arXiv 1506.02438, eq. 16.
    """
    steps = response_mask
    if gaps == "count":
        steps = response_mask.cummax(1).values & response_mask.flip(1).cummax(1).values.flip(1)
        values = torch.where(response_mask, values, 0.0)
        rewards = torch.where(response_mask, rewards, 0.0)
    advantages = torch.zeros_like(values)
    next_advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    if end_values is not None and end_rewards is not None:
        next_advantage, next_value = end_rewards - end_values, end_values
    for t in reversed(range(values.shape[1])):
        is_step = steps[:, t]
        delta = rewards[:, t] + discount * next_value - values[:, t]
        advantage = delta + discount * gae_lambda * next_advantage
        next_advantage = torch.where(is_step, advantage, next_advantage)
        next_value = torch.where(is_step, values[:, t], next_value)
        advantages[:, t] = torch.where(is_step, advantage, 0.0)
    returns = torch.where(response_mask, advantages + values, 0.0)
    return torch.where(response_mask, advantages, 0.0), returns


def leave_one_out_advantages(
    rewards: Float[Tensor, " B"], group: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Reward of each response minus the mean reward of the *other* responses of its group.

    The others are independent of the response, so the baseline adds no bias. `group[b]` numbers
    the prompt of response b.

    Raises:
        DataError: a group has a single response.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; RLOO of
    Ahmadian et al. 2024, arXiv 2402.14740.
    """
    mean, _, count = _group_moments(rewards, group)
    return (rewards - mean) * count / (count - 1)


def group_relative_advantages(
    rewards: Float[Tensor, " B"],
    group: Int[Tensor, " B"],
    *,
    divide_by_deviation: bool,
    eps: float = 1e-6,
) -> Float[Tensor, " B"]:
    """Reward minus the mean of its group, itself included; GRPO divides by deviation + eps.

    With K responses a prompt the first form is (K - 1) / K of the leave-one-out advantage, in
    expectation a smaller gradient of the same direction. The deviation (n - 1) weighs prompts
    by how little their rewards vary and depends on the response itself: a bias.

    Raises:
        DataError: a group has a single response.

    Sources: Shao et al. 2024, arXiv 2402.03300, 4.1.2; without the division: Liu et al. 2025,
    arXiv 2503.20783 (Dr. GRPO).
    """
    mean, deviation, _ = _group_moments(rewards, group)
    centred = rewards - mean
    return centred / (deviation + eps) if divide_by_deviation else centred


def _group_moments(rewards: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation (n - 1) and size of each response's group, all [B]."""
    _, index = group.unique(return_inverse=True)
    zeros = rewards.new_zeros(int(index.max()) + 1)
    count = zeros.index_add(0, index, torch.ones_like(rewards))
    if bool((count < 2).any()):
        alone = int(group[count[index] < 2][0])
        raise DataError(
            f"group {alone} has one response and nothing to compare it with: sample 2 or more "
            "responses a prompt"
        )
    mean = (zeros.index_add(0, index, rewards) / count)[index]
    squares = zeros.index_add(0, index, (rewards - mean).square())
    return mean, (squares / (count - 1)).sqrt()[index], count[index]
