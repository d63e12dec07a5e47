"""A scorer behind HTTP as a reward.

Request: POST, JSON `{"prompts": ["..."], "responses": ["..."]}`, equally long lists.
Answer: status 200, JSON `{"scores": [0.5]}`, one finite number for each response in that order.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from torch import Tensor

from alignment.errors import ConfigError, RewardError
from alignment.reward_config import HttpConfig
from alignment.rewards.answers import scores_from_answer
from alignment.rewards.texts import TextPair

_HOPELESS = range(400, 500)
"""The server refuses the request itself: the same request again would be refused again."""
_WORTH_ANOTHER_TRY = (408, 425, 429)


@dataclass(frozen=True, slots=True)
class _Failure:
    """An attempt that gave no scores, in words, and whether another may."""

    what: str
    is_final: bool = False


class HttpReward:
    """Scores texts by asking a server; every response of a step is scored, or none is used."""

    def __init__(self, config: HttpConfig, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.config = config
        self._sleep = sleep
        self._token = _token(config)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        has_certificates = config.url.startswith("https:")  # reading them takes a second
        self._client = httpx.Client(
            timeout=config.timeout_s, headers=headers, verify=has_certificates
        )

    def score_texts(self, texts: Sequence[TextPair]) -> Tensor:
        """One score a response, float32 [B].

        Raises:
            RewardError: after `attempts` tries some request has no usable answer; names the URL,
                what came each time, and what is accepted.
        """
        size = self.config.responses_per_request
        pieces = [self._ask(texts[start : start + size]) for start in range(0, len(texts), size)]
        return torch.cat(pieces)

    def _ask(self, texts: Sequence[TextPair]) -> Tensor:
        failures: list[str] = []
        for attempt in range(self.config.attempts):
            if attempt:
                self._sleep(self.config.backoff_s * 2 ** (attempt - 1))
            answer = self._attempt(texts)
            if not isinstance(answer, _Failure):
                return answer
            failures.append(answer.what)
            if answer.is_final:
                break
        raise RewardError(
            f"reward scorer {self.config.url} gave no usable scores for {len(texts)} responses in "
            f"{len(failures)} attempts: {'; '.join(_counted(failures))}. Accepted: status 200 with "
            f'JSON {{"scores": [...]}} of {len(texts)} finite numbers within '
            f"{self.config.timeout_s:g} s. Nothing was trained on this step; start the scorer "
            "again, then run the same command"
        )

    def _attempt(self, texts: Sequence[TextPair]) -> Tensor | _Failure:
        request = {
            "prompts": [text.prompt_text for text in texts],
            "responses": [text.response for text in texts],
        }
        try:
            reply = self._client.post(self.config.url, json=request)
        except httpx.TimeoutException:
            return _Failure(f"no answer within {self.config.timeout_s:g} s")
        except httpx.HTTPError as error:
            return _Failure(f"{type(error).__name__}: {error}")
        if reply.status_code != httpx.codes.OK:
            refused = reply.status_code in _HOPELESS
            is_final = refused and reply.status_code not in _WORTH_ANOTHER_TRY
            what = f"status {reply.status_code} {_begin_of(reply.text)}"
            return _Failure(self._without_token(what), is_final)
        try:
            return scores_from_answer(_scores_in(reply), len(texts), source="it")
        except (RewardError, ValueError) as error:
            return _Failure(self._without_token(str(error).partition("; accepted")[0]))

    def _without_token(self, text: str) -> str:
        """A server may send back what it was sent."""
        return text.replace(self._token, "***") if self._token else text


def _scores_in(reply: httpx.Response) -> Any:
    answer = reply.json()
    if not isinstance(answer, dict) or "scores" not in answer:
        raise RewardError(f"JSON without `scores`: {_begin_of(reply.text)}")
    return answer["scores"]


def _token(config: HttpConfig) -> str | None:
    """Read from the environment; it is in no message, file or log of ours."""
    if config.token_variable is None:
        return None
    token = os.environ.get(config.token_variable)
    if not token:
        raise ConfigError(
            f"`token_variable` of reward scorer {config.url} names the environment variable "
            f"{config.token_variable}, which is not set: set it, or remove the setting"
        )
    return token


def _counted(failures: Sequence[str]) -> list[str]:
    """Each failure once, with how often it came."""
    return [
        f"{what} ({failures.count(what)} times)" if failures.count(what) > 1 else what
        for what in dict.fromkeys(failures)
    ]


def _begin_of(text: str) -> str:
    shown = " ".join(text.split())
    return repr(shown if len(shown) <= 120 else shown[:120] + "…")
