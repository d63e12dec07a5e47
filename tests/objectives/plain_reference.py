"""The objectives again, independently: Python floats, explicit loops, straight from the papers.

Nothing is shared with `alignment.objectives`, not even the shape of the algorithms: advantages
are the sum of discounted errors, not a recursion; rankings are averaged over enumerated orders.
"""

import itertools
import math


def kl(policy, reference, estimator):
    ratio = math.exp(reference - policy)  # r = q / p for a token sampled from p
    return {
        "k1": -math.log(ratio),
        "k2": 0.5 * math.log(ratio) ** 2,
        "k3": (ratio - 1) - math.log(ratio),
    }[estimator]


def gae(rewards, values, *, discount, gae_lambda):
    """One sequence without gaps: A_t = sum_l (discount * lambda)^l delta_{t+l}."""
    length = len(rewards)
    following = [*values[1:], 0.0]
    deltas = [rewards[t] + discount * following[t] - values[t] for t in range(length)]
    advantages = [
        sum((discount * gae_lambda) ** (u - t) * deltas[u] for u in range(t, length))
        for t in range(length)
    ]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def whiten(values, *, shift_mean=True, unbiased=True, eps=1e-8):
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - (1 if unbiased else 0))
    back = 0.0 if shift_mean else mean
    return [(v - mean) / math.sqrt(variance + eps) + back for v in values]


def policy_loss(new, old, advantage, *, clip_low, clip_high, dual_clip=None):
    ratio = math.exp(new) / math.exp(old)
    inside = min(max(ratio, 1 - clip_low), 1 + clip_high)
    surrogate = min(ratio * advantage, inside * advantage)
    if dual_clip is not None and advantage < 0:
        surrogate = max(surrogate, dual_clip * advantage)
    return -surrogate


def value_loss(new, old, target, *, clip):
    plain = (new - target) ** 2
    if clip is None:
        return plain / 2
    near = min(max(new, old - clip), old + clip)
    return max(plain, (near - target) ** 2) / 2


def aggregate(rows, aggregation):
    """`rows` holds each sequence's token losses, masked ones left out."""
    rows = [row for row in rows if row]
    if aggregation == "token-mean":
        return sum(sum(row) for row in rows) / sum(len(row) for row in rows)
    if aggregation == "seq-mean-token-mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    return sum(sum(row) for row in rows) / len(rows)


def logistic(x):
    return 1.0 / (1.0 + math.exp(-x))


def bradley_terry(difference, *, preference, margin=0.0, weight=1.0):
    first_wins = math.log(logistic(difference - margin))
    second_wins = math.log(logistic(-difference - margin))
    return -weight * (preference * first_wins + (1 - preference) * second_wins)


def plackett_luce_order(scores, order):
    """Probability of one order, best first."""
    probability = 1.0
    for place in range(len(order)):
        left = sum(math.exp(scores[k]) for k in order[place:])
        probability *= math.exp(scores[order[place]]) / left
    return probability


def plackett_luce(scores, tiers):
    """Mean of -log P over every order that agrees with the tiers; tier -1 is not ranked."""
    ranked = [k for k in range(len(scores)) if tiers[k] >= 0]
    orders = [
        order
        for order in itertools.permutations(ranked)
        if all(tiers[a] <= tiers[b] for a, b in itertools.pairwise(order))
    ]
    return -sum(math.log(plackett_luce_order(scores, order)) for order in orders) / len(orders)


def log_softmax(logits, temperature):
    scaled = [x / temperature for x in logits]
    total = math.log(sum(math.exp(x) for x in scaled))
    return [x - total for x in scaled]


def entropy(logits, temperature):
    return -sum(math.exp(x) * x for x in log_softmax(logits, temperature))
