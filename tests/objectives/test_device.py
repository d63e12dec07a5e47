"""No objective makes a helper tensor on another device than its inputs'.

The meta device computes no numbers but refuses to mix with the CPU, as a GPU does. Objectives that
look into a mask (`int(mask.sum())`) cannot run there.
"""

import torch

from alignment.objectives.advantages import generalized_advantages
from alignment.objectives.aggregation import aggregation_numerator, token_weights
from alignment.objectives.kl import is_last_response_token, kl_estimate
from alignment.objectives.logprobs import scatter_to_grid, token_logprobs
from alignment.objectives.masking import masked_sum
from alignment.objectives.policy_losses import ppo_policy_loss
from alignment.objectives.preference_losses import bradley_terry_loss, plackett_luce_loss
from alignment.objectives.sft_losses import sft_loss
from alignment.objectives.value_losses import ppo_value_loss


def test_every_result_is_on_the_device_of_the_inputs():
    grid, flat = torch.zeros(3, 5, device="meta"), torch.zeros(15, device="meta")
    mask = torch.ones(3, 5, dtype=torch.bool, device="meta")
    whole = torch.zeros(15, dtype=torch.int64, device="meta")
    policy = ppo_policy_loss(grid, grid, grid, mask, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    results = [
        masked_sum(grid, mask),
        token_weights(mask, "seq-mean-token-mean"),
        aggregation_numerator(grid, mask, "seq-mean-token-mean"),
        kl_estimate(grid, grid, estimator="k3"),
        is_last_response_token(mask),
        *generalized_advantages(grid, grid, mask, discount=0.9, gae_lambda=0.9),
        policy.losses,
        policy.is_clipped,
        policy.ratio,
        policy.approximate_kl,
        ppo_value_loss(grid, grid, grid, mask, clip=0.2).losses,
        bradley_terry_loss(flat, preference=0.5, margin=0.1),
        plackett_luce_loss(grid, whole.reshape(3, 5)),
        sft_loss(grid, mask),
        scatter_to_grid(flat, mask),
        *token_logprobs(
            torch.zeros(15, 4, device="meta"),
            lambda hidden: hidden @ torch.zeros(4, 7, device="meta"),
            whole,
            chunk_tokens=4,
        ),
    ]
    assert {str(result.device) for result in results} == {"meta"}
