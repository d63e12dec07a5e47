"""Roles on devices of their own work at the same time, others in turn; the numbers are the same."""

import socket
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from toy_roles import CountingScorer, ListSink, toy_config, toy_prompts, toy_roles

from alignment.checkpoints import Checkpoints, RolloutJournal
from alignment.config import PPOConfig
from alignment.errors import NumericsError
from alignment.experience import TokenBatch
from alignment.rewards.combined import CombinedReward, TextScorer, TextSource, WeightedSource
from alignment.rewards.models import ModelSource
from alignment.rewards.texts import BatchTexts
from alignment.training import side_by_side as module
from alignment.training.ppo import train_ppo
from alignment.training.roles import PPORoles, ScoreModel
from alignment.training.side_by_side import lanes_of, side_by_side


@dataclass(frozen=True)
class On:
    """A role that only says where it is."""

    devices: frozenset[str] | None


def on(*devices: str) -> On:
    return On(frozenset(devices))


@pytest.mark.parametrize(
    ("devices", "lanes"),
    [
        ([{"a"}, {"b"}, {"c"}], [[0], [1], [2]]),
        ([{"a"}, {"b"}, {"a"}], [[0, 2], [1]]),
        ([{"a"}, {"b"}, {"c"}, {"a", "b"}], [[0, 1, 3], [2]]),
        ([{"a", "b"}, {"c"}, {"b", "d"}, {"d"}], [[0, 2, 3], [1]]),
        ([set(), set()], [[0], [1]]),
        ([{"a"}, None, {"b"}], [[0, 1, 2]]),
        ([None], [[0]]),
        ([{"a"}], [[0]]),
    ],
)
def test_tasks_that_share_a_device_share_a_lane(
    devices: list[set[str] | None], lanes: list[list[int]]
) -> None:
    known = [None if own is None else frozenset(own) for own in devices]
    assert lanes_of(known) == lanes


def test_separate_devices_work_at_the_same_time_and_answers_keep_their_order() -> None:
    meeting = threading.Barrier(3)

    def meet(answer: int) -> int:
        meeting.wait(timeout=10)  # nobody passes unless all three are here
        return answer

    answers = side_by_side([(on(str(i)), lambda i=i: meet(i)) for i in range(3)])
    assert answers == [0, 1, 2]


def test_shared_devices_follow_one_another() -> None:
    seen: list[str] = []

    def noted(name: str) -> Callable[[], str]:
        def work() -> str:
            seen.append(f"{name} begins")
            time.sleep(0.02)
            seen.append(f"{name} ends")
            return name

        return work

    tasks = [(on("gpu"), noted("one")), (on("other"), list), (on("gpu"), noted("two"))]
    assert side_by_side(tasks) == ["one", [], "two"]
    assert seen == ["one begins", "one ends", "two begins", "two ends"]


class Ending:
    """A role that can be ended."""

    def __init__(self, device: str) -> None:
        self.devices = frozenset([device])
        self.ended = threading.Event()
        self.reason = ""

    def end(self, reason: str) -> None:
        self.reason = reason
        self.ended.set()


def test_what_shares_a_device_with_the_first_task_runs_in_the_calling_thread() -> None:
    """A reward function of a user may need the main thread, as `signal.alarm` does."""
    tasks = [(on("a"), threading.get_ident), (on("b"), threading.get_ident)]
    mine, other, mine_too = side_by_side([*tasks, (on("a"), threading.get_ident)])
    assert mine == mine_too == threading.get_ident() != other


def test_a_failure_stops_what_has_not_begun_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 5.0)
    begun, done, halt = threading.Event(), list[str](), threading.Event()

    def many_calls() -> None:
        begun.set()
        halt.wait(timeout=10)
        done.append("the call under way")

    def fail() -> None:
        begun.wait(timeout=10)
        raise NumericsError("no number")

    tasks = [
        (on("a"), many_calls),
        (on("b"), fail),
        (on("b"), lambda: done.append("behind the failed one")),
        (on("a"), lambda: done.append("behind the other")),
    ]
    with pytest.raises(NumericsError, match="no number"):
        side_by_side(tasks, halt=halt)
    assert done == ["the call under way"]


def test_a_second_failure_is_noted_on_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 5.0)
    halt = threading.Event()

    def fail() -> None:
        raise NumericsError("no number")

    def fail_then() -> None:
        halt.wait(timeout=10)
        raise ValueError("died as well")

    with pytest.raises(NumericsError, match="no number") as caught:
        side_by_side([(on("a"), fail), (on("b"), fail_then)], halt=halt)
    [note] = caught.value.__notes__
    assert "ValueError('died as well')" in note


def test_a_role_that_does_not_return_after_a_failure_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or its call, unknown to anyone, could change it after it was set back to a checkpoint."""
    monkeypatch.setattr(module, "GRACE_S", 0.2)
    begun, stuck, prompt = threading.Event(), Ending("b"), Ending("c")
    left: list[str] = []

    def fail() -> None:
        begun.wait(timeout=10)
        raise NumericsError("no number")

    def hang() -> None:
        begun.set()
        stuck.ended.wait(timeout=10)
        left.append("stuck")

    with pytest.raises(NumericsError, match="no number"):
        side_by_side([(on("a"), fail), (stuck, hang), (prompt, list)])
    assert "did not finish its call in time" in stuck.reason
    assert left == ["stuck"]
    assert not prompt.ended.is_set()


@pytest.mark.parametrize("failing", ["policy", "critic"])
def test_after_a_failed_update_the_other_model_makes_no_further_one(
    tiny_model: Path, tmp_path: Path, failing: str
) -> None:
    config = toy_config(steps=1, epochs=8)
    roles = apart(toy_roles(tiny_model, config))
    [other] = {"policy", "critic"} - {failing}
    failed, later = threading.Event(), list[int]()
    other_step = getattr(roles, other)._role.step

    def fail() -> Any:
        failed.set()
        raise NumericsError("no number")

    def counted() -> Any:
        if failed.wait(timeout=10):
            later.append(1)
        return other_step()

    getattr(roles, failing)._role.step = fail
    getattr(roles, other)._role.step = counted
    with pytest.raises(NumericsError, match="no number"):
        trained(config, roles, tmp_path)
    assert len(later) <= 1


def test_what_the_caller_set_for_its_context_holds_in_every_task() -> None:
    name: ContextVar[str] = ContextVar("name", default="nobody")
    name.set("run 7")
    assert side_by_side([(on("a"), name.get), (on("b"), name.get)]) == ["run 7", "run 7"]


def test_a_reward_computes_where_its_sources_do() -> None:
    def devices(*sources: Any) -> frozenset[str] | None:
        weighted = [WeightedSource(name=str(i), source=source) for i, source in enumerate(sources)]
        return CombinedReward(weighted, texts=cast(BatchTexts, None)).devices

    model = ModelSource(role=cast(ScoreModel, on("far GPU 0")))
    function = TextSource(scorer=cast(TextScorer, None))
    assert devices(model) == {"far GPU 0"}
    assert devices(model, function) == {"far GPU 0", f"{socket.gethostname()} CPU"}
    assert devices(function) == {f"{socket.gethostname()} CPU"}
    assert devices(model, ModelSource(role=CountingScorer())) is None


class Apart:
    """A role with a device of its own, that counts how many such roles are busy at once."""

    busy = 0
    most = 0
    lock = threading.Lock()

    def __init__(self, role: Any, name: str) -> None:
        self._role = role
        self.devices = frozenset([name])

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._role, name)
        if name not in ("logprobs", "scores", "values", "forward_backward"):
            return value

        def counted(*arguments: Any, **named: Any) -> Any:
            with Apart.lock:
                Apart.busy += 1
                Apart.most = max(Apart.most, Apart.busy)
            try:
                time.sleep(0.01)
                return value(*arguments, **named)
            finally:
                with Apart.lock:
                    Apart.busy -= 1

        return counted


def apart(roles: PPORoles) -> PPORoles:
    Apart.busy = Apart.most = 0
    names = ("policy", "critic", "reference", "reward_model")
    return replace(roles, **{name: Apart(getattr(roles, name), name) for name in names})


def trained(config: PPOConfig, roles: PPORoles, folder: Path) -> tuple[Any, list[dict[str, float]]]:
    sink = ListSink()
    train_ppo(
        config,
        roles,
        toy_prompts(),
        seed=0,
        checkpoints=Checkpoints(folder / "checkpoints", stage_version=1),
        journal=RolloutJournal(folder / "journal"),
        metrics=sink,
    )
    return roles.policy.weights(), sink.records


def test_a_run_side_by_side_is_the_run_in_turn_to_the_bit(tiny_model: Path, tmp_path: Path) -> None:
    config = toy_config(epochs=2)
    plain, in_turn = trained(config, toy_roles(tiny_model, config), tmp_path / "turn")
    weights, records = trained(config, apart(toy_roles(tiny_model, config)), tmp_path / "apart")
    assert Apart.most >= 2
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    untimed = [
        [{k: v for k, v in r.items() if "time/" not in k and "per_s" not in k} for r in records]
        for records in (in_turn, records)
    ]
    assert untimed[0] == untimed[1]
    assert "ppo/value_loss" in untimed[0][0]


def test_the_critic_stops_where_the_policy_moved_too_far(tiny_model: Path, tmp_path: Path) -> None:
    """First minibatch: no movement yet. Second: beyond the limit, so neither makes a third."""
    config = toy_config(steps=1, epochs=4, update_kl_limit_nats=1e-9)
    roles = apart(toy_roles(tiny_model, config))
    updates = {"policy": 0, "critic": 0}
    for name in updates:
        role = getattr(roles, name)._role

        def step(name: str = name, step: Callable[[], Any] = role.step) -> Any:
            updates[name] += 1
            return step()

        role.step = step
    _, [record] = trained(config, roles, tmp_path)
    assert updates == {"policy": 2, "critic": 2}
    assert record["ppo/updates"] == 2


def test_a_method_without_critic_scores_side_by_side_too(tiny_model: Path, tmp_path: Path) -> None:
    config = toy_config(steps=1, method="rloo", responses_per_prompt=2, critic_optimizer=None)
    roles = toy_roles(tiny_model, config)
    names = ("policy", "reference", "reward_model")
    Apart.most = 0
    roles = replace(roles, **{name: Apart(getattr(roles, name), name) for name in names})
    trained(config, roles, tmp_path)
    assert Apart.most >= 2


class FailingScorer(CountingScorer):
    def scores(self, batch: TokenBatch) -> torch.Tensor:
        return super().scores(batch) * float("nan")


def test_a_score_that_is_no_number_is_refused_as_ever(tiny_model: Path, tmp_path: Path) -> None:
    config = toy_config(steps=1)
    roles = apart(replace(toy_roles(tiny_model, config), reward_model=FailingScorer()))
    with pytest.raises(NumericsError, match="reward-model score"):
        trained(config, roles, tmp_path)
