"""A trained reward model as a source: alone or as an ensemble, of any tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment.data.chat import encode_prompt, encode_response, end_of_turn_id
from alignment.errors import DataError
from alignment.experience import TokenBatch, batch_from_rows
from alignment.objectives.ensembles import ensemble_disagreement, pessimistic_scores
from alignment.records import Response
from alignment.rewards.combined import SourceScores
from alignment.rewards.texts import TextPair
from alignment.training.roles import ScoreModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Scores of a reward model. An ensemble's role answers [B, heads] (`FrozenSpec.keeps_heads`).

    disagreement_penalty: how many standard deviations over the heads are taken from their mean.
    retokeniser: None if the reward model reads the policy's own tokens.
    """

    role: ScoreModel
    disagreement_penalty: float = 0.0
    retokeniser: "Retokeniser | None" = None

    def score(self, batch: TokenBatch, texts: Sequence[TextPair]) -> SourceScores:
        """Scores [B], and of an ensemble the heads' disagreement [B]."""
        if self.retokeniser is not None:
            batch = self.retokeniser.encode(texts)
        scores = self.role.scores(batch)
        if scores.ndim == 1:
            return SourceScores(scores=scores)
        return SourceScores(
            scores=pessimistic_scores(scores, penalty=self.disagreement_penalty),
            disagreement=ensemble_disagreement(scores),
        )


@dataclass(frozen=True, slots=True)
class Retokeniser:
    """Texts as another model's tokens, with that model's own chat template.

    tokenizer: the reward model's. max_tokens: the longest sequence it can read; None: not known.
    """

    tokenizer: Any
    max_tokens: int | None = None

    def encode(self, texts: Sequence[TextPair]) -> TokenBatch:
        """One row a text; a finished response ends with that model's end-of-turn token.

        Raises:
            DataError: a sequence is longer than the model can read, or a prompt spells one of its
                control tokens.
        """
        pairs = [
            (
                encode_prompt(self.tokenizer, text.prompt, max_prompt_tokens=2**31).token_ids,
                self._response(text),
            )
            for text in texts
        ]
        for (prompt, response), text in zip(pairs, texts, strict=True):
            length = len(prompt) + len(response)
            if self.max_tokens is not None and length > self.max_tokens:
                raise DataError(
                    f"prompt {text.prompt.id} with its response has {length} tokens of the reward "
                    f"model, which reads {self.max_tokens}; shorten `ppo.max_response_tokens`, "
                    "leave the prompt out, or take a reward model with a longer context"
                )
        return batch_from_rows([prompt for prompt, _ in pairs], [r for _, r in pairs])

    def _response(self, text: TextPair) -> tuple[int, ...]:
        if not text.response.strip():  # an empty response is refused as data, but can be sampled
            return (end_of_turn_id(self.tokenizer),) if text.finished else ()
        return encode_response(
            self.tokenizer,
            Response(
                id=text.prompt.id,
                text=text.response,
                finish_reason="stop" if text.finished else "length",
            ),
        )


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers turn every conversation into the same ids, as far as they can tell.

    Compared: vocabulary, end-of-sequence token, chat template, and how a probe text is cut.
    """
    probe = "Why is the sky blue?\n1234 déjà vu — 你好"
    return bool(
        one.get_vocab() == other.get_vocab()
        and one.eos_token_id == other.eos_token_id
        and one.chat_template == other.chat_template
        and one.encode(probe, add_special_tokens=False)
        == other.encode(probe, add_special_tokens=False)
    )
