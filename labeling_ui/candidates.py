"""Candidate sets on their way into a round: what is refused, and what a round is called.

A round is named by a digest of what labelers judge, so publishing the same candidates twice
gives the same round, and two runs with the same candidates share people's work.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from alignment.errors import LabelError
from alignment.records import CandidateSet, Response
from labeling_ui.cards import RESPONSE_LABELS


def check_candidates(candidates: Sequence[CandidateSet]) -> None:
    """Refuses what cannot be ranked, naming prompt and field.

    Identical texts are accepted: a card shows them once and they share a tier.

    Raises:
        LabelError: no prompts, a prompt id twice, no user turn at the end, fewer than 2 or more
            than 9 responses, a response id twice, or text that is not valid Unicode.
    """
    if not candidates:
        raise LabelError("a round needs at least one prompt with its responses; it got none")
    seen: set[str] = set()
    for candidate_set in candidates:
        prompt_id = candidate_set.prompt.id
        where = f"prompt {prompt_id!r}"
        if not prompt_id or prompt_id in seen:
            reason = "appears twice in the round" if prompt_id else "has an empty id"
            raise LabelError(f"{where} {reason}; every prompt needs an id of its own")
        seen.add(prompt_id)
        _check_messages(candidate_set, where)
        _check_responses(candidate_set.responses, where)


def _check_messages(candidate_set: CandidateSet, where: str) -> None:
    messages = candidate_set.prompt.messages
    if not messages or messages[-1].role != "user":
        last = messages[-1].role if messages else "nothing"
        raise LabelError(f"{where} ends with {last!r}; a prompt must end with a user message")
    for index, message in enumerate(messages):
        _check_unicode(message.content, f"{where}, message {index}")


def _check_responses(responses: Sequence[Response], where: str) -> None:
    if not 2 <= len(responses) <= len(RESPONSE_LABELS):
        raise LabelError(
            f"{where} has {len(responses)} response(s); a person can rank 2 to "
            f"{len(RESPONSE_LABELS)} at once"
        )
    ids = [response.id for response in responses]
    twice = sorted({i for i in ids if ids.count(i) > 1 or not i})
    if twice:
        raise LabelError(f"{where} has response ids that are empty or appear twice: {twice!r}")
    for response in responses:
        _check_unicode(response.text, f"{where}, response {response.id!r}")


def _check_unicode(content: str, where: str) -> None:
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        broken = ascii(content[max(0, error.start - 10) : error.end + 10])
        raise LabelError(
            f"{where} is not valid Unicode: unpaired surrogate at character {error.start}, in "
            f"{broken}. Decode the text with errors='replace' first"
        ) from None


def identical_groups(texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
    """Positions of `(text, cut_off)` pairs grouped by equality, in order of first appearance."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for position, shown in enumerate(texts):
        groups.setdefault(shown, []).append(position)
    return list(groups.values())


def round_digest(
    candidates: Sequence[CandidateSet],
    *,
    rankings_per_prompt: int,
    panel: str,
    extra: Sequence[Any] = (),
) -> str:
    """24 hexadecimal digits of a SHA-256 over prompts, responses, overlap and panel.

    Token ids, sources and origins are left out: no labeler sees them. `extra` is whatever else
    makes it another round: settings that are not the default, items that check labelers.
    """
    content = {
        "candidates": list(_canonical(candidates)),
        "rankings_per_prompt": rankings_per_prompt,
        "panel": panel,
    }
    if extra:
        content["extra"] = list(extra)
    return hashlib.sha256(canonical_json(content)).hexdigest()[:24]


def _canonical(candidates: Sequence[CandidateSet]) -> Iterator[dict[str, Any]]:
    for candidate_set in candidates:
        prompt = candidate_set.prompt
        yield {
            "prompt_id": prompt.id,
            "language": prompt.language,
            "messages": [[m.role, m.content] for m in prompt.messages],
            "responses": [[r.id, r.text, r.finish_reason] for r in candidate_set.responses],
        }


def canonical_json(content: Any) -> bytes:
    """The one JSON form that digests are taken of: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
