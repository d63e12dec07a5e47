"""The whole evaluation: what it needs, what it leaves out, and its files."""

import pytest
from evaluation_records import RESAMPLING, candidate, sampled, two_prompts

from alignment.errors import DataError
from alignment.evaluation.label_statistics import label_statistics
from alignment.evaluation.pair_accuracy import ScoredPair, cross_validated_accuracy
from alignment.evaluation.result import evaluate, read_evaluation, write_evaluation
from alignment.evaluation.samples import read_samples, write_samples
from alignment.records import Ranking


def chinese(prompts: str) -> list:
    return [
        sampled(p, policy, language="zh", text="海水", gold_total=float(policy == "ppo"))
        for p in prompts
        for policy in ("sft", "ppo")
    ]


def judged_candidates(language: str = "en") -> list:
    return [
        candidate(p, gold_total=0.1 * k, reward_score=float(k), is_probe=k == 0, language=language)
        for p in "pqr"
        for k in range(4)
    ]


def everything():
    pairs = [
        ScoredPair(
            prompt_id=str(i),
            better_score=float(i),
            worse_score=1.5,
            better_tokens=i,
            worse_tokens=2,
            fold=i % 2,
        )
        for i in range(4)
    ]
    rankings = [
        Ranking(
            annotation_id=p, prompt_id=p, labeler="ann", response_ids=(p + "1", p), tiers=(0, 1)
        )
        for p in "pq"
    ]
    return evaluate(
        two_prompts() + chinese("xy"),
        resampling=RESAMPLING,
        heldout_candidates=judged_candidates(),
        sft_candidates=judged_candidates(),
        cross_validated=cross_validated_accuracy(pairs, resampling=RESAMPLING),
        labels=label_statistics(rankings, panel="simulated", gold=None, resampling=RESAMPLING),
    )


def test_the_result_survives_its_file(tmp_path):
    result = everything()
    write_evaluation(result, tmp_path / "evaluation.json")
    assert read_evaluation(tmp_path / "evaluation.json") == result


def test_chinese_is_reported_apart():
    result = everything()
    assert result.headline.language == "en"
    assert result.headline.difference["gold"].value == 0.0
    assert result.others["zh"].difference["gold"].value == 1.0


def test_candidates_of_other_languages_do_not_count():
    english = evaluate(
        two_prompts(), resampling=RESAMPLING, heldout_candidates=judged_candidates()
    ).reward_model
    foreign = [*judged_candidates("zh"), candidate("z", gold_total=9.0, language="zh")]
    both = evaluate(
        two_prompts(), resampling=RESAMPLING, heldout_candidates=[*judged_candidates(), *foreign]
    ).reward_model
    assert both == english
    assert (english.all_pairs.accuracy.n, english.sampled_pairs.accuracy.n) == (18, 9)


def test_candidates_that_gold_hardly_tells_apart_give_no_accuracy():
    alike = [
        candidate(p, gold_total=0.5 if k else 0.1, reward_score=float(k), is_probe=k == 0)
        for p in "pq"
        for k in range(3)
    ]
    accuracy = evaluate(two_prompts(), resampling=RESAMPLING, heldout_candidates=alike).reward_model
    assert accuracy.sampled_pairs is None
    assert accuracy.all_pairs.accuracy.value == 1.0


def test_a_language_with_one_prompt_is_left_out_and_counted():
    result = evaluate(two_prompts() + chinese("x"), resampling=RESAMPLING)
    assert result.others == {}
    assert result.left_out == {"zh": 1}


def test_the_headline_language_must_be_there():
    with pytest.raises(DataError, match=r"0 held-out prompts in language 'en'.*\{'zh': 2\}"):
        evaluate(chinese("xy"), resampling=RESAMPLING)


def test_what_was_not_given_is_absent():
    result = evaluate(two_prompts(), resampling=RESAMPLING)
    assert result.reward_model is None
    assert result.cross_validated is None
    assert result.labels is None
    assert result.gold_correlations == ()


def test_a_damaged_result_is_refused_by_field(tmp_path):
    path = tmp_path / "evaluation.json"
    write_evaluation(everything(), path)
    path.write_text(path.read_text().replace('"left_out"', '"left_over"'))
    with pytest.raises(DataError, match=r"evaluation\.json, left_o"):
        read_evaluation(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"evaluation\.json, the file"):
        read_evaluation(path)


def test_samples_survive_their_file(tmp_path):
    samples = [*two_prompts(), *chinese("x"), sampled("h", "sft", text="</script>\n\u202e\x00")]
    write_samples(samples, tmp_path / "samples.jsonl")
    assert read_samples(tmp_path / "samples.jsonl") == samples


def test_a_damaged_sample_is_refused_by_line_and_field(tmp_path):
    path = tmp_path / "samples.jsonl"
    write_samples(two_prompts(), path)
    path.write_text(path.read_text() + '{"prompt_id": 3}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl, line 5, prompt_"):
        read_samples(path)
