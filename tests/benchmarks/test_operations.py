"""What the speed benches count, and what they make of their rounds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alignment.planning.model_shapes import ModelShape
from benchmarks.operations import (
    Sequences,
    body_operations,
    language_pass,
    ppo_phase_operations,
    predicted_ratio,
    spread,
    trl_step_operations,
    vocabulary_operations,
    weighted_rate,
)
from benchmarks.ppo.report import goal_of, report

SHAPE = ModelShape(
    name="toy",
    layers=2,
    hidden=8,
    intermediate=16,
    attention_heads=2,
    kv_heads=1,
    head_dim=4,
    vocabulary=32,
    tied=True,
)
LENGTHS = Sequences(prompts=(3, 5), responses=(2, 4))


def counted_by_torch(lengths: Sequences) -> float:
    """The forward pass of a real model of that shape; attention counted whole, not causal."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=2,
            hidden_size=8,
            intermediate_size=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            vocab_size=32,
            attn_implementation="eager",
        )
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for prompt, response in zip(lengths.prompts, lengths.responses, strict=True):
            model.model(input_ids=torch.ones(1, prompt + response, dtype=torch.long))
    return float(counter.get_total_flops())


def test_a_pass_counts_what_torch_counts_but_half_of_attention() -> None:
    whole = sum(4.0 * 2 * 8 * (p + r) ** 2 for p, r in zip(*_pairs(LENGTHS), strict=True))
    causal = sum(
        4.0 * 2 * 8 * (p + r) * (p + r + 1) / 2 for p, r in zip(*_pairs(LENGTHS), strict=True)
    )
    expected = counted_by_torch(LENGTHS) - whole + causal
    assert body_operations(SHAPE, LENGTHS) == pytest.approx(expected)
    head = vocabulary_operations(SHAPE, 6)
    assert head == 2 * 8 * 32 * 6
    assert language_pass(SHAPE, LENGTHS) == pytest.approx(expected + head)


def _pairs(lengths: Sequences) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return lengths.prompts, lengths.responses


def test_padding_makes_every_row_as_long_as_the_longest() -> None:
    assert LENGTHS.padded() == Sequences((5, 5), (4, 4))
    assert LENGTHS.padded(response_tokens=7) == Sequences((5, 5), (7, 7))
    assert LENGTHS.tokens == 14


def test_updates_grow_with_epochs_and_the_prediction_with_padding() -> None:
    one, four = (ppo_phase_operations(SHAPE, LENGTHS, epochs=n) for n in (1, 4))
    assert four["update_policy"] == 4 * one["update_policy"] == 12 * one["old_logprobs"]
    assert four["generate"] == one["generate"]
    equal = Sequences((5, 5), (4, 4))
    assert predicted_ratio(SHAPE, LENGTHS, epochs=1) > predicted_ratio(SHAPE, equal, epochs=1)
    padded = trl_step_operations(SHAPE, equal, epochs=1)
    ours = sum(ppo_phase_operations(SHAPE, equal, epochs=1).values())
    assert predicted_ratio(SHAPE, equal, epochs=1) == pytest.approx(padded / ours)
    without = ours - language_pass(SHAPE, equal)
    said = predicted_ratio(SHAPE, equal, epochs=1, asks_policy=False)
    assert said == pytest.approx(padded / without)


def test_the_first_minibatch_is_updated_from_the_pass_that_scored_it() -> None:
    kept = ppo_phase_operations(SHAPE, LENGTHS, epochs=2, kept_share=0.25)
    assert kept["update_policy"] == 5.75 * kept["old_logprobs"]
    assert kept["update_critic"] == 5.75 * kept["values"]
    unasked = ppo_phase_operations(SHAPE, LENGTHS, epochs=2, kept_share=0.25, asks_policy=False)
    assert unasked["update_policy"] == 6 * kept["old_logprobs"]
    assert unasked["update_critic"] == kept["update_critic"]
    step = trl_step_operations(SHAPE, LENGTHS.padded(), epochs=2)
    said = predicted_ratio(SHAPE, LENGTHS, epochs=2, kept_share=0.25)
    assert said == pytest.approx(step / sum(kept.values()))


def test_a_rate_is_weighted_by_operations() -> None:
    assert weighted_rate([30.0, 10.0], [10.0, 10.0]) == 10.0
    assert weighted_rate([30.0, 10.0], [30.0, 1.0]) == pytest.approx(40 / 11)


def test_rounds_are_summarised_by_median_and_range() -> None:
    assert spread([3.0, 1.0, 2.0]) == spread([1.0, 2.0, 3.0])
    assert (spread([3.0, 1.0, 2.0]).median, spread([3.0, 1.0, 2.0]).high) == (2.0, 3.0)
    with pytest.raises(ValueError, match="no round"):
        spread([])


def a_round(variant: str, *, ours: float, trl: float, tokens: float = 64.0) -> dict[str, object]:
    return {
        "variant": variant,
        "predicted": 2.0,
        "ours": {"step_s": ours},
        "ours_tokens": tokens,
        "trl": trl,
        "trl_pss_gib": 10.0,
        "ours_pss_gib": {"policy": 4.0, "critic": 5.0},
        "ours_pss_sum_gib": 9.0,
    }


def test_the_ratio_is_taken_round_by_round() -> None:
    rounds = [a_round("forced-1", ours=o, trl=t) for o, t in ((1, 2), (10, 15), (1, 1.7))]
    text = "\n".join(report(rounds))
    assert "| 1.7 (1.5 to 2, 3 rounds) | 2.00 | >= 1.60 | met |" in text
    assert "| forced-1 | policy | 4.00 | 0.40 | <= 0.45 | met |" in text
    assert "| forced-1 | critic | 5.00 | 0.50 | <= 0.45 | MISSED |" in text
    assert "| forced-1 | all roles at one moment | 9.00 | 0.90 | <= 1.2 | met |" in text


def test_where_responses_end_the_goal_follows_the_prediction() -> None:
    long = [a_round("eos-1", ours=1, trl=2)]
    assert goal_of("eos-1", long) == pytest.approx(1.6)
    short = [a_round("eos-short-1", ours=1, trl=2, tokens=20)]
    assert goal_of("eos-short-1", short) == 2.5
