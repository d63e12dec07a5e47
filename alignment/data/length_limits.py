"""Leaving out, by name, what is too long for the model or cannot be made into tokens."""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from alignment.data.imported import ImportResult, sift
from alignment.errors import DataError
from alignment.records import Demonstration, PreferenceGroup, Prompt, Response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def leave_out_too_long(
    imported: ImportResult,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> ImportResult:
    """The records that fit; each that does not becomes a refusal, so that counts add up.

    Prompts count with the chat template, responses with the end-of-turn token. A preference
    group is left out as a whole if one of its responses is too long.

    Raises:
        ModelError: the tokenizer has no chat template or no end-of-turn token.
    """
    # Here and not above: reading Parquet and JSON lines needs no torch.
    from alignment.data.chat import encode_prompt, encode_response

    @cache
    def prompt_problem(prompt: Prompt) -> str:
        try:
            encode_prompt(tokenizer, prompt, max_prompt_tokens=max_prompt_tokens)
        except DataError as problem:
            return str(problem)
        return ""

    def response_problem(response: Response) -> str:
        num_tokens = len(encode_response(tokenizer, response))
        if num_tokens <= max_response_tokens:
            return ""
        return (
            f"response {response.id} has {num_tokens} tokens; `data.max_response_tokens` accepts "
            f"{max_response_tokens}: raise it or leave the record out"
        )

    def demonstration_problem(item: Demonstration) -> str:
        response = Response(id=item.prompt.id, text=item.response)
        return prompt_problem(item.prompt) or response_problem(response)

    def group_problem(item: PreferenceGroup) -> str:
        problems = map(response_problem, item.responses)
        return prompt_problem(item.prompt) or next(filter(None, problems), "")

    heldout_prompts = imported.heldout_prompts
    demonstrations, refused = sift(imported.demonstrations, demonstration_problem, "demonstration")
    refused = (*imported.refused, *refused)
    prompts, refused_prompts = sift(imported.prompts, prompt_problem, "prompt")
    refused = (*refused, *refused_prompts)
    if heldout_prompts is not None:
        heldout_prompts, refused_heldout = sift(heldout_prompts, prompt_problem, "heldout_prompt")
        refused = (*refused, *refused_heldout)
    groups, refused_groups = sift(imported.preference_groups, group_problem, "preference_group")
    return replace(
        imported,
        demonstrations=demonstrations,
        prompts=prompts,
        heldout_prompts=heldout_prompts,
        preference_groups=groups,
        refused=(*refused, *refused_groups),
    )
