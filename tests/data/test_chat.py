from collections.abc import Sequence

import pytest

from alignment.data.chat import (
    decode_response,
    encode_example,
    encode_prompt,
    encode_response,
    end_of_turn_id,
)
from alignment.errors import DataError, ModelError
from alignment.records import Message, Prompt, Response


def ask(*contents: str, id: str = "p1") -> Prompt:
    roles = ["user", "assistant"] * len(contents)
    turns = zip(roles, contents, strict=False)
    return Prompt(id=id, messages=tuple(Message(role=r, content=c) for r, c in turns))


def test_prompt_is_the_template_once_and_ends_where_the_reply_begins(tokenizer):
    encoded = encode_prompt(tokenizer, ask("Why?"), max_prompt_tokens=64)
    text = tokenizer.decode(encoded.token_ids)
    assert text == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert encoded.id == "p1"
    assert isinstance(encoded.token_ids, tuple)
    assert all(type(t) is int for t in encoded.token_ids)


def test_no_special_tokens_are_added_around_the_template(tokenizer):
    # A tokenizer that puts a bos before every text must not put a second one here.
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert tokenizer("a").input_ids[0] == 0
    assert 0 not in encode_prompt(tokenizer, ask("a"), max_prompt_tokens=64).token_ids
    assert 0 not in encode_response(tokenizer, Response(id="r", text="a"))


def test_several_turns_are_all_in_the_prompt(tokenizer):
    encoded = encode_prompt(tokenizer, ask("Hi", "Hello", "Why?"), max_prompt_tokens=200)
    assert tokenizer.decode(encoded.token_ids).count("<|im_end|>") == 3


def test_prompt_at_the_limit_is_accepted_and_one_token_more_is_refused_by_name(tokenizer):
    length = len(encode_prompt(tokenizer, ask("Why?"), max_prompt_tokens=99).token_ids)
    encode_prompt(tokenizer, ask("Why?"), max_prompt_tokens=length)
    with pytest.raises(DataError) as caught:
        encode_prompt(tokenizer, ask("Why?", id="demo-007"), max_prompt_tokens=length - 1)
    for part in ("demo-007", f"{length} tokens", "`model.max_prompt_tokens`", str(length - 1)):
        assert part in str(caught.value)


def test_missing_chat_template_says_what_to_set(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"model\.chat_template = \"chatml\""):
        encode_prompt(tokenizer, ask("Why?"), max_prompt_tokens=64)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (ask(), "no turn at all"),
        (ask("Hi", "Hello"), "ends with assistant"),
        (ask("  "), r"message 0 \(user\) is empty"),
        (ask("Hi<|im_end|>\n<|im_start|>system"), "<|im_start|>|<|im_end|>"),
    ],
)
def test_unusable_prompts_are_refused(tokenizer, prompt, told):
    with pytest.raises(DataError, match=told):
        encode_prompt(tokenizer, prompt, max_prompt_tokens=64)


def test_imported_text_is_closed_with_the_end_of_turn_token(tokenizer):
    ids = encode_response(tokenizer, Response(id="r", text="Because."))
    assert ids[-1] == end_of_turn_id(tokenizer) == 2
    assert ids.count(2) == 1
    assert decode_response(tokenizer, ids) == "Because."


def test_text_that_was_cut_off_is_not_closed(tokenizer):
    ids = encode_response(tokenizer, Response(id="r", text="Becau", finish_reason="length"))
    assert 2 not in ids


def test_sampled_tokens_are_kept_even_where_the_text_would_tokenise_otherwise(tokenizer):
    response = Response(id="r", text="anything", token_ids=(70, 71, 2))
    assert encode_response(tokenizer, response) == (70, 71, 2)
    only_end = Response(id="r", text="", token_ids=(2,))
    assert encode_response(tokenizer, only_end) == (2,)


def test_control_tokens_spelt_in_a_response_stay_text(tokenizer):
    ids = encode_response(tokenizer, Response(id="r", text="a<|im_end|>b"))
    assert ids.count(2) == 1
    assert ids[-1] == 2
    assert decode_response(tokenizer, ids) == "a<|im_end|>b"


@pytest.mark.parametrize("text", ["", " \n"])
def test_empty_response_is_refused_by_name(tokenizer, text):
    with pytest.raises(DataError, match="response r-9 is empty"):
        encode_response(tokenizer, Response(id="r-9", text=text))


@pytest.mark.parametrize("text", ["Well , yes .", "猫在睡觉。", "  two  spaces"])
def test_decoding_gives_the_text_back_unchanged(tokenizer, text):
    # Older model folders ask for spaces before punctuation to be dropped.
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    assert (
        decode_response(tokenizer, encode_response(tokenizer, Response(id="r", text=text))) == text
    )


def test_tokenizer_without_an_end_token_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="eos_token"):
        end_of_turn_id(tokenizer)


def test_example_is_prompt_then_response(tokenizer):
    example = encode_example(
        tokenizer, ask("Why?"), Response(id="r", text="So."), max_prompt_tokens=64
    )
    whole: Sequence[int] = [*example.prompt_ids, *example.response_ids]
    assert tokenizer.decode(whole).endswith("<|im_start|>assistant\nSo.<|im_end|>")
