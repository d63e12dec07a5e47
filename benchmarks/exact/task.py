"""The task: all responses of V tokens and length L, a random reward for each, a reference model.

A response always has L tokens, so there is no end-of-turn and nothing is cut off. S = V**L
responses; response s is the number s written in base V, first token first.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignment.experience import EncodedPrompt, TokenBatch

VOCABULARY, LENGTH, PROMPTS = 8, 4, 3
PROMPT_LENGTH = 2
PAIRS = 0.25
"""How much a response's reward depends on pairs of neighbouring tokens, beside single tokens."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """prompts: P of them. rewards: float64 [P, S]. reference_logprobs: float64 [P, S].

    Rewards of each prompt have mean 0 and standard deviation 1 under the reference.
    """

    vocabulary: int
    length: int
    prompts: tuple[EncodedPrompt, ...]
    rewards: Tensor
    reference_logprobs: Tensor

    @property
    def size(self) -> int:
        """S, responses a prompt."""
        return int(self.vocabulary**self.length)

    def responses(self) -> Tensor:
        """Every response, int64 [S, L]."""
        digits = [self.vocabulary ** (self.length - 1 - place) for place in range(self.length)]
        numbers = torch.arange(self.size)
        return torch.stack([numbers // digit % self.vocabulary for digit in digits], dim=1)

    def reward_of(self, batch: TokenBatch) -> Tensor:
        """The table's reward of each row, float32 [B]."""
        shape = (len(batch.token_ids), self.length)
        tokens = batch.token_ids[batch.response_mask].view(shape)
        places = self.vocabulary ** torch.arange(self.length - 1, -1, -1)
        prompt_of = {prompt.token_ids: index for index, prompt in enumerate(self.prompts)}
        heads = [prompt_of[tuple(row)] for row in batch.token_ids[:, :PROMPT_LENGTH].tolist()]
        return self.rewards[torch.tensor(heads), (tokens * places).sum(1)].float()

    def optimum(self, beta: float) -> Tensor:
        """The closed form, log pi* = log pi_ref + r / beta - log Z, float64 [P, S]."""
        return torch.log_softmax(self.reference_logprobs + self.rewards / beta, dim=1)

    def objective(self, logprobs: Tensor, beta: float) -> float:
        """J(pi) = mean over prompts of E_pi[r] - beta KL(pi || pi_ref)."""
        penalty = beta * (logprobs - self.reference_logprobs)
        return float((logprobs.exp() * (self.rewards - penalty)).sum(1).mean())


def make_task(
    causal_lm: Any,
    *,
    seed: int,
    vocabulary: int = VOCABULARY,
    length: int = LENGTH,
    prompts: int = PROMPTS,
    pairs: float = PAIRS,
    own: float = 0.0,
) -> Task:
    """Random rewards, standardised under the reference.

    r(x, y) = sum over places of u_x[t, y_t] + `pairs` * sum over neighbours of b[y_t, y_t+1]
    + `own` * e_x[y], all independent standard normals: each prompt likes other tokens at each
    place, all like the same pairs, and `own` is what nothing but the whole response tells.
    """
    encoded = tuple(
        EncodedPrompt(id=f"p{index}", token_ids=(index % vocabulary, (index + 1) % vocabulary))
        for index in range(prompts)
    )
    empty = Task(
        vocabulary=vocabulary,
        length=length,
        prompts=encoded,
        rewards=torch.zeros(prompts, vocabulary**length, dtype=torch.float64),
        reference_logprobs=torch.zeros(prompts, vocabulary**length, dtype=torch.float64),
    )
    reference = response_logprobs(causal_lm, empty)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = empty.responses()
    raw = own * normal(prompts, empty.size)
    for place in range(length):
        raw += normal(prompts, vocabulary)[:, tokens[:, place]]
    table = normal(vocabulary, vocabulary)
    for place in range(length - 1):
        raw += pairs * table[tokens[:, place], tokens[:, place + 1]]
    probability = reference.exp()
    centred = raw - (probability * raw).sum(1, keepdim=True)
    deviation = (probability * centred.square()).sum(1, keepdim=True).sqrt()
    return Task(
        vocabulary=vocabulary,
        length=length,
        prompts=encoded,
        rewards=centred / deviation,
        reference_logprobs=reference,
    )


def response_logprobs(causal_lm: Any, task: Task) -> Tensor:
    """Of every response log pi(response | prompt), float64 [P, S], by V**(L-1) prefixes."""
    with torch.no_grad():
        tables = next_token_logprobs(causal_lm, task)
    total = tables[0]
    for table in tables[1:]:
        total = (total.unsqueeze(-1) + table.view(*total.shape, task.vocabulary)).flatten(1)
    return total


def next_token_logprobs(causal_lm: Any, task: Task) -> list[Tensor]:
    """For each place t: log pi(token | prompt, prefix), float64 [P, V**t * V]."""
    prefixes = task.responses()[:: task.vocabulary, : task.length - 1]
    heads = torch.tensor([prompt.token_ids for prompt in task.prompts])
    rows = torch.cat(
        [
            heads.repeat_interleave(len(prefixes), dim=0),
            prefixes.repeat(len(task.prompts), 1),
        ],
        dim=1,
    )
    logits = causal_lm(rows).logits[:, PROMPT_LENGTH - 1 :].double()
    tables = torch.log_softmax(logits, dim=-1).view(
        len(task.prompts), len(prefixes), task.length, -1
    )
    return [
        tables[:, :: task.vocabulary ** (task.length - 1 - place), place].flatten(1)
        for place in range(task.length)
    ]
