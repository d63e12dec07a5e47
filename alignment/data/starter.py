"""The starter set: short questions and answers written for this project, shipped with it.

English, with a small Chinese part in files of its own (`language` is `zh`). Demonstrations,
training prompts and held-out prompts share no question.
"""

from dataclasses import dataclass
from importlib.resources import as_file, files

from alignment.data.json_lines import read_json_lines
from alignment.data.validation import check_record
from alignment.errors import DataError
from alignment.records import Demonstration, Message, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterData:
    """English first, then Chinese, each in file order."""

    demonstrations: tuple[Demonstration, ...]
    train_prompts: tuple[Prompt, ...]
    heldout_prompts: tuple[Prompt, ...]


def load_starter() -> StarterData:
    """The whole starter set.

    Raises:
        DataError: an installed file is damaged; names file and line.
    """
    return StarterData(
        demonstrations=tuple(
            Demonstration(prompt=prompt, response=response)
            for prompt, response in _read("demonstrations")
        ),
        train_prompts=tuple(prompt for prompt, _ in _read("prompts_train")),
        heldout_prompts=tuple(prompt for prompt, _ in _read("prompts_heldout")),
    )


def _read(part: str) -> list[tuple[Prompt, str]]:
    rows: list[tuple[Prompt, str]] = []
    for name in (f"{part}.jsonl", f"zh_{part}.jsonl"):
        with as_file(files("alignment.data") / "starter" / name) as path:
            for line in read_json_lines(path):
                where = f"{path}, line {line.number}"
                if line.value is None:
                    raise DataError(f"{where}: {line.problem}; install alignflow again")
                prompt = Prompt(
                    id=line.value["id"],
                    messages=(Message(role="user", content=line.value["prompt"]),),
                    language=line.value["language"],
                    source="starter",
                )
                check_record(prompt, where)
                rows.append((prompt, line.value.get("response", "")))
    return rows
