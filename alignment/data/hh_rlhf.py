"""Reading hh-rlhf: one pair of whole transcripts a line, `chosen` and `rejected`.

A transcript is turns that each begin with a blank line and "Human:" or "Assistant:". The turns
before the last reply are the prompt and must be the same in both. Source of the format: Bai et
al. 2022, "Training a Helpful and Harmless Assistant with RLHF" (arXiv 2204.05862).
"""

import re
from pathlib import Path

from alignment.data.imported import ImportResult, Refusal, excerpt_of, prompt_text
from alignment.data.json_lines import Line, read_json_lines
from alignment.data.validation import check_record
from alignment.errors import DataError
from alignment.records import (
    Comparison,
    Demonstration,
    Message,
    PreferenceGroup,
    Prompt,
    Response,
)

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class _RefusedRowError(Exception):
    """Why a row cannot be used."""


def read_hh_rlhf(path: Path) -> ImportResult:
    """Pairs as preference groups of two (0 the chosen), and chosen replies as demonstrations.

    Ids are `hh-<row>`, rows counted from 0. A prompt that several rows share is listed once
    in `prompts`, under its first id. Turns are stripped of white space at both ends.

    Raises:
        DataError: the file cannot be read, or none of its rows can be used.
    """
    groups: list[PreferenceGroup] = []
    refused: list[Refusal] = []
    for line in read_json_lines(path):
        try:
            groups.append(_group_from_line(line))
        except _RefusedRowError as reason:
            refused.append(
                Refusal(
                    kind="row",
                    record=f"hh-{line.number - 1}",
                    reason=str(reason),
                    excerpt=excerpt_of(line.text),
                    file=path.name,
                    line=line.number,
                )
            )
    if not groups:
        first = refused[0]
        raise DataError(
            f"{path}: none of its {len(refused)} rows can be used; line {first.line}: "
            f"{first.reason}"
        )
    distinct: dict[str, Prompt] = {}
    for group in groups:
        distinct.setdefault(prompt_text(group.prompt), group.prompt)
    return ImportResult(
        demonstrations=tuple(
            Demonstration(prompt=g.prompt, response=g.responses[0].text) for g in groups
        ),
        prompts=tuple(distinct.values()),
        preference_groups=tuple(groups),
        refused=tuple(refused),
    )


def _group_from_line(line: Line) -> PreferenceGroup:
    if line.value is None:
        raise _RefusedRowError(line.problem)
    chosen = _turns(line.value, "chosen")
    rejected = _turns(line.value, "rejected")
    _check_pair(chosen, rejected)
    id = f"hh-{line.number - 1}"
    group = PreferenceGroup(
        prompt=Prompt(id=id, messages=tuple(chosen[:-1]), source="hh-rlhf"),
        responses=(
            Response(id=f"{id}-chosen", text=chosen[-1].content, origin="hh-rlhf"),
            Response(id=f"{id}-rejected", text=rejected[-1].content, origin="hh-rlhf"),
        ),
        comparisons=(Comparison(first=0, second=1, preference=1.0),),
    )
    try:
        check_record(group, id)
    except DataError as problem:
        raise _RefusedRowError(str(problem)) from None
    return group


def _turns(row: dict[str, object], key: str) -> list[Message]:
    if key not in row:
        raise _RefusedRowError(f"key `{key}` is missing; the row has {', '.join(row) or 'no keys'}")
    transcript = row[key]
    if not isinstance(transcript, str):
        raise _RefusedRowError(f"`{key}` is {type(transcript).__name__}, not a transcript text")
    before, *parts = _TURN.split("\n\n" + transcript.lstrip())
    if before.strip() or not parts:
        raise _RefusedRowError(f"`{key}` does not begin with a turn such as 'Human: ...'")
    labels, contents = parts[0::2], parts[1::2]
    return [
        Message(role=_ROLES[label], content=content.strip())  # type: ignore[arg-type]
        for label, content in zip(labels, contents, strict=True)
    ]


def _check_pair(chosen: list[Message], rejected: list[Message]) -> None:
    for key, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1].role != "assistant":
            raise _RefusedRowError(f"`{key}` ends with a Human turn; the last must be a reply")
        if not turns[-1].content:
            raise _RefusedRowError(f"the last reply of `{key}` is empty")
    if chosen[:-1] != rejected[:-1]:
        pairs = zip(chosen, rejected, strict=False)
        same = next(
            (n for n, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected))
        )
        raise _RefusedRowError(
            f"the transcripts part at turn {same + 1}, before the last reply (`chosen` has "
            f"{len(chosen)} turns, `rejected` {len(rejected)}), so the replies answer different "
            "prompts"
        )
    if chosen[-1] == rejected[-1]:
        raise _RefusedRowError("both transcripts end with the same reply: nothing to compare")
