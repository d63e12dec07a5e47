"""From a data source to the record sets of a run: the data stage, as plain functions.

Whatever the source, a held-out prompt never occurs in training, prompts that are equal word for
word land on the same side, and a seeded shuffle decides what a limit keeps.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignment.config import DataConfig
from alignment.data.hh_rlhf import read_hh_rlhf
from alignment.data.imported import (
    ImportResult,
    ItemT,
    Refusal,
    prompt_of,
    prompt_text,
    sift,
)
from alignment.data.length_limits import leave_out_too_long
from alignment.data.starter import load_starter
from alignment.data.tables import read_records, write_records
from alignment.errors import DataError
from alignment.records import Demonstration, PreferenceGroup, Prompt
from alignment.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELDOUT_FRACTION = 0.1
"""Share of distinct prompts held out if neither the source nor the settings say how many."""

DEMONSTRATIONS_FILE = "demonstrations.parquet"
PROMPTS_FILE = "prompts.parquet"
HELDOUT_PROMPTS_FILE = "heldout_prompts.parquet"
PREFERENCE_GROUPS_FILE = "preference_groups.parquet"
REFUSED_FILE = "refused.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """What a run trains and is judged on; no prompt of `heldout_prompts` is in the others.

    `preference_groups_available` counts those that could be used before
    `data.preference_groups` limited them.
    """

    demonstrations: tuple[Demonstration, ...]
    train_prompts: tuple[Prompt, ...]
    heldout_prompts: tuple[Prompt, ...]
    preference_groups: tuple[PreferenceGroup, ...]
    preference_groups_available: int
    refused: tuple[Refusal, ...]


def prepare(
    config: DataConfig,
    *,
    seed: int,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_prompt_tokens: int | None = None,
) -> PreparedData:
    """Read the configured source, leave out what does not fit, split, shuffle and limit.

    With a tokenizer, prompts longer than `max_prompt_tokens` and responses longer than
    `config.max_response_tokens` become refusals; without one, lengths are not looked at.
    Equal arguments give equal results in equal order.

    Raises:
        DataError: the source cannot be read, or nothing usable is left of a part.
    """
    imported = _read_source(config)
    if tokenizer is not None and max_prompt_tokens is not None:
        imported = leave_out_too_long(
            imported,
            tokenizer,
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=config.max_response_tokens,
        )
    apart = _hold_out(imported, config, seed)
    prepared = PreparedData(
        demonstrations=_shuffled(apart.demonstrations, config.demonstrations, seed, "sft"),
        train_prompts=_shuffled(apart.prompts, config.train_prompts, seed, "train"),
        heldout_prompts=_shuffled(
            apart.heldout_prompts or (), config.heldout_prompts, seed, "heldout"
        ),
        preference_groups=_limited_groups(apart.preference_groups, config, seed),
        preference_groups_available=len(apart.preference_groups),
        refused=apart.refused,
    )
    for part in ("demonstrations", "train_prompts", "heldout_prompts"):
        if not getattr(prepared, part):
            raise DataError(_nothing_left(config, part, prepared.refused))
    return prepared


def read_parquet_folder(folder: Path) -> ImportResult:
    """A folder of our own tables, as `write_prepared` writes them.

    `demonstrations.parquet` and `prompts.parquet` are needed; `heldout_prompts.parquet` and
    `preference_groups.parquet` are read where present.

    Raises:
        DataError: a table is missing or cannot be used; names file, row and field.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; name one with {DEMONSTRATIONS_FILE} and {PROMPTS_FILE}"
        )
    heldout, groups = folder / HELDOUT_PROMPTS_FILE, folder / PREFERENCE_GROUPS_FILE
    return ImportResult(
        demonstrations=read_records(folder / DEMONSTRATIONS_FILE, Demonstration),
        prompts=read_records(folder / PROMPTS_FILE, Prompt),
        heldout_prompts=read_records(heldout, Prompt) if heldout.exists() else None,
        preference_groups=read_records(groups, PreferenceGroup) if groups.exists() else (),
    )


def write_prepared(folder: Path, prepared: PreparedData) -> None:
    """Write the tables, and `refused.jsonl` with one refusal a line (empty if none).

    `preference_groups.parquet` is left out if there are no groups. `read_parquet_folder` reads
    the folder again.
    """
    write_records(folder / DEMONSTRATIONS_FILE, prepared.demonstrations, Demonstration)
    write_records(folder / PROMPTS_FILE, prepared.train_prompts, Prompt)
    write_records(folder / HELDOUT_PROMPTS_FILE, prepared.heldout_prompts, Prompt)
    if prepared.preference_groups:
        write_records(folder / PREFERENCE_GROUPS_FILE, prepared.preference_groups, PreferenceGroup)
    lines = [json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in prepared.refused]
    partial = folder / f".{REFUSED_FILE}.{os.getpid()}.partial"
    partial.write_text("".join(lines), encoding="utf-8")
    os.replace(partial, folder / REFUSED_FILE)


def split_by_prompt(
    items: Sequence[ItemT], *, num_heldout: int, seed: int
) -> tuple[tuple[ItemT, ...], tuple[ItemT, ...]]:
    """Items as (train, heldout), with `num_heldout` distinct prompts held out.

    Prompts are ranked by a hash of seed and text: the order of items, their ids and repeated
    prompts do not matter, and a new prompt moves at most one other across the border.

    Raises:
        DataError: fewer than one prompt would be left to train on.
    """
    texts = {prompt_text(prompt_of(item)) for item in items}
    if not 0 <= num_heldout < len(texts):
        raise DataError(
            f"{num_heldout} of {len(texts)} distinct prompts cannot be held out; accepted: 0 to "
            f"{len(texts) - 1}, set `data.heldout_prompts` or bring more prompts"
        )
    ranked = sorted(texts, key=lambda text: hashlib.sha256(f"{seed}\n{text}".encode()).digest())
    heldout_texts = set(ranked[:num_heldout])
    train = tuple(i for i in items if prompt_text(prompt_of(i)) not in heldout_texts)
    heldout = tuple(i for i in items if prompt_text(prompt_of(i)) in heldout_texts)
    return train, heldout


def _read_source(config: DataConfig) -> ImportResult:
    if config.source == "starter":
        starter = load_starter()
        return ImportResult(
            demonstrations=starter.demonstrations,
            prompts=starter.train_prompts,
            heldout_prompts=starter.heldout_prompts,
        )
    assert config.path is not None  # DataConfig refuses the other sources without a path
    if config.source == "hh-rlhf":
        return read_hh_rlhf(config.path)
    return read_parquet_folder(config.path)


def _hold_out(imported: ImportResult, config: DataConfig, seed: int) -> ImportResult:
    """Every prompt on one side only: the source's own split where it has one, else ours."""
    if not imported.prompts:
        raise DataError(_nothing_left(config, "prompts", imported.refused))
    if imported.heldout_prompts is not None:
        return _refuse_heldout_in_training(imported, imported.heldout_prompts)
    distinct = {prompt_text(prompt) for prompt in imported.prompts}
    num_heldout = config.heldout_prompts or max(1, round(HELDOUT_FRACTION * len(distinct)))
    prompts, heldout = split_by_prompt(imported.prompts, num_heldout=num_heldout, seed=seed)
    away = _texts(heldout)
    return replace(
        imported,
        demonstrations=_apart(imported.demonstrations, away),
        prompts=prompts,
        heldout_prompts=heldout,
        preference_groups=_apart(imported.preference_groups, away),
    )


def _refuse_heldout_in_training(
    imported: ImportResult, heldout: tuple[Prompt, ...]
) -> ImportResult:
    away = _texts(heldout)

    def problem(item: Prompt | Demonstration | PreferenceGroup) -> str:
        if prompt_text(prompt_of(item)) not in away:
            return ""
        return "its prompt is also among the held-out prompts, which training must not see"

    demonstrations, first = sift(imported.demonstrations, problem, "demonstration")
    prompts, second = sift(imported.prompts, problem, "prompt")
    groups, third = sift(imported.preference_groups, problem, "preference_group")
    return replace(
        imported,
        demonstrations=demonstrations,
        prompts=prompts,
        preference_groups=groups,
        refused=(*imported.refused, *first, *second, *third),
    )


def _texts(prompts: Iterable[Prompt]) -> set[str]:
    return {prompt_text(prompt) for prompt in prompts}


def _apart(items: Sequence[ItemT], away: set[str]) -> tuple[ItemT, ...]:
    return tuple(item for item in items if prompt_text(prompt_of(item)) not in away)


def _shuffled(items: Sequence[ItemT], limit: int | None, seed: int, part: str) -> tuple[ItemT, ...]:
    order = np.random.default_rng(derive_seed(seed, "data", part)).permutation(len(items))
    return tuple(items[place] for place in order.tolist()[:limit])


def _limited_groups(
    groups: tuple[PreferenceGroup, ...], config: DataConfig, seed: int
) -> tuple[PreferenceGroup, ...]:
    """All in the source's order, or as many as the settings say, chosen by the seed."""
    if config.preference_groups is None:
        return groups
    return _shuffled(groups, config.preference_groups, seed, "preferences")


def _nothing_left(config: DataConfig, part: str, refused: Sequence[Refusal]) -> str:
    return (
        f"{config.path or 'the starter set'}: no {part.replace('_', ' ')} are left"
        f"{why_refused(refused)}; bring more data or relax the limits"
    )


def why_refused(refused: Sequence[Refusal]) -> str:
    """`; 3 records were refused, the first: ...` for a message; empty if none was."""
    if not refused:
        return ""
    return f"; {len(refused)} records were refused, the first: {refused[0].reason}"
