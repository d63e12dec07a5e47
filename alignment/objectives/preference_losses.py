"""Reward-model losses on comparisons and rankings."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alignment.errors import DataError

MAX_RANKED = 12
"""Plackett-Luce with ties enumerates subsets of a list: 2^12 of them at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceLoss:
    """Scalars, all sums over the compared pairs; only `loss` has a gradient.

    loss: weighted losses, to be divided by the minibatch's total pair weight. weight: the pairs'
    total weight. correct: decided pairs (preference not 0.5) whose scores agree, equal scores
    counting one half. decided: number of such pairs.
    """

    loss: Tensor
    weight: Tensor
    correct: Tensor
    decided: Tensor


def bradley_terry_loss(
    score_difference: Float[Tensor, "..."],
    *,
    preference: Float[Tensor, "..."] | float = 1.0,
    margin: Float[Tensor, "..."] | float = 0.0,
    weight: Float[Tensor, "..."] | float = 1.0,
) -> Float[Tensor, "..."]:
    """Loss of each pair: `-weight * (p log s(d - margin) + (1 - p) log s(-d - margin))`.

    d is the score of the first response minus that of the second, s the logistic function, and
    p = `preference` in [0, 1] the target probability that the first is better: 1 if it won, 0.5
    for a tie, or the share of labelers. Whichever side wins must win by `margin`, so swapping the
    two responses changes nothing. `weight` is the strength of the preference.

    Sources: Ouyang et al. 2022, arXiv 2203.02155, eq. 1; margin: Touvron et al. 2023,
    arXiv 2307.09288, eq. 2; soft labels and ties as cross-entropy: Christiano et al. 2017,
    arXiv 1706.03741, section 2.2.3.
    """
    win = F.softplus(margin - score_difference)
    loss = F.softplus(margin + score_difference)
    return weight * (preference * win + (1.0 - preference) * loss)


def preference_group_loss(
    scores: Float[Tensor, " B"],
    *,
    group: Int[Tensor, " B"],
    member: Int[Tensor, " B"],
    preference: Float[Tensor, "B K"],
    pair_weight: Float[Tensor, "B K"],
    margin: float = 0.0,
) -> PreferenceLoss:
    """Bradley-Terry loss of all compared pairs of a `PreferenceBatch`, each pair once.

    Row b is member `member[b]` of its group; `preference[b, k]` is the probability that it beats
    member k, and counts where `pair_weight[b, k]` is above 0. All responses of one prompt are in
    the batch together, so each is scored once for all of its pairs (Ouyang et al. 2022, 3.5).

    Raises:
        DataError: a compared member is not in the batch, or two rows are the same member.
    """
    opponents = _opponent_rows(group, member, width=preference.shape[1])
    is_compared = pair_weight > 0
    if bool((is_compared & (opponents < 0)).any()):
        row, k = (int(i) for i in (is_compared & (opponents < 0)).nonzero()[0])
        raise DataError(
            f"row {row} of group {int(group[row])} is compared with member {k}, which is not in "
            "the batch: keep the responses of a prompt together"
        )
    differences = scores.unsqueeze(1) - scores[opponents.clamp(min=0)]
    losses = bradley_terry_loss(
        differences, preference=preference, margin=margin, weight=pair_weight
    )
    is_decided = is_compared & (preference != 0.5)
    with torch.no_grad():
        agreement = 0.5 + 0.5 * torch.sign(differences) * torch.sign(preference - 0.5)
    return PreferenceLoss(
        loss=torch.where(is_compared, losses, 0.0).sum(),
        weight=pair_weight.sum(),
        correct=torch.where(is_decided, agreement, 0.0).sum(),
        decided=is_decided.sum(),
    )


def _opponent_rows(group: Tensor, member: Tensor, *, width: int) -> Tensor:
    """[B, K]: the row that holds member k of the row's group, -1 where none does."""
    groups, place = torch.unique(group, return_inverse=True)
    rows = torch.full((len(groups), width), -1, dtype=torch.int64, device=group.device)
    rows[place, member] = torch.arange(len(group), device=group.device)
    if int((rows >= 0).sum()) != len(group):
        raise DataError(
            "two rows of the batch are the same member of the same group: "
            "`member` numbers a group's responses 0, 1, 2, ..."
        )
    return rows[place]


def plackett_luce_loss(
    scores: Float[Tensor, "G K"], tiers: Int[Tensor, "G K"]
) -> Float[Tensor, " G"]:
    """Negative log-likelihood of each ranking: `sum_i [logsumexp_{j not before i} s_j - s_i]`.

    `tiers[g, k]` is 0 for the best, equal tiers are ties, -1 is a response that was not ranked.
    Tied responses take every order among themselves with equal probability and the losses of
    those orders are averaged: a tie counts one half for each side, as in `bradley_terry_loss`,
    which this equals at K = 2.

    Raises:
        DataError: more than MAX_RANKED responses a list.

    Sources: Plackett 1975, JRSS C 24, 193-202; as a loss: Xia et al. 2008, "Listwise approach
    to learning to rank", ICML (ListMLE).
    """
    num_ranked = scores.shape[1]
    if num_ranked > MAX_RANKED:
        raise DataError(
            f"a list has {num_ranked} responses; plackett_luce_loss takes at most {MAX_RANKED}: "
            "compare pairs of longer lists with bradley_terry_loss"
        )
    scores = torch.where(tiers >= 0, scores, 0.0)
    subsets = torch.arange(1, 2**num_ranked, device=scores.device)
    members = (subsets.unsqueeze(1) >> torch.arange(num_ranked, device=scores.device)) & 1 == 1
    left_to_choose = scores.unsqueeze(1).masked_fill(~members, -torch.inf).logsumexp(-1)
    probability = _probability_left(members, tiers).to(scores.dtype)
    return (probability * left_to_choose).sum(1) - scores.sum(1)


def _probability_left(members: Tensor, tiers: Tensor) -> Tensor:
    """[G, M]: how probably each of M subsets is what is left to choose from at some step.

    That needs everything of worse tiers than the subset's best tier to be in it; then m of the n
    responses of its best tier are any of the C(n, m) choices, each as probable.
    """
    members, tiers = members.unsqueeze(0), tiers.unsqueeze(1)
    best = torch.where(members, tiers, tiers.max()).amin(-1, keepdim=True)
    is_complete = (members | (tiers <= best)).all(-1) & (best.squeeze(-1) >= 0)
    in_best_tier = tiers == best
    n, m = in_best_tier.sum(-1).double(), (in_best_tier & members).sum(-1).double()
    log_choices = torch.lgamma(n + 1) - torch.lgamma(m + 1) - torch.lgamma(n - m + 1)
    return torch.where(is_complete, torch.exp(-log_choices), 0.0)
