"""Resume points of PPO with in-process roles: what is refused, and what a crash leaves."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mounts import small_disk
from safetensors.torch import load_file
from toy_roles import ListSink, toy_config, toy_prompts, toy_roles

from alignment.checkpoints import Checkpoints, RolloutJournal
from alignment.config import PPOConfig
from alignment.errors import CheckpointError, DataError, NumericsError
from alignment.exactness import Exactness, exactness_of, instruction_set
from alignment.training.ppo import train_ppo
from alignment.training.roles import PPORoles, StepReport

CONFIG = toy_config(steps=3, checkpoint_every_steps=1)


def train(
    roles: PPORoles, folder: Path, config: PPOConfig = CONFIG, **checkpointing: Any
) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", stage_version=1, **checkpointing)
    train_ppo(
        config,
        roles,
        toy_prompts(11),
        seed=0,
        checkpoints=checkpoints,
        journal=RolloutJournal(folder / "journal"),
        metrics=ListSink(),
    )
    return checkpoints


def weights(roles: PPORoles) -> torch.Tensor:
    assert roles.critic is not None
    modules = (roles.policy.module, roles.critic.module)  # type: ignore[attr-defined]
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


def journal(folder: Path) -> list[torch.Tensor]:
    return [torch.load(p)["token_ids"] for p in sorted((folder / "journal").glob("*.pt"))]


@pytest.fixture(scope="module")
def unbroken(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PPORoles]:
    folder, roles = tmp_path_factory.mktemp("unbroken"), toy_roles(tiny_model, CONFIG)
    train(roles, folder)
    return folder, roles


def assert_same(roles: PPORoles, folder: Path, unbroken: tuple[Path, PPORoles]) -> None:
    assert torch.equal(weights(roles), weights(unbroken[1]))
    drawn, expected = journal(folder), journal(unbroken[0])
    assert len(drawn) == len(expected) == CONFIG.steps
    assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))


def interrupted(model: Path, folder: Path) -> None:
    """Leave the folder as a run that ended after its first step."""
    train(toy_roles(model, CONFIG), folder, CONFIG.model_copy(update={"steps": 1}))


MOMENTS = ("generator.generate", "policy.step", "critic.save_checkpoint", "generator.load_weights")


def train_until_killed(model: Path, folder: Path, moment: str, nth: int) -> None:
    role_name, operation = moment.split(".")
    roles = toy_roles(model, CONFIG)
    role = getattr(roles, role_name)
    work: Callable[..., Any] = getattr(role, operation)
    calls = 0

    def work_and_die(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        done = work(*arguments, **named)
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(role, operation, work_and_die)
    train(roles, folder)


def test_a_driver_killed_at_each_moment_ends_with_the_same_bits(
    tiny_model: Path, tmp_path: Path, unbroken: tuple[Path, PPORoles]
) -> None:
    for moment in MOMENTS:
        process = multiprocessing.get_context("fork").Process(
            target=train_until_killed, args=(tiny_model, tmp_path, moment, 2)
        )
        process.start()
        process.join(timeout=300)
        assert process.exitcode == -signal.SIGKILL, moment
    resumed = toy_roles(tiny_model, CONFIG)
    train(resumed, tmp_path)
    assert_same(resumed, tmp_path, unbroken)


def test_a_change_is_refused_with_both_values_or_goes_on_record(
    tiny_model: Path, tmp_path: Path
) -> None:
    interrupted(tiny_model, tmp_path)
    loop = tmp_path / "checkpoints" / "step-000001" / "loop.json"
    record = json.loads(loop.read_text())
    now = record["exactness"]["policy.threads"]
    record["exactness"] |= {"policy.threads": 7, "policy.torch": "1.0", "policy.new": 3}
    loop.write_text(json.dumps(record))

    roles = toy_roles(tiny_model, CONFIG)
    before = weights(roles)
    with pytest.raises(CheckpointError) as refusal:
        train(roles, tmp_path)
    message = str(refusal.value)
    assert f"policy.threads 7 -> {now}" in message
    assert f"policy.torch 1.0 -> {torch.__version__}" in message
    assert "policy.new 3 -> absent" in message
    assert "`ppo.exact = false`" in message
    assert torch.equal(weights(roles), before), "nothing was loaded"

    said: list[str] = []
    train(roles, tmp_path, exact=False, warn=said.append)
    assert len(said) == 1
    assert "after step 1" in said[0]
    assert f"policy.threads 7 -> {now}" in said[0]
    later = json.loads((tmp_path / "checkpoints" / "step-000003" / "loop.json").read_text())
    assert f"resumed after step 1 with policy.threads 7 -> {now}" in later["changes"]
    resumed = train(toy_roles(tiny_model, CONFIG), tmp_path)
    assert resumed.changes == later["changes"], "the record outlives an exact resume"


def test_facts_hold_what_the_last_bit_depends_on(tiny_model: Path, tmp_path: Path) -> None:
    roles = toy_roles(tiny_model, CONFIG)
    facts = exactness_of({"policy": roles.policy, "reward_model": roles.reward_model}).facts
    assert facts["policy.ranks"] == 1
    assert facts["policy.threads"] == torch.get_num_threads()
    assert facts["driver.torch"] == torch.__version__
    assert facts["policy.kernels"] == torch.backends.cpu.get_cpu_capability()
    assert not any(name.startswith("reward_model") for name in facts), "it cannot describe itself"
    assert Exactness(json.loads(json.dumps(facts))).changes(Exactness(facts)) == []

    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : sse2 fma avx512f avx2\n\nflags : other\n")
    assert instruction_set(cpuinfo) == "avx2 avx512f fma"
    assert instruction_set(tmp_path / "absent") == os.uname().machine


class TwoRanks:
    def describe(self) -> list[dict[str, Any]]:
        return [{"exactness": {"threads": 2, "gpu": "A"}}, {"exactness": {"threads": 2}}]


def test_ranks_that_differ_are_kept_apart() -> None:
    facts = exactness_of({"policy": TwoRanks()}).facts
    assert facts["policy.ranks"] == 2
    assert facts["policy.threads"] == 2
    assert facts["policy.gpu"] == ["A", None]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda c: shutil.rmtree(c / "critic"), "lacks its part `critic`"),
        (lambda c: (c / "loop.json").unlink(), r"has no readable loop\.json"),
        (lambda c: (c / "loop.json").write_text('{"step": 1'), r"has no readable loop\.json"),
        (
            lambda c: (c / "loop.json").write_text('{"stage_version": 1, "step": 1}'),
            r"lacks kl_coefficient, .*exactness",
        ),
        (
            lambda c: (c / "loop.json").write_text('{"stage_version": 3}'),
            "written by version 3 of its stage, this is version 1",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_any_engine_starts(
    break_it: Callable[[Path], Any], said: str, tmp_path: Path, unbroken: tuple[Path, PPORoles]
) -> None:
    shutil.copytree(unbroken[0] / "checkpoints", tmp_path / "checkpoints")
    checkpoints = Checkpoints(tmp_path / "checkpoints", stage_version=1)
    checkpoints.check()
    break_it(tmp_path / "checkpoints" / "step-000003")
    with pytest.raises(CheckpointError, match=said):
        checkpoints.check()
    shutil.rmtree(tmp_path / "checkpoints" / "step-000003")
    checkpoints.check()
    assert checkpoints.newest_step() == 2, "the one before it is whole"


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(
    tiny_model: Path, tmp_path: Path, unbroken: tuple[Path, PPORoles]
) -> None:
    with small_disk(tmp_path / "disk", mebibytes=64) as disk:
        interrupted(tiny_model, disk)
        roles = toy_roles(tiny_model, CONFIG)
        save, filler = roles.critic.save_checkpoint, disk / "filler"  # type: ignore[union-attr]

        def fill_the_disk_and_save(folder: Path) -> None:
            with filler.open("wb") as file:
                free = shutil.disk_usage(disk).free
                os.posix_fallocate(file.fileno(), 0, free - 50_000)
            save(folder)

        roles.critic.save_checkpoint = fill_the_disk_and_save  # type: ignore[union-attr,method-assign]
        expected = r"no room for the checkpoint of step 2: it needs \d.* free; .* after step 1"
        with pytest.raises(CheckpointError, match=expected):
            train(roles, disk)
        left = [path.name for path in (disk / "checkpoints").iterdir()]
        assert left == ["step-000001"], "nothing half-written stays"

        with pytest.raises(CheckpointError, match="no room for the checkpoint of step 2"):
            train(toy_roles(tiny_model, CONFIG), disk)
        filler.unlink()
        resumed = toy_roles(tiny_model, CONFIG)
        train(resumed, disk)
        assert_same(resumed, disk, unbroken)


def test_a_disk_without_room_for_the_journal_says_so(
    tmp_path: Path, unbroken: tuple[Path, PPORoles]
) -> None:
    rollout = RolloutJournal(unbroken[0] / "journal").replay(0)
    assert rollout is not None
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        (disk / "filler").write_bytes(bytes(2**20 - 4096))
        with pytest.raises(CheckpointError, match=r"no room for the journal of step 0: it needs"):
            RolloutJournal(disk).keep(0, rollout)
        assert RolloutJournal(disk).replay(0) is None
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_damaged_journal_is_refused_by_name(
    tmp_path: Path, unbroken: tuple[Path, PPORoles]
) -> None:
    whole = (unbroken[0] / "journal" / "step-000001.pt").read_bytes()
    for damaged in (b"", whole[:100], whole[:-100], b"no archive"):
        (tmp_path / "step-000001.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"step-000001\.pt is damaged"):
            RolloutJournal(tmp_path).replay(1)


def test_the_average_is_exported_and_goes_on_to_the_bit(
    tiny_model: Path, tmp_path: Path, unbroken: tuple[Path, PPORoles]
) -> None:
    """It changes nothing that is trained, and a resumed run exports what an unbroken one does."""
    config = toy_config(steps=3, checkpoint_every_steps=1, ema_decay=0.9)
    whole, resumed = toy_roles(tiny_model, config), toy_roles(tiny_model, config)
    expected, step = whole.policy.weights(), whole.policy.step

    def step_and_average() -> StepReport:
        report = step()
        for name, weight in whole.policy.weights().items():
            expected[name].mul_(0.9).add_(weight, alpha=0.1)
        return report

    whole.policy.step = step_and_average  # type: ignore[method-assign]
    train(whole, tmp_path / "whole", config)
    assert torch.equal(weights(whole), weights(unbroken[1]))
    train(toy_roles(tiny_model, config), tmp_path / "cut", config.model_copy(update={"steps": 1}))
    train(resumed, tmp_path / "cut", config)
    exported = []
    for name, roles in (("whole", whole), ("resumed", resumed), ("plain", unbroken[1])):
        roles.policy.export(tmp_path / name / "model")
        exported.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    average, again, plain = exported
    for name in average:
        assert torch.equal(average[name], again[name]), name
        torch.testing.assert_close(average[name], expected[name], atol=1e-6, rtol=0)
    assert any(float((average[name] - plain[name]).abs().max()) > 1e-3 for name in average)
    assert torch.equal(weights(whole), weights(unbroken[1])), "the policy keeps its own weights"


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (torch.zeros(7), r"reward-model scores: got \(7,\) values for 8 sequences at step 1"),
        (torch.tensor(0.0), r"reward-model scores: got \(\) values for 8 sequences"),
        (torch.full((8,), torch.inf), "reward-model score of sequence 0 at step 1 is not finite"),
    ],
)
def test_bad_scores_stop_in_the_step_and_the_last_good_state_goes_on(
    scores: torch.Tensor,
    said: str,
    tiny_model: Path,
    tmp_path: Path,
    unbroken: tuple[Path, PPORoles],
) -> None:
    interrupted(tiny_model, tmp_path)
    roles = toy_roles(tiny_model, CONFIG)
    good = roles.reward_model.scores
    roles.reward_model.scores = lambda batch: scores  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match=said):
        train(roles, tmp_path)
    roles.reward_model.scores = good  # type: ignore[method-assign]
    train(roles, tmp_path)
    assert_same(roles, tmp_path, unbroken)


@pytest.mark.parametrize("count", [0, 7])
def test_fewer_prompts_than_a_step_takes_are_refused(
    count: int, tiny_model: Path, tmp_path: Path
) -> None:
    said = rf"there are {count} prompts .* `ppo\.prompts_per_step` 8 different ones"
    with pytest.raises(DataError, match=said):
        train_ppo(
            CONFIG,
            toy_roles(tiny_model, CONFIG),
            toy_prompts(count),
            seed=0,
            checkpoints=Checkpoints(tmp_path, stage_version=1),
            journal=RolloutJournal(tmp_path),
            metrics=ListSink(),
        )


def test_what_is_in_the_journal_is_not_sampled_again(
    tiny_model: Path, tmp_path: Path, unbroken: tuple[Path, PPORoles]
) -> None:
    shutil.copytree(unbroken[0] / "journal", tmp_path / "journal")
    roles = toy_roles(tiny_model, CONFIG)

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("sampled again")

    roles.generator.generate = refuse  # type: ignore[method-assign]
    train(roles, tmp_path)
    assert_same(roles, tmp_path, unbroken)
