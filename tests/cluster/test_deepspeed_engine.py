"""What wraps a module for DeepSpeed, without DeepSpeed."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from role_factory import random_batch, trainable_spec

from alignment.cluster.deepspeed_engine import (
    ClipAndReport,
    EngineModule,
    TupleOutputs,
    engine_config,
    gathered_parameters,
    other_arithmetic,
)
from alignment.models.loading import load_language_model, load_value_model
from alignment.models.passes import logprobs_of, values_of


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_wrapped_module_computes_what_the_bare_one_does(
    tiny_model: Path, precision: Literal["float32", "bfloat16"]
) -> None:
    batch = random_batch(4, seed=1)
    policy, critic = load_language_model(tiny_model), load_value_model(tiny_model)
    wrapped = EngineModule(TupleOutputs(policy, precision), policy)
    expected = logprobs_of(policy, batch, tokens=64, precision=precision)
    assert torch.equal(logprobs_of(wrapped, batch, tokens=64), expected)
    wrapped = EngineModule(TupleOutputs(critic, precision), critic)
    expected = values_of(critic, batch, tokens=64, precision=precision)
    assert torch.equal(values_of(wrapped, batch, tokens=64), expected)


def test_half_precision_is_inside_where_deepspeed_cannot_switch_it_off(tiny_model: Path) -> None:
    batch = random_batch(4, seed=1)
    policy = load_language_model(tiny_model)
    inside = TupleOutputs(policy, "bfloat16")
    with torch.autocast("cpu", enabled=False):
        half, _ = inside(batch.token_ids, batch.response_mask)
    single, _ = TupleOutputs(policy, "float32")(batch.token_ids, batch.response_mask)
    assert 1e-4 < float((half - single).abs().max()) < 0.5


def test_other_arithmetic_lasts_only_as_long_as_asked(tiny_model: Path) -> None:
    policy = load_language_model(tiny_model, temperature=0.7)

    class Engine:
        module = TupleOutputs(policy, "bfloat16")

    engine: Any = Engine()
    with other_arithmetic(engine, policy, precision="float32", temperature=1.0):
        assert (engine.module.precision, policy.temperature) == ("float32", 1.0)
    assert (engine.module.precision, policy.temperature) == ("bfloat16", 0.7)


def test_clipping_reports_the_norm_before_and_leaves_weights_alone_on_nan() -> None:
    module = torch.nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    clip = ClipAndReport(module, max_norm=1.0)
    optimizer.register_step_pre_hook(clip)

    module.weight.grad = torch.tensor([[3.0, 4.0, 0.0]])
    optimizer.step()
    assert clip.norm == pytest.approx(5.0)
    torch.testing.assert_close(module.weight.data, torch.tensor([[0.4, 0.2, 1.0]]))

    for bad in (float("nan"), float("inf")):
        before = module.weight.detach().clone()
        module.weight.grad = torch.tensor([[bad, 0.0, 1.0]])
        optimizer.step()
        assert clip.norm != pytest.approx(5.0)
        assert torch.equal(module.weight.data, before)


def test_settings_leave_nothing_to_deepspeed(tiny_model: Path) -> None:
    for stage in (0, 1, 2, 3):
        spec = trainable_spec("policy", tiny_model, zero_stage=stage)
        config = engine_config(spec)
        assert "auto" not in str(config)
        assert config["gradient_accumulation_steps"] == 1
        assert config["managed_gradient_accumulation"] is False
        assert config["zero_optimization"]["stage"] == stage
        # Stage 0 clips in ClipAndReport: twice would be once too often.
        assert config["gradient_clipping"] == (0.0 if stage == 0 else 100.0)


def test_gathering_whole_parameters_needs_no_deepspeed() -> None:
    with gathered_parameters([torch.ones(2)]):
        pass
