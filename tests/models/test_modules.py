"""Language and value models on the [B, T] grid, against transformers' own forward pass."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alignment.errors import ModelError
from alignment.experience import batch_from_rows, select_rows
from alignment.models.loading import load_language_model, load_value_model
from alignment.models.modules import LanguageModel, ValueModel, write_normalisation
from alignment.models.passes import logprobs_of, run, scores_of, values_of

PROMPTS = [[1, 7, 9], [1, 30, 31, 32, 33, 34], [1, 2]]
RESPONSES = [[11, 12, 13, 14], [40], [50, 51, 52]]


def reference_logprobs(folder: Path, prompt: list[int], response: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0]
    distribution = torch.log_softmax(logits, dim=-1)
    start = len(prompt) - 1
    return torch.stack([distribution[start + i, token] for i, token in enumerate(response)])


def test_logprobs_are_those_of_each_token_given_all_before_it(tiny_model: Path) -> None:
    batch = batch_from_rows(PROMPTS, RESPONSES)
    grid = logprobs_of(load_language_model(tiny_model), batch, tokens=64)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected = reference_logprobs(tiny_model, prompt, response)
        torch.testing.assert_close(
            grid[row][batch.response_mask[row]].double(), expected, atol=1e-5, rtol=0
        )
    assert (grid[~batch.response_mask] == 0).all()


def test_temperature_divides_the_logits(tiny_model: Path) -> None:
    batch = batch_from_rows(PROMPTS[:1], RESPONSES[:1])
    cold = logprobs_of(load_language_model(tiny_model, temperature=0.5), batch, tokens=64)
    model = load_language_model(tiny_model)
    logits = model.causal_lm(batch.token_ids).logits[0] / 0.5
    expected = torch.log_softmax(logits, dim=-1)[2, 11]
    torch.testing.assert_close(cold[0, 3], expected.detach())


@pytest.mark.parametrize("tokens", [8, 16, 64])
def test_microbatch_size_does_not_change_any_answer(tiny_model: Path, tokens: int) -> None:
    batch = batch_from_rows(PROMPTS, RESPONSES)
    language, value = load_language_model(tiny_model), load_value_model(tiny_model, seed=1)
    for answer, module in ((logprobs_of, language), (values_of, value), (scores_of, value)):
        whole = answer(module, batch, tokens=4096)
        torch.testing.assert_close(answer(module, batch, tokens=tokens), whole, atol=1e-6, rtol=0)


def test_value_before_a_token_does_not_see_the_token(tiny_model: Path) -> None:
    value = load_value_model(tiny_model, seed=1)
    one = batch_from_rows([[1, 7, 9]], [[11, 12]])
    other = batch_from_rows([[1, 7, 9]], [[11, 99]])
    torch.testing.assert_close(
        values_of(value, one, tokens=64)[0, :5], values_of(value, other, tokens=64)[0, :5]
    )
    assert scores_of(value, one, tokens=64) != scores_of(value, other, tokens=64)


def test_score_is_the_head_at_the_last_real_token_whatever_the_padding(tiny_model: Path) -> None:
    value = load_value_model(tiny_model, seed=1)
    batch = batch_from_rows(PROMPTS, RESPONSES)
    alone = torch.cat(
        [scores_of(value, select_rows(batch, [row]), tokens=64) for row in range(len(PROMPTS))]
    )
    torch.testing.assert_close(scores_of(value, batch, tokens=4096), alone, atol=1e-6, rtol=0)


def test_saved_value_model_keeps_layers_head_and_normalisation(
    tiny_model: Path, tmp_path: Path
) -> None:
    value = load_value_model(tiny_model, layers=1, seed=1)
    value.save(tmp_path)
    batch = batch_from_rows(PROMPTS, RESPONSES)
    raw = scores_of(value, batch, tokens=64)
    again = load_value_model(tmp_path)
    assert len(again.backbone.layers) == 1
    torch.testing.assert_close(scores_of(again, batch, tokens=64), raw)

    write_normalisation(tmp_path, mean=0.5, scale=2.0)
    normalised = scores_of(load_value_model(tmp_path), batch, tokens=64)
    torch.testing.assert_close(normalised, (raw - 0.5) * 2.0)


def test_saved_language_model_is_the_same_model(tiny_model: Path, tmp_path: Path) -> None:
    model = load_language_model(tiny_model)
    model.save(tmp_path)
    batch = batch_from_rows(PROMPTS, RESPONSES)
    torch.testing.assert_close(
        logprobs_of(load_language_model(tmp_path), batch, tokens=64),
        logprobs_of(model, batch, tokens=64),
    )


def test_tied_head_is_not_among_the_named_weights(tiny_model: Path) -> None:
    names = [name for name, _ in load_language_model(tiny_model).named_weights()]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_more_layers_than_there_are_is_refused_with_the_numbers(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"`reward_model\.layers` is 5, .* has 2"):
        load_value_model(tiny_model, layers=5)


def test_missing_and_damaged_folders_are_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_language_model(tmp_path / "nowhere")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_language_model(broken)


@pytest.mark.parametrize("load", [load_language_model, load_value_model])
def test_gradient_checkpointing_recomputes_and_changes_no_gradient(
    tiny_model: Path, load: Callable[..., LanguageModel | ValueModel]
) -> None:
    batch = batch_from_rows(PROMPTS, RESPONSES)
    gradients, passes = [], []
    for checkpointing in (False, True):
        module = load(tiny_model, gradient_checkpointing=checkpointing)
        layer = next(m for m in module.modules() if type(m).__name__ == "LlamaDecoderLayer")
        calls: list[int] = []
        layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        outputs = run(module, batch, torch.device("cpu"))
        values = outputs.new_logprobs if hasattr(outputs, "new_logprobs") else outputs.new_values
        values.sum().backward()
        gradients.append(layer.mlp.up_proj.weight.grad)
        passes.append(len(calls))
    assert passes == [1, 2]
    torch.testing.assert_close(gradients[0], gradients[1])
