"""Sample responses to prompts in batches, with progress."""

from collections.abc import Sequence
from pathlib import Path

from alignment.records import Prompt, Response
from alignment.seeds import derive_seed
from alignment.training.roles import Generator
from flows.progress import Progress

SEQUENCES_PER_CALL = 64


def sample_responses(
    generator: Generator,
    prompts: Sequence[Prompt],
    *,
    tokenizer_folder: Path,
    max_prompt_tokens: int,
    samples: int,
    max_response_tokens: int,
    temperature: float,
    seed: int,
    progress: Progress,
) -> list[list[Response]]:
    """`samples` responses to each prompt, in the prompts' order.

    Each response has its own seed, derived from `seed`, the prompt's id and its number, so a
    response does not depend on which others are sampled beside it.
    """
    from alignment.data.chat import decode_response, encode_prompt
    from alignment.experience import Sampling
    from alignment.models.loading import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    encoded = [encode_prompt(tokenizer, p, max_prompt_tokens=max_prompt_tokens) for p in prompts]
    sampling = Sampling(max_response_tokens=max_response_tokens, temperature=temperature)
    wanted = [(prompt, number) for prompt in encoded for number in range(samples)]
    responses: list[Response] = []
    for start in range(0, len(wanted), SEQUENCES_PER_CALL):
        part = wanted[start : start + SEQUENCES_PER_CALL]
        rollout = generator.generate(
            [prompt for prompt, _ in part],
            sampling,
            seeds=[derive_seed(seed, prompt.id, number) for prompt, number in part],
        )
        for row, (prompt, number) in enumerate(part):
            token_ids = tuple(rollout.token_ids[row][rollout.response_mask[row]].tolist())
            responses.append(
                Response(
                    id=f"{prompt.id}/{number}",
                    text=decode_response(tokenizer, token_ids),
                    token_ids=token_ids,
                    finish_reason="stop" if bool(rollout.finished[row]) else "length",
                )
            )
        progress.advance(len(responses), len(wanted), "response")
    return [responses[i : i + samples] for i in range(0, len(responses), samples)]
