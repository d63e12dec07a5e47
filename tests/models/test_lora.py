"""Adapters: the base at first, exact gradients, merged without touching what is trained."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignment.config import LoRAConfig, OptimizerConfig
from alignment.errors import ModelError
from alignment.experience import TokenBatch, batch_from_rows
from alignment.models.loading import load_language_model, load_value_model
from alignment.models.lora import FAMILY_TARGETS, add_adapters, base_digest
from alignment.models.modules import LanguageModel, ValueModel
from alignment.models.optimizer import build_optimizer
from alignment.models.passes import accumulate_gradients, logprobs_of, scores_of
from alignment.models.tiny import make_tiny_model
from alignment.training.roles import LogprobOutputs, LossSums

LORA = LoRAConfig(r=4, alpha=8.0)


def batch() -> TokenBatch:
    return batch_from_rows([[1, 7, 9], [1, 30, 31, 32, 33, 34]], [[11, 12, 13, 14], [40]])


def say(module: LanguageModel) -> Tensor:
    return logprobs_of(module, batch(), tokens=64)


def move_adapters(module: LanguageModel | ValueModel, *, size: float = 0.1) -> None:
    """As if trained: every A and B is somewhere else."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=draw)


@pytest.fixture
def adapted(tiny_model: Path) -> LanguageModel:
    return load_language_model(tiny_model, lora=LORA, seed=3)


def test_an_adapted_model_begins_as_its_base_to_the_bit(
    tiny_model: Path, adapted: LanguageModel
) -> None:
    plain = load_language_model(tiny_model)
    assert torch.equal(say(adapted), say(plain))
    value, adapted_value = load_value_model(tiny_model), load_value_model(tiny_model, lora=LORA)
    assert torch.equal(
        scores_of(adapted_value, batch(), tokens=64), scores_of(value, batch(), tokens=64)
    )
    move_adapters(adapted)
    assert float((say(adapted) - say(plain)).abs().max()) > 0.1
    with adapted.adapters.off():
        assert torch.equal(say(adapted), say(plain))
    assert all(p.requires_grad == ("lora" in n) for n, p in adapted.named_parameters())


def test_the_formula_is_the_papers(adapted: LanguageModel) -> None:
    move_adapters(adapted)
    layer = adapted.adapters.layers["model.layers.0.mlp.down_proj"]
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w, a, b = (
        part.weight.detach().double()
        for part in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"])
    )
    expected = x @ w.T + (8.0 / 4) * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x.float()).double(), expected, atol=1e-5, rtol=0)


def test_merged_weights_say_the_same_and_training_weights_stay(
    tiny_model: Path, adapted: LanguageModel, tmp_path: Path
) -> None:
    move_adapters(adapted)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    merged = dict(adapted.named_weights())
    plain = load_language_model(tiny_model)
    expected = {name: weight.shape for name, weight in plain.named_weights()}
    assert {name: weight.shape for name, weight in merged.items()} == expected
    assert all(weight.dtype == torch.float32 for weight in merged.values())
    plain.causal_lm.load_state_dict(merged, strict=False)
    torch.testing.assert_close(say(plain), say(adapted), atol=1e-5, rtol=0)

    adapted.save(tmp_path)
    torch.testing.assert_close(say(load_language_model(tmp_path)), say(adapted), atol=1e-5, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters())


def test_a_saved_value_model_is_merged_and_its_head_was_trained(
    tiny_model: Path, tmp_path: Path
) -> None:
    value = load_value_model(tiny_model, layers=1, seed=1, lora=LORA)
    trained = {name for name, p in value.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} <= trained
    assert len(trained) == 2 + 2 * 7
    move_adapters(value)
    value.save(tmp_path)
    torch.testing.assert_close(
        scores_of(load_value_model(tmp_path), batch(), tokens=64),
        scores_of(value, batch(), tokens=64),
        atol=1e-5,
        rtol=0,
    )


def sum_of_logprobs(outputs: LogprobOutputs, rows: TokenBatch) -> LossSums:
    return LossSums(loss=outputs.new_logprobs.sum(), metrics={})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_by_finite_differences(tiny_model: Path, checkpointing: bool) -> None:
    module = load_language_model(
        tiny_model, lora=LORA, seed=3, gradient_checkpointing=checkpointing
    ).double()
    move_adapters(module)
    backward = _gradient(module)
    moved = 2e-3  # Llama's norms compute in float32, whatever the weights are
    for name in ("lora_A", "lora_B"):
        parameter = next(p for n, p in module.named_parameters() if f"q_proj.{name}" in n)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[1, 1] += sign * moved
                ends.append(
                    float(module(batch().token_ids, batch().response_mask).new_logprobs.sum())
                )
                parameter[1, 1] -= sign * moved
        assert backward[id(parameter)][1, 1] == pytest.approx(
            (ends[0] - ends[1]) / (2 * moved), rel=5e-3
        )
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    optimizer = build_optimizer(module, OptimizerConfig(learning_rate=1.0))
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == trained


def _gradient(module: LanguageModel) -> dict[int, Tensor]:
    accumulate_gradients(
        module, [batch()], sum_of_logprobs, denominator=1.0, backward=lambda x, _: x.backward()
    )
    return {id(p): p.grad for p in module.parameters() if p.grad is not None}


def test_dropout_is_on_in_gradients_and_nowhere_else(tiny_model: Path) -> None:
    module = load_language_model(tiny_model, lora=LoRAConfig(r=4, dropout=0.5), seed=3)
    move_adapters(module)
    assert torch.equal(say(module), say(module))
    torch.manual_seed(0)
    drawn = [torch.cat([g.flatten() for g in _take_gradient(module).values()]) for _ in range(2)]
    assert float((drawn[0] - drawn[1]).abs().max()) > 1e-3
    torch.manual_seed(0)
    again = torch.cat([g.flatten() for g in _take_gradient(module).values()])
    assert torch.equal(again, drawn[0])


def _take_gradient(module: LanguageModel) -> dict[int, Tensor]:
    module.zero_grad(set_to_none=True)
    return _gradient(module)


def test_a_seed_decides_the_adapters_and_disturbs_nothing(tiny_model: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    models = [load_language_model(tiny_model, lora=LORA, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.rand(1), expected)
    drawn = [torch.cat([p.flatten() for p in m.parameters() if p.requires_grad]) for m in models]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("family", sorted(FAMILY_TARGETS))
def test_default_targets_are_all_linear_layers_of_a_familys_blocks(family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads))
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
    assert add_adapters(model, LORA, seed=0).layers.keys() == linear - {head}


def test_targets_that_are_not_there_are_refused_by_name(tiny_model: Path) -> None:
    for wrong in ("query", "lm_head", "embed_tokens"):
        with pytest.raises(ModelError, match=rf"LoRA target '{wrong}' .* accepted .*: down_proj,"):
            load_language_model(tiny_model, lora=LoRAConfig(targets=("q_proj", wrong)))
    chosen = load_language_model(tiny_model, lora=LoRAConfig(targets=("q_proj",)))
    assert {name.rpartition(".")[2] for name in chosen.adapters.layers} == {"q_proj"}
    chosen.causal_lm.config.model_type = "mystery"
    with pytest.raises(ModelError, match="no default LoRA targets for model family 'mystery'"):
        add_adapters(chosen.causal_lm, LORA, seed=0)


def test_the_digest_is_that_of_the_weights_alone(tiny_model: Path, tmp_path: Path) -> None:
    digests = [base_digest(tiny_model)]
    for seed, name in ((0, "same"), (1, "other")):
        make_tiny_model(tmp_path / name, seed=seed)
        (tmp_path / name / "README.md").write_text(name)
        digests.append(base_digest(tmp_path / name))
    assert [a == b for a, b in pairwise(digests)] == [True, False]
