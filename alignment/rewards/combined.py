"""The weighted sum of reward sources, and a memory of what each of them said last."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from alignment.experience import TokenBatch
from alignment.rewards.texts import BatchTexts, TextPair


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceScores:
    """One source's scores of a batch before its weight, float32 [B].

    disagreement: float32 [B], the deviation over an ensemble's heads; None of any other source.
    """

    scores: Tensor
    disagreement: Tensor | None = None


class Source(Protocol):
    """Anything that scores responses; it may read tokens or texts."""

    def score(self, batch: TokenBatch, texts: Sequence[TextPair]) -> SourceScores:
        """Scores of the whole batch, or an error that names the source."""
        ...


class TextScorer(Protocol):
    """A source that reads texts alone: a function or a server."""

    def score_texts(self, texts: Sequence[TextPair]) -> Tensor:
        """One score a response, float32 [B]."""
        ...


@dataclass(frozen=True, slots=True)
class TextSource:
    """A scorer of texts as a source."""

    scorer: TextScorer

    def score(self, batch: TokenBatch, texts: Sequence[TextPair]) -> SourceScores:
        """The scorer's own scores; tokens are not looked at."""
        return SourceScores(scores=self.scorer.score_texts(texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedSource:
    """A source with the name that its metrics carry and its weight in the sum."""

    name: str
    source: Source
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTexts:
    """What was said of one batch of B: texts, response tokens, the sum [B], and each source."""

    texts: Sequence[TextPair]
    tokens: Sequence[Sequence[int]]
    totals: Tensor
    by_source: Mapping[str, SourceScores]

    @property
    def disagreement(self) -> Tensor | None:
        """Of the ensemble among the sources, float32 [B]; None where there is none."""
        spreads = (said.disagreement for said in self.by_source.values())
        return next((spread for spread in spreads if spread is not None), None)


class CombinedReward:
    """A `ScoreModel`: weight times score, summed over sources. `last` is its latest batch."""

    def __init__(self, sources: Sequence[WeightedSource], texts: BatchTexts) -> None:
        self.sources = tuple(sources)
        self.last: ScoredTexts | None = None
        self._texts = texts

    def scores(self, batch: TokenBatch) -> Tensor:
        """The sum for each response, float32 [B]; a single source of weight 1 to the bit.

        Raises:
            AlignmentError: a source failed; no other is asked and nothing is kept.
        """
        texts = self._texts.read(batch)
        said = {entry.name: entry.source.score(batch, texts) for entry in self.sources}
        first, *rest = (_weighted(entry.weight, said[entry.name].scores) for entry in self.sources)
        total = first
        for part in rest:
            total = total + part
        self.last = ScoredTexts(
            texts=texts,
            tokens=[
                row[mask].tolist()
                for row, mask in zip(batch.token_ids, batch.response_mask, strict=True)
            ],
            totals=total,
            by_source=said,
        )
        return total

    @property
    def devices(self) -> frozenset[str] | None:
        """Of all sources; functions and servers count as this machine's CPU."""
        here = frozenset([f"{socket.gethostname()} CPU"])
        own = [
            getattr(entry.source.role, "devices", None) if hasattr(entry.source, "role") else here
            for entry in self.sources
        ]
        known = [devices for devices in own if devices is not None]
        return frozenset().union(*known) if len(known) == len(own) else None

    def end(self, reason: str) -> None:
        """End the sources that are roles of their own; see `alignment.training.side_by_side`."""
        for entry in self.sources:
            role: Any = getattr(entry.source, "role", None)
            if hasattr(role, "end"):
                role.end(reason)

    def describe(self) -> list[dict[str, Any]]:
        """What runs behind the sources, as far as they are roles."""
        roles: list[Any] = [getattr(entry.source, "role", None) for entry in self.sources]
        described: list[dict[str, Any]] = []
        for role in roles:
            described += role.describe() if hasattr(role, "describe") else []
        return described


def _weighted(weight: float, scores: Tensor) -> Tensor:
    return scores if weight == 1.0 else weight * scores
