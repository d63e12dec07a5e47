"""PPO against a Python function, in process: rewards, monitors and alarms through the loop."""

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from toy_roles import LETTER_A, ListSink, toy_config, toy_roles

from alignment.checkpoints import Checkpoints, RolloutJournal
from alignment.config import HeldoutConfig, HttpConfig, MonitorsConfig, OptimizerConfig
from alignment.data.chat import encode_prompt
from alignment.errors import RewardError
from alignment.experience import Sampling
from alignment.metrics import check_names
from alignment.models.loading import load_tokenizer
from alignment.records import Message, Prompt
from alignment.rewards.alarms import Alarm
from alignment.rewards.combined import CombinedReward, TextSource, WeightedSource
from alignment.rewards.function import FunctionReward
from alignment.rewards.http import HttpReward
from alignment.rewards.texts import BatchTexts
from alignment.rewards.watch import HeldoutEvaluation, RewardWatch
from alignment.training.ppo import train_ppo
from alignment.training.roles import PPORoles

FUNCTIONS = '''
def letters(prompts, responses):
    """The more of its characters are ASCII letters, the better."""
    return [sum(c.isascii() and c.isalpha() for c in r) / max(len(r), 1) for r in responses]

def brevity(prompts, responses):
    return [-float(len(r)) for r in responses]

def only_one(prompts, responses):
    return [1.0]
'''
FAST = OptimizerConfig(learning_rate=1e-2, final_learning_rate_fraction=1.0)
SETTINGS = {
    "kl_budget_nats": 100.0,
    "responses_per_prompt": 2,
    "sequences_per_minibatch": 8,
    "optimizer": FAST,
    "critic_optimizer": FAST,
}


class Setup:
    """Everything a run needs, with `letters` and a weight on `brevity` as the reward."""

    def __init__(self, model_folder: Path, brevity: float, **overrides: object) -> None:
        self.config = toy_config(**SETTINGS | overrides)
        tokenizer = load_tokenizer(model_folder)
        prompts = [
            Prompt(id=f"p{i}", messages=(Message(role="user", content=chr(LETTER_A + i)),))
            for i in range(8)
        ]
        self.pairs = [(encode_prompt(tokenizer, p, max_prompt_tokens=99), p) for p in prompts]
        self.prompts = [encoded for encoded, _ in self.pairs]
        sources = [
            WeightedSource(name="letters", source=TextSource(FunctionReward("toy_rewards:letters")))
        ]
        if brevity:
            source = TextSource(FunctionReward("toy_rewards:brevity"))
            sources.append(WeightedSource(name="brevity", source=source, weight=brevity))
        self.texts = BatchTexts(tokenizer, self.pairs)
        self.reward = CombinedReward(sources, self.texts)
        roles = toy_roles(model_folder, self.config)
        self.roles: PPORoles = replace(roles, reward_model=self.reward)
        self.sink = ListSink()
        self.alarms: list[Alarm] = []

    def run(
        self, folder: Path, monitors: MonitorsConfig, history: Sequence[dict[str, float]] = ()
    ) -> list[dict[str, float]]:
        judge = FunctionReward("toy_rewards:brevity")
        heldout = HeldoutEvaluation(
            generator=self.roles.generator,
            prompts=self.prompts[:4],
            sampling=Sampling(max_response_tokens=4),
            judges={
                "ppo/heldout_judge_mean": lambda batch: judge.score_texts(self.texts.read(batch))
            },
            seed=0,
            every_steps=2,
        )
        watch = RewardWatch(
            self.sink,
            self.reward,
            monitors,
            history=history,
            heldout=heldout,
            on_alarm=self.alarms.append,
        )
        train_ppo(
            self.config,
            self.roles,
            self.prompts,
            seed=0,
            checkpoints=Checkpoints(folder / "checkpoints", stage_version=1),
            journal=RolloutJournal(folder / "journal"),
            metrics=watch,
        )
        return self.sink.records


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_rewards.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_rewards", raising=False)


def test_policy_learns_what_the_function_pays(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model, 0.0, steps=7)
    never = MonitorsConfig(
        length_factor=1e9, repetition_rise=1e9, judge_fall=1e9, heldout=HeldoutConfig()
    )
    records = setup.run(tmp_path, never)
    scores = [record["ppo/score_mean"] for record in records]
    assert sum(scores[-2:]) / 2 > sum(scores[:2]) / 2 + 0.1
    for record in records:
        check_names(set(record) - {"step"})
        assert record["ppo/score_of_letters"] == pytest.approx(record["ppo/score_mean"])
        assert ("ppo/heldout_judge_mean" in record) is (record["step"] % 2 == 0)
    assert all(r["ppo/alarm_length"] == 0.0 for r in records[3:])
    assert setup.alarms == []


def test_sources_are_weighed_and_recorded_one_by_one(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model, 0.5, steps=1)
    (record,) = setup.run(tmp_path, MonitorsConfig())
    parts = record["ppo/score_of_letters"] + 0.5 * record["ppo/score_of_brevity"]
    assert record["ppo/score_mean"] == pytest.approx(parts, rel=1e-5)
    assert record["ppo/score_of_brevity"] < -1
    last = setup.reward.last
    assert last is not None
    by_hand = [
        sum(c.isascii() and c.isalpha() for c in t.response) / max(len(t.response), 1)
        - 0.5 * len(t.response)
        for t in last.texts
    ]
    torch.testing.assert_close(last.totals, torch.tensor(by_hand))


def test_an_alarm_comes_with_the_best_paid_texts_that_show_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Earlier steps, as of a resumed run, had long and varied responses: now they are short."""
    history = [
        {"step": 1, "ppo/response_tokens_mean": 60.0, "ppo/repetition_mean": 0.0},
        {"step": 2, "ppo/response_tokens_mean": 60.0, "ppo/repetition_mean": 0.0},
    ]
    setup = Setup(tiny_model, 0.0, steps=2)
    monitors = MonitorsConfig(baseline_steps=2, texts_per_alarm=3)
    first, second = setup.run(tmp_path, monitors, history)
    assert first["ppo/length_reading"] == pytest.approx(first["ppo/response_tokens_mean"] / 60)
    assert first["ppo/alarm_length"] == second["ppo/alarm_length"] == 1.0
    assert first["ppo/alarm_repetition"] == 0.0
    alarms = [alarm for alarm in setup.alarms if alarm.monitor == "length"]
    assert [(alarm.step, alarm.is_new) for alarm in alarms] == [(1, True), (2, False)]
    assert "alarm at step 1: responses changed their length" in alarms[0].message
    texts = alarms[1].texts
    last = setup.reward.last
    assert last is not None
    shorter_half = sorted(range(16), key=lambda row: len(last.tokens[row]))[:8]
    best = sorted((float(last.totals[row]) for row in shorter_half), reverse=True)[:3]
    assert [text["score"] for text in texts] == pytest.approx(best)
    assert {"prompt", "response", "by_source", "tokens", "repetition"} <= set(texts[0])


def test_a_failing_function_stops_the_step_and_the_weights_stay(
    tiny_model: Path, tmp_path: Path
) -> None:
    setup = Setup(tiny_model, 0.0, steps=2)
    before = [w.clone() for w in setup.roles.policy.weights().values()]
    source = TextSource(FunctionReward("toy_rewards:only_one"))
    setup.reward.sources = (WeightedSource(name="letters", source=source),)
    with pytest.raises(RewardError, match="1 scores for 16 responses"):
        setup.run(tmp_path, MonitorsConfig())
    after = setup.roles.policy.weights().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert setup.sink.records == []


class UnwellScorer(BaseHTTPRequestHandler):
    """Answers `len(response)`; from the second request on it is late, or one score short."""

    requests = 0
    trouble = ""

    def do_POST(self) -> None:
        kind = type(self)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = [float(len(response)) for response in body["responses"]]
        kind.requests += 1
        if kind.requests > 1 and kind.trouble == "late":
            time.sleep(0.6)
        if kind.requests > 1 and kind.trouble == "short":
            scores.pop()
        answer = json.dumps({"scores": scores}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.mark.parametrize(
    ("trouble", "said"),
    [("late", r"no answer within 0\.3 s"), ("short", r"gave 15 scores for 16 responses")],
)
def test_a_scorer_that_fails_in_a_step_leaves_the_last_good_state_to_go_on_from(
    trouble: str, said: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), UnwellScorer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/score"

    def setup() -> Setup:
        made = Setup(tiny_model, 0.0, steps=2, checkpoint_every_steps=1)
        reward = HttpReward(HttpConfig(url=url, timeout_s=0.3, attempts=2, backoff_s=0.01))
        made.reward.sources = (WeightedSource(name="scorer", source=TextSource(reward)),)
        UnwellScorer.requests, UnwellScorer.trouble = 0, ""
        return made

    try:
        unbroken = setup()
        unbroken.run(tmp_path / "unbroken", MonitorsConfig())
        broken = setup()
        UnwellScorer.trouble = trouble
        with pytest.raises(RewardError, match=said):
            broken.run(tmp_path / "broken", MonitorsConfig())
        assert [record["step"] for record in broken.sink.records] == [1]
        resumed = setup()
        records = resumed.run(tmp_path / "broken", MonitorsConfig())
    finally:
        server.shutdown()
        server.server_close()
    assert [record["step"] for record in records] == [2]
    for name, weight in unbroken.roles.policy.weights().items():
        assert torch.equal(resumed.roles.policy.weights()[name], weight), name
