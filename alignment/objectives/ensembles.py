"""Reward-model ensembles: draws of the prompts for each head, and scores that shun disagreement."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def bootstrap_counts(num_prompts: int, heads: int, *, seed: int) -> Int[Tensor, "P H"]:
    """How often each prompt is in each head's draw of `num_prompts` prompts with replacement.

    int64 [P, heads]; each column sums to P. A prompt is drawn with all its responses, because
    they are not independent. Efron and Tibshirani 1993, ch. 6; for ensembles of networks Osband
    et al. 2016, arXiv 1602.04621.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_prompts, (num_prompts, heads), generator=generator)
    return torch.zeros_like(drawn).scatter_add_(0, drawn, torch.ones_like(drawn))


def ensemble_disagreement(head_scores: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
    """Standard deviation of the heads' scores of each response, dividing by heads - 1."""
    return head_scores.std(dim=1, unbiased=True)


def pessimistic_scores(head_scores: Float[Tensor, "B H"], *, penalty: float) -> Float[Tensor, " B"]:
    """Mean over heads minus `penalty` standard deviations, [B].

    Coste et al. 2023, arXiv 2310.02743, section 3.2, "uncertainty-weighted optimisation", with
    the deviation in place of their variance: it is in the units of the score.
    """
    mean = head_scores.mean(dim=1)
    return mean - penalty * ensemble_disagreement(head_scores) if penalty else mean
