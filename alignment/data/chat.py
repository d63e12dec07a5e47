"""Prompts and responses as tokens: the chat template is applied here, once, and nowhere else.

Everything after this module is token in, token out. A response's text never turns into
control tokens, and the end-of-turn token is added by id, not by writing it into the text.
"""

from typing import TYPE_CHECKING, NamedTuple

from alignment.errors import DataError, ModelError
from alignment.experience import EncodedPrompt
from alignment.records import Prompt, Response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodedExample(NamedTuple):
    """A prompt (template applied) and a response (end-of-turn token included) as tokens."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, *, max_prompt_tokens: int
) -> EncodedPrompt:
    """Tokens of the templated conversation up to where the assistant's reply begins.

    Raises:
        ModelError: the tokenizer has no chat template.
        DataError: the prompt does not end with a user turn, has more than `max_prompt_tokens`
            tokens, is refused by the template, or spells a control token, which would forge a
            turn.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template, so a "
            'conversation cannot be turned into tokens; set `model.chat_template = "chatml"` or '
            "use a model whose tokenizer ships one"
        )
    _check_prompt(tokenizer, prompt)
    from jinja2 import TemplateError

    try:
        token_ids = tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in prompt.messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    except TemplateError as error:
        raise DataError(
            f"prompt {prompt.id} is refused by the chat template: {error}; leave it out, or set "
            '`model.chat_template = "chatml"`'
        ) from error
    if len(token_ids) > max_prompt_tokens:
        raise DataError(
            f"prompt {prompt.id} has {len(token_ids)} tokens with the chat template; "
            f"`model.max_prompt_tokens` accepts {max_prompt_tokens}: "
            "raise it, shorten the prompt or leave it out"
        )
    return EncodedPrompt(id=prompt.id, token_ids=tuple(token_ids))


def encode_response(tokenizer: "PreTrainedTokenizerBase", response: Response) -> tuple[int, ...]:
    """Tokens of a response as the model is to emit them.

    A sampled response keeps its own tokens. An imported text is tokenised as plain text and
    closed with the end-of-turn token, unless its `finish_reason` says that it was cut off.

    Raises:
        DataError: the response has neither tokens nor text.
    """
    if response.token_ids:
        return response.token_ids
    if not response.text.strip():
        raise DataError(
            f"response {response.id} is empty; a response needs text or token ids: leave it out"
        )
    token_ids = tokenizer.encode(response.text, add_special_tokens=False, split_special_tokens=True)
    ending = (end_of_turn_id(tokenizer),) if response.finish_reason == "stop" else ()
    return (*token_ids, *ending)


def encode_example(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    response: Response,
    *,
    max_prompt_tokens: int,
) -> EncodedExample:
    """Both halves of one training sequence; raises what the halves raise."""
    encoded = encode_prompt(tokenizer, prompt, max_prompt_tokens=max_prompt_tokens)
    return EncodedExample(encoded.token_ids, encode_response(tokenizer, response))


def end_of_turn_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Id of the token that ends a turn: the tokenizer's end-of-sequence token.

    Raises:
        ModelError: the tokenizer declares none.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no end-of-sequence "
            "token, so no response could ever end; set `eos_token` in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def decode_response(tokenizer: "PreTrainedTokenizerBase", token_ids: tuple[int, ...]) -> str:
    """Text of response tokens without control tokens; spaces are left as the model wrote them."""
    text = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text)


def _check_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> None:
    if not prompt.messages or prompt.messages[-1].role != "user":
        last = prompt.messages[-1].role if prompt.messages else "no turn at all"
        raise DataError(
            f"prompt {prompt.id} ends with {last}; it must end with a user turn that waits for "
            "a response"
        )
    for number, message in enumerate(prompt.messages):
        if not message.content.strip():
            raise DataError(f"prompt {prompt.id}, message {number} ({message.role}) is empty")
        for token in tokenizer.all_special_tokens:
            if token in message.content:
                raise DataError(
                    f"prompt {prompt.id}, message {number} contains {token!r}, which the tokenizer "
                    "reads as a control token: remove it from the text"
                )
