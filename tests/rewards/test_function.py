"""A Python function as a reward: found, checked before anything starts, its answer checked."""

import sys
from pathlib import Path

import pytest
import torch
from reward_texts import pairs

from alignment.errors import ConfigError, RewardError
from alignment.rewards.function import FunctionReward, source_of_function

MODULE = """
import numpy

def length(prompts, responses):
    assert len(prompts) == len(responses)
    return [float(len(r)) for r in responses]

def as_array(prompts, responses):
    return numpy.array([len(r) for r in responses], dtype=numpy.float64)

def one_argument(responses):
    return [0.0]

def short(prompts, responses):
    return [1.0]

def not_a_number(prompts, responses):
    return [0.0] * (len(responses) - 1) + [float("nan")]

def text(prompts, responses):
    return ["good"] * len(responses)

def number(prompts, responses):
    return 1.0

def broken(prompts, responses):
    raise KeyError("tone")

constant = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module lies in the working folder, which an installed command does not search."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_rewards.py"
    path.write_text(MODULE)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    return path


@pytest.mark.parametrize("name", ["length", "as_array"])
def test_scores_come_in_the_order_of_the_responses(name: str) -> None:
    scores = FunctionReward(f"my_rewards:{name}").score_texts(pairs(["a", "abc", "ab"]))
    assert torch.equal(scores, torch.tensor([1.0, 3.0, 2.0]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_rewards:missing", "missing is not there"),
        ("my_rewards:constant", "constant is not a function"),
        ("my_rewards:one_argument", "cannot be called with two lists"),
        ("no_such_module_here:f", "no_such_module_here.py"),
        ("no_such.package:f", "no_such"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_scored(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FunctionReward(name)


def test_a_module_that_cannot_be_imported_is_refused_with_its_own_error(module: Path) -> None:
    module.write_text("import does_not_exist_either\n")
    with pytest.raises(ConfigError, match="does_not_exist_either"):
        FunctionReward("my_rewards:length")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", r"gave 1 scores for 3 responses; accepted: a list of 3 finite numbers"),
        ("not_a_number", r"gave nan for response 2"),
        ("text", r"gave str 'good' for response 0"),
        ("number", r"gave float 1\.0"),
        ("broken", r"raised KeyError: 'tone' \(on 3 responses\)"),
    ],
)
def test_an_answer_that_cannot_be_used_names_function_and_what_came(name: str, said: str) -> None:
    with pytest.raises(RewardError, match=f"reward function my_rewards:{name} {said}"):
        FunctionReward(f"my_rewards:{name}").score_texts(pairs(["a", "b", "c"]))


def test_its_file_is_found_without_running_it(module: Path) -> None:
    module.write_text("raise SystemExit('this must not run')\n")
    assert source_of_function("my_rewards:length") == module
