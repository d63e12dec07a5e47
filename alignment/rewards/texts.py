"""From a batch of tokens back to the texts that functions, scorers and people read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignment.data.chat import decode_response, end_of_turn_id
from alignment.errors import DataError
from alignment.experience import EncodedPrompt, Rollout, TokenBatch
from alignment.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPair:
    """A row of a batch as text. `finished` is False where the response met the token limit."""

    prompt: Prompt
    response: str
    finished: bool

    @property
    def prompt_text(self) -> str:
        """The conversation as one text; see `conversation_text`."""
        return conversation_text(self.prompt)


class BatchTexts:
    """Reads batches of one policy. Prompts are found by their tokens, responses are decoded."""

    def __init__(self, tokenizer: Any, prompts: Iterable[tuple[EncodedPrompt, Prompt]]) -> None:
        self._tokenizer = tokenizer
        self._end_of_turn = end_of_turn_id(tokenizer)
        self._prompts: Mapping[tuple[int, ...], Prompt] = {
            encoded.token_ids: prompt for encoded, prompt in prompts
        }

    def read(self, batch: TokenBatch) -> list[TextPair]:
        """Prompt and response of each row, control tokens left out.

        Raises:
            DataError: a row does not begin with one of the prompts this was made for.
        """
        return [self._row(batch, row) for row in range(len(batch.token_ids))]

    def _row(self, batch: TokenBatch, row: int) -> TextPair:
        tokens = batch.token_ids[row][batch.attention_mask[row]].tolist()
        is_response = batch.response_mask[row][batch.attention_mask[row]].tolist()
        begin = is_response.index(True) if True in is_response else len(tokens)
        prompt = self._prompts.get(tuple(tokens[:begin]))
        if prompt is None:
            raise DataError(
                f"sequence {row} begins with a prompt of {begin} tokens that is none of the "
                f"{len(self._prompts)} known ones, so it has no text; give `BatchTexts` every "
                "prompt that is sampled"
            )
        response = tuple(tokens[begin:])
        finished = (
            bool(batch.finished[row])
            if isinstance(batch, Rollout)
            else response[-1:] == (self._end_of_turn,)
        )
        text = decode_response(self._tokenizer, response)
        return TextPair(prompt=prompt, response=text, finished=finished)


def conversation_text(prompt: Prompt) -> str:
    """A single user turn is its own text; several turns are `role: text`, a blank line between."""
    if len(prompt.messages) == 1:
        return prompt.messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt.messages)
