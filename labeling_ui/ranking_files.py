"""Files of rankings and votes that people made elsewhere, read into cards with their rankings.

`rankings` is alignflow's own form, one prompt a line (docs/labeling_guide.md); `oasst`,
`mt-bench` and `pandalm` are the forms in which three public studies are published. A file is
read whole and checked whole: one bad record refuses all of it, by line and field.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignment.errors import DataError, LabelError
from alignment.records import CandidateSet, Message, Prompt, Response
from labeling_ui.candidates import check_candidates
from labeling_ui.judgement import Judgement, RoundSettings, check_judgement

MAX_PROBLEMS = 20
"""So many bad records are told at once; the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRanking:
    """One labeler's judgement of a card, by response in the card's own order.

    `shown[i]` is the response that was in place i on the labeler's screen.
    """

    labeler: str
    judgement: Judgement
    shown: tuple[int, ...]
    active_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedCard:
    """One prompt with its responses and everyone's ranking of them."""

    candidates: CandidateSet
    rankings: tuple[ImportedRanking, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingFile:
    """What a file holds. `texts` is False where it names responses without their texts.

    `left_out` counts records that are fine but hold nothing to rank, by reason.
    """

    form: str
    cards: tuple[ImportedCard, ...]
    texts: bool
    left_out: Mapping[str, int]


def read_ranking_file(path: Path, form: str) -> RankingFile:
    """Reads a file in one of `FORMS`, gzipped or not.

    Raises:
        DataError: unreadable, or bad records: each named with file, line and field.
    """
    if form not in FORMS:
        raise DataError(f"form {form!r} of {path} is unknown; accepted: {', '.join(FORMS)}")
    report = _Report(path)
    reader = FORMS[form]
    collected = _Collected()
    for line, record in _records(path, report):
        with report.of(line):
            reader(record, collected)
    report.raise_if_any()
    cards = tuple(
        ImportedCard(candidates=candidates, rankings=tuple(rankings))
        for candidates, rankings in collected.cards.values()
    )
    if not cards:
        reasons = ", ".join(f"{n} {why}" for why, n in collected.left_out.items())
        raise DataError(
            f"{path} holds no rankings in the form {form!r} ({reasons or 'no records'})"
        )
    return RankingFile(
        form=form,
        cards=cards,
        texts=form != "mt-bench",
        left_out=collected.left_out,
    )


class _Report:
    """Collects what is wrong with which line, so that one run tells all of it."""

    def __init__(self, path: Path) -> None:
        self._path, self._problems, self._line = path, list[str](), 0

    def of(self, line: int) -> "_Report":
        self._line = line
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, ValidationError):
            for problem in error.errors()[:3]:
                where = ".".join(str(part) for part in problem["loc"]) or "the record"
                shown = repr(problem["input"])
                shown = shown if len(shown) <= 80 else shown[:77] + "..."
                self.add(self._line, f"field {where}: {problem['msg']}, got {shown}")
        elif isinstance(error, LabelError | DataError):
            self.add(self._line, str(error))
        else:
            return False
        return True

    def add(self, line: int, problem: str) -> None:
        self._problems.append(f"{self._path}, line {line}: {problem}")

    def raise_if_any(self) -> None:
        if not self._problems:
            return
        told = self._problems[:MAX_PROBLEMS]
        more = len(self._problems) - len(told)
        told += [f"... and {more} more"] if more else []
        raise DataError(
            "nothing was imported; mend or remove these records:\n  " + "\n  ".join(told)
        )


class _Collected:
    """Cards by prompt id in the order of the file."""

    def __init__(self) -> None:
        self.cards: dict[str, tuple[CandidateSet, list[ImportedRanking]]] = {}
        self.left_out: dict[str, int] = {}

    def card(self, candidates: CandidateSet, *, again: bool = False) -> list[ImportedRanking]:
        """The rankings of this card so far; with `again` a card may come in several records."""
        prompt_id = candidates.prompt.id
        known = self.cards.get(prompt_id)
        if known is None:
            check_candidates([candidates])
            known = self.cards[prompt_id] = (candidates, [])
        elif not again:
            raise DataError(f"field prompt_id: {prompt_id!r} came before; give each prompt once")
        return known[1]

    def holds(self, candidates: CandidateSet, judgement: Judgement) -> bool:
        """True if the very same card with this judgement came before."""
        known = self.cards.get(candidates.prompt.id)
        return known is not None and (
            known[0] == candidates and judgement in [ranking.judgement for ranking in known[1]]
        )

    def leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def _records(path: Path, report: _Report) -> Iterator[tuple[int, Any]]:
    """Line number and content of each record: a JSON array's elements, or one a line."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {at}: not UTF-8 ({error.reason})") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if text.lstrip()[:1] == "[":
        yield from _array(text, path)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                report.add(number, f"not JSON: {error.msg} at character {error.pos + 1}")


def _array(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    decoder, place, line = json.JSONDecoder(), text.index("[") + 1, 1
    seen = 0
    while True:
        while text[place : place + 1] in (" ", "\n", "\r", "\t", ","):
            place += 1
        line += text.count("\n", seen, place)
        seen = place
        if text[place : place + 1] == "]":
            return
        try:
            record, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
        yield line, record


# --- the forms -------------------------------------------------------------------------------

Text = Annotated[str, Field(min_length=1)]
LabelerName = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^\S(.*\S)?$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Turn(_Record):
    role: Literal["system", "user", "assistant"]
    content: str


class _Given(_Record):
    id: Text
    text: str


class _Said(_Record):
    labeler: LabelerName
    tiers: Annotated[list[int], Field(min_length=2, max_length=9)]
    gaps: list[int | None] = []
    bar: int | None = None
    rationale: str = ""
    shown: list[str] | None = None
    active_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class _RankedPrompt(_Record):
    prompt_id: Text
    prompt: str | None = None
    messages: Annotated[list[_Turn], Field(min_length=1)] | None = None
    language: Text = "en"
    responses: Annotated[list[_Given], Field(min_length=2, max_length=9)]
    rankings: Annotated[list[_Said], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_prompt(self) -> "_RankedPrompt":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


def _read_own(record: Any, collected: _Collected) -> None:
    read = _RankedPrompt.model_validate(record)
    turns = read.messages or [_Turn(role="user", content=read.prompt or "")]
    candidates = CandidateSet(
        prompt=Prompt(
            id=read.prompt_id,
            messages=tuple(Message(role=t.role, content=t.content) for t in turns),
            language=read.language,
        ),
        responses=tuple(Response(id=r.id, text=r.text) for r in read.responses),
    )
    rankings = collected.card(candidates)
    ids = [r.id for r in read.responses]
    for number, said in enumerate(read.rankings):
        where = f"field rankings.{number}"
        if sorted(said.shown or ids) != sorted(ids):
            raise DataError(f"{where}.shown: {said.shown!r} are not the responses {ids!r}")
        judgement = Judgement(
            tiers=tuple(said.tiers),
            gaps=tuple(said.gaps),
            bar=said.bar,
            rationale=said.rationale,
        )
        shown = tuple(ids.index(response_id) for response_id in said.shown or ids)
        _add(rankings, where, said.labeler, judgement, shown, said.active_seconds)


def _add(
    rankings: list[ImportedRanking],
    where: str,
    labeler: str,
    judgement: Judgement,
    shown: Sequence[int],
    active_seconds: float = 0.0,
) -> None:
    if not labeler.isprintable():
        raise DataError(f"{where}.labeler: {labeler!r} has control characters")
    if any(r.labeler == labeler for r in rankings):
        raise DataError(f"{where}.labeler: {labeler!r} has ranked this prompt before; keep one")
    try:
        check_judgement(judgement, len(shown), RoundSettings())
    except LabelError as error:
        raise DataError(f"{where}: {error}") from None
    rankings.append(
        ImportedRanking(
            labeler=labeler,
            judgement=judgement,
            shown=tuple(shown),
            active_seconds=active_seconds,
        )
    )


class _Vote(_Record):
    judge: LabelerName
    model_a: Text
    model_b: Text
    question_id: int
    turn: Literal[1, 2]
    winner: Literal["model_a", "model_b", "tie", "tie (inconsistent)"]


_VERDICT = {"model_a": (0, 1), "model_b": (1, 0)}


def _read_vote(record: Any, collected: _Collected) -> None:
    """One vote; the file has neither prompts nor responses, so their names stand in for them."""
    vote = _Vote.model_validate(record)
    first, second = sorted((vote.model_a, vote.model_b))
    if first == second:
        raise DataError(f"field model_b: {second!r} is compared with itself")
    question = f"question {vote.question_id}, turn {vote.turn}"
    candidates = CandidateSet(
        prompt=Prompt(
            id=f"{vote.question_id}/{vote.turn}/{first}/{second}",
            messages=(Message(role="user", content=f"[{question}: text not imported]"),),
        ),
        responses=tuple(
            Response(id=model, text=f"[{model}, {question}: text not imported]")
            for model in (first, second)
        ),
    )
    tiers, shown = _VERDICT.get(vote.winner, (0, 0)), (0, 1)
    if vote.model_a != first:
        tiers, shown = (tiers[1], tiers[0]), (1, 0)
    rankings = collected.card(candidates, again=True)
    _add(rankings, "the vote", vote.judge, Judgement(tiers=tiers), shown)


class _Compared(_Record):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    idx: int
    instruction: Text
    input: str = ""
    response1: str | bool | int | float
    response2: str | bool | int | float


def _read_compared(record: Any, collected: _Collected) -> None:
    """Two responses with a vote a field `annotator1`, ...: 0 a tie, 1 or 2 the better one."""
    read = _Compared.model_validate(record)
    asked = f"{read.instruction}\n\n{read.input}" if read.input else read.instruction
    candidates = CandidateSet(
        prompt=Prompt(id=str(read.idx), messages=(Message(role="user", content=asked),)),
        responses=(
            # Some published responses lost their quotes on the way: `true` for "True".
            Response(id=f"{read.idx}/1", text=str(read.response1)),
            Response(id=f"{read.idx}/2", text=str(read.response2)),
        ),
    )
    votes = {k: v for k, v in (read.model_extra or {}).items() if k.startswith("annotator")}
    if not votes:
        raise DataError("fields annotator1, annotator2, ...: there is none")
    rankings = collected.card(candidates)
    tiers = {0: (0, 0), 1: (0, 1), 2: (1, 0)}
    for name, vote in votes.items():
        if vote not in tiers or isinstance(vote, bool):
            raise DataError(f"field {name}: {vote!r}; accepted: 0 (tie), 1 or 2 (the better one)")
        _add(rankings, f"field {name}", name, Judgement(tiers=tiers[vote]), (0, 1))


_ROLES: Mapping[Any, Literal["user", "assistant"]] = {"prompter": "user", "assistant": "assistant"}


class _TreeMessage(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    message_id: Text
    text: str
    role: Literal["prompter", "assistant"]
    lang: Text = "en"
    rank: Annotated[int, Field(ge=0)] | None = None
    replies: list["_TreeMessage"] = []


class _Tree(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    prompt: _TreeMessage


OASST_LABELER = "merged ranks"


def _read_tree(record: Any, collected: _Collected) -> None:
    """Each set of ranked sibling replies is a card. The ranks merge those of several people."""
    waiting: list[tuple[_TreeMessage, tuple[Message, ...]]] = [
        (_Tree.model_validate(record).prompt, ())
    ]
    while waiting:
        parent, before = waiting.pop(0)
        turns = (*before, Message(role=_ROLES[parent.role], content=parent.text))
        waiting += [(reply, turns) for reply in parent.replies]
        replies = [r for r in parent.replies if r.role == "assistant"]
        if parent.role != "prompter" or len(replies) < 2:
            continue
        ranks = [r.rank for r in replies if r.rank is not None]
        if len(ranks) < len(replies):
            collected.leave_out(
                "sets of replies without ranks" if not ranks else "sets of replies ranked in part"
            )
            continue
        candidates = CandidateSet(
            prompt=Prompt(id=parent.message_id, messages=turns, language=parent.lang),
            responses=tuple(Response(id=r.message_id, text=r.text) for r in replies),
        )
        levels = sorted(set(ranks))
        judgement = Judgement(tiers=tuple(levels.index(rank) for rank in ranks))
        if collected.holds(candidates, judgement):
            collected.leave_out("sets of replies that came before, unchanged")
            continue
        where = f"message {parent.message_id!r}, field replies"
        _add(collected.card(candidates), where, OASST_LABELER, judgement, range(len(replies)))


Reader = Callable[[Any, _Collected], None]

FORMS: Mapping[str, Reader] = {
    "rankings": _read_own,
    "oasst": _read_tree,
    "mt-bench": _read_vote,
    "pandalm": _read_compared,
}
"""Readers by the name that the command takes."""
