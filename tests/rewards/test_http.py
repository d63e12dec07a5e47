"""A scorer behind HTTP, against a real server on the loopback that behaves badly in every way."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from reward_texts import pairs

from alignment.config import HttpConfig
from alignment.errors import ConfigError, RewardError
from alignment.rewards.http import HttpReward

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


class Scorer:
    """A server that gives its answers in turn, the last one for ever, and remembers requests."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        scorer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                scorer.requests.append(body)
                scorer.headers.append(dict(self.headers))
                answers = scorer.answers
                (answers.pop(0) if len(answers) > 1 else answers[0])(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/score"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def reward(self, **settings: Any) -> HttpReward:
        config = HttpConfig(url=self.url, **{"backoff_s": 0.01, "timeout_s": 5.0} | settings)
        return HttpReward(config)


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scorer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    scorer = Scorer()
    yield scorer
    scorer.server.shutdown()
    scorer.server.server_close()


def send(status: int, body: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body.encode())))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return answer


def lengths(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    scores = [len(response) for response in request["responses"]]
    send(200, json.dumps({"scores": scores}))(handler, request)


def too_late(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    time.sleep(0.6)
    lengths(handler, request)


def dies_midway(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"scores": [1.0,')
    handler.wfile.flush()
    handler.close_connection = True


def test_texts_go_out_and_scores_come_back_in_order_request_by_request(scorer: Scorer) -> None:
    scorer.answers = [lengths]
    scores = scorer.reward(responses_per_request=2).score_texts(pairs(["a", "abc", "你好"]))
    assert torch.equal(scores, torch.tensor([1.0, 3.0, 2.0]))
    assert scorer.requests == [
        {"prompts": ["Why?", "Why?"], "responses": ["a", "abc"]},
        {"prompts": ["Why?"], "responses": ["你好"]},
    ]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (too_late, r"no answer within 0\.3 s \(3 times\)"),
        (dies_midway, r"RemoteProtocolError: .* \(3 times\)"),
        (send(200, '{"scores": [1.0]}'), r"gave 1 scores for 2 responses \(3 times\)"),
        (send(200, '{"scores": [1.0, NaN]}'), r"gave nan for response 1 \(3 times\)"),
        (send(200, '{"scores": [1.0, null]}'), r"NoneType None for response 1"),
        (send(200, '{"rewards": [1.0, 2.0]}'), r"JSON without `scores`"),
        (send(200, "<html>"), r"Expecting value"),
        (send(503, "warming up"), r"status 503 'warming up' \(3 times\)"),
    ],
)
def test_after_bounded_attempts_the_error_names_url_what_came_and_what_is_accepted(
    scorer: Scorer, bad: Answer, said: str
) -> None:
    scorer.answers = [bad]
    timeout_s = 0.3 if bad is too_late else 5.0
    with pytest.raises(RewardError, match=said) as caught:
        scorer.reward(attempts=3, timeout_s=timeout_s).score_texts(pairs(["a", "b"]))
    assert scorer.url in str(caught.value)
    assert "status 200 with JSON" in str(caught.value)
    assert len(scorer.requests) == 3


def test_a_scorer_that_recovers_is_asked_again_after_growing_pauses(scorer: Scorer) -> None:
    scorer.answers = [send(503, "busy"), dies_midway, send(200, '{"scores": []}'), lengths]
    pauses: list[float] = []
    config = HttpConfig(url=scorer.url, backoff_s=0.5)
    scores = HttpReward(config, sleep=pauses.append).score_texts(pairs(["a", "bc"]))
    assert scores.tolist() == [1.0, 2.0]
    assert pauses == [0.5, 1.0, 2.0]


def test_a_request_that_is_refused_is_not_repeated(scorer: Scorer) -> None:
    scorer.answers = [send(401, "who are you?")]
    with pytest.raises(RewardError, match=r"in 1 attempts: status 401 'who are you\?'"):
        scorer.reward().score_texts(pairs(["a"]))


def test_a_failing_later_request_leaves_nothing_half_done(scorer: Scorer) -> None:
    scorer.answers = [lengths, send(500, "")]
    with pytest.raises(RewardError, match="status 500"):
        scorer.reward(responses_per_request=1, attempts=1).score_texts(pairs(["a", "b"]))


def test_nobody_listening_is_named(scorer: Scorer) -> None:
    reward = scorer.reward(attempts=2)
    scorer.server.shutdown()
    scorer.server.server_close()
    with pytest.raises(RewardError, match="ConnectError"):
        reward.score_texts(pairs(["a"]))


def test_the_token_comes_from_the_environment_and_is_never_shown(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def echo(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        send(500, f"bad {handler.headers['Authorization']}")(handler, request)

    scorer.answers = [echo]
    monkeypatch.setenv("SCORER_TOKEN", "s3cret")
    reward = scorer.reward(token_variable="SCORER_TOKEN", attempts=1)
    with pytest.raises(RewardError) as caught:
        reward.score_texts(pairs(["a"]))
    assert scorer.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value)

    monkeypatch.delenv("SCORER_TOKEN")
    with pytest.raises(ConfigError, match="SCORER_TOKEN, which is not set"):
        scorer.reward(token_variable="SCORER_TOKEN")


@pytest.mark.parametrize(
    "url", ["http://me:pw@host/x", "http://host/x?key=1", "host/x", "ftp://host/x"]
)
def test_an_address_that_holds_a_secret_or_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        HttpConfig(url=url)
