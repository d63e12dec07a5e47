"""A small recurrent language model: a few thousand tokens' arithmetic takes a millisecond.

It answers the calls that `alignment.models` makes of a transformers model, so the product's own
language and value models wrap it unchanged.
"""

import copy
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from alignment.models.modules import LanguageModel, ValueModel, new_value_head

EMBEDDING, HIDDEN = 32, 64
LOGIT_SCALE = 4.0
"""Multiplies the initial output weights: without it every reference would be nearly uniform."""


class RecurrentDecoder(nn.Module):
    """Embedding and one layer of gated recurrent units."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBEDDING)
        self.recurrence = nn.GRU(EMBEDDING, HIDDEN, batch_first=True)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> tuple[Tensor]:
        """Hidden states [B, T, H]."""
        hidden, _ = self.recurrence(self.embedding(input_ids))
        return (hidden,)


class RecurrentLM(nn.Module):
    """The decoder and an output layer that is not tied to the embedding."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(tie_word_embeddings=False, vocab_size=vocabulary)
        self.decoder = RecurrentDecoder(vocabulary)
        self.output = nn.Linear(HIDDEN, vocabulary)
        with torch.no_grad():
            self.output.weight.mul_(LOGIT_SCALE)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """An object with logits [B, T, V]."""
        return SimpleNamespace(logits=self.output(self.decoder(input_ids)[0]))

    def get_decoder(self) -> RecurrentDecoder:
        """What gives hidden states."""
        return self.decoder

    def get_output_embeddings(self) -> nn.Linear:
        """What projects them onto the vocabulary."""
        return self.output

    def tie_weights(self) -> None:
        """Nothing is tied."""


def random_model(*, seed: int, vocabulary: int) -> RecurrentLM:
    """A random reference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RecurrentLM(vocabulary)


def language_model(causal_lm: RecurrentLM) -> LanguageModel:
    """A copy of its own in the product's wrapper."""
    return LanguageModel(copy.deepcopy(causal_lm))


def value_model(causal_lm: RecurrentLM) -> ValueModel:
    """A critic on a copy of the decoder, with a new head."""
    head = new_value_head(HIDDEN, seed=0)
    return ValueModel(copy.deepcopy(causal_lm.decoder), head, mean=0.0, scale=1.0)
