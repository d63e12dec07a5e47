"""evaluation: the trained policy against its SFT start on held-out prompts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.config import PipelineConfig
from alignment.records import CandidateSet, Prompt, Response
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec
from alignment.seeds import derive_seed
from flows.manifest import Artifact
from flows.run_context import RunContext, StageResult
from flows.sampling import sample_responses
from flows.stages.candidates import CANDIDATES, with_probes
from flows.stages.data import HELDOUT_PROMPTS, read_prompts
from flows.stages.preferences import RANKINGS
from flows.stages.reward_model import FOLD_PAIRS
from flows.workspace import StageWorkspace

if TYPE_CHECKING:
    from alignment.evaluation.pair_accuracy import CrossValidatedAccuracy, ScoredCandidate
    from alignment.evaluation.result import EvaluationResult
    from alignment.evaluation.samples import EvaluatedSample

STAGE, VERSION = "evaluation", 7
RESULT = "evaluation.json"
SAMPLES = "samples.jsonl"


def evaluate_policy(
    run: RunContext,
    sft: Artifact,
    policy: Artifact,
    reward_model: Artifact,
    preferences: Artifact,
    candidates: Artifact | None,
    data: Artifact,
) -> Artifact:
    """Sample both policies, judge every response, and compare with intervals by prompt."""
    config = run.config.evaluation

    def work(workspace: StageWorkspace) -> StageResult:
        from alignment.evaluation.resampling import Resampling
        from alignment.evaluation.result import evaluate, write_evaluation
        from alignment.evaluation.samples import write_samples

        models = _Policies(
            sft=sft.path("model"), ppo=policy.path("model"), reward_model=reward_model.path("model")
        )
        seed = workspace.request.seed
        judged = _sample_and_judge(run, models, read_prompts(data, HELDOUT_PROMPTS), seed=seed)
        resampling = Resampling(
            seed=derive_seed(seed, "bootstrap") % 2**32,
            resamples=config.bootstrap_resamples,
        )
        result = evaluate(
            judged.samples,
            resampling=resampling,
            heldout_candidates=judged.candidates,
            sft_candidates=_ranked_candidates(run, candidates),
            cross_validated=_cross_validated(reward_model, resampling),
            labels=_label_statistics(run, preferences, candidates, resampling),
        )
        write_samples(judged.samples, workspace.output(SAMPLES))
        write_evaluation(result, workspace.output(RESULT))
        return StageResult(outputs=(RESULT, SAMPLES), metrics=_headline(result))

    inputs = {
        "sft": sft.reference("model"),
        "policy": policy.reference("model"),
        "reward_model": reward_model.reference("model"),
        "preferences": preferences.reference(),
        "prompts": data.reference(HELDOUT_PROMPTS),
    }
    if candidates is not None:
        inputs["candidates"] = candidates.reference(CANDIDATES)
    request = run.request(
        STAGE,
        version=VERSION,
        settings={
            **config.model_dump(mode="json"),
            "generator_precision": run.config.cluster.generator_precision,
            "probes_per_prompt": run.config.candidates.probes_per_prompt,
            "preferences": run.config.preferences.source,
        },
        inputs=inputs,
    )
    return run.stage(request, work)


@dataclass(frozen=True, kw_only=True)
class _Policies:
    """Model folders of the two policies and of the reward model that judges both."""

    sft: Path
    ppo: Path
    reward_model: Path


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """Held-out responses of both policies, and candidates, with every judge's verdict."""

    samples: "list[EvaluatedSample]"
    candidates: "list[ScoredCandidate]"


def _sample_and_judge(
    run: RunContext, models: _Policies, prompts: Sequence[Prompt], *, seed: int
) -> _Judged:
    """Sample and judge; the rollout engine is started once and takes both policies' weights."""
    from alignment.data.chat import encode_example
    from alignment.evaluation.judging import judge_candidates, judge_samples
    from alignment.models.loading import load_tokenizer

    simulated = run.config.preferences.source == "panel"
    encode = partial(
        encode_example,
        load_tokenizer(models.sft),
        max_prompt_tokens=run.config.model.max_prompt_tokens,
    )
    with run.engines.roles(_specs(run.config, models)) as roles, run.clock.phase("model_work"):
        generator, reward_model = roles["generator"], roles["reward_model"]
        judge = partial(judge_samples, encode=encode, reward_model=reward_model, by_gold=simulated)

        generator.load_weights(run.engines.weights_of(models.sft), version=0)
        before = _responses(run, generator, models, prompts, seed=seed)
        samples = judge("sft", prompts, before)
        candidates: list[ScoredCandidate] = []
        if simulated:
            sets = with_probes(prompts, before, run.config.candidates, seed=seed)
            candidates = judge_candidates(sets, encode=encode, reward_model=reward_model)

        generator.load_weights(run.engines.weights_of(models.ppo), version=1)
        after = _responses(run, generator, models, prompts, seed=seed)
        samples += judge(
            "ppo", prompts, after, policy=roles["policy"], reference=roles["reference"]
        )
    return _Judged(samples=samples, candidates=candidates)


def _specs(config: PipelineConfig, models: _Policies) -> list[RoleSpec]:
    cluster = config.cluster
    language = partial(
        FrozenSpec,
        kind="language",
        tokens_per_microbatch=config.ppo.tokens_per_microbatch,
        temperature=config.evaluation.temperature,
    )
    return [
        GeneratorSpec(
            name="generator",
            model_folder=models.sft,
            max_sequence_tokens=config.model.max_prompt_tokens
            + config.evaluation.max_response_tokens,
            precision=cluster.generator_precision,
            resources=cluster.generator,
        ),
        language(name="reference", model_folder=models.sft, resources=cluster.reference),
        language(name="policy", model_folder=models.ppo, resources=cluster.policy),
        FrozenSpec(
            name="reward_model",
            kind="value",
            model_folder=models.reward_model,
            tokens_per_microbatch=config.ppo.tokens_per_microbatch,
            resources=cluster.reward_model,
        ),
    ]


def _responses(
    run: RunContext, generator: Any, models: _Policies, prompts: Sequence[Prompt], *, seed: int
) -> list[list[Response]]:
    config = run.config.evaluation
    return sample_responses(
        generator,
        prompts,
        tokenizer_folder=models.sft,
        max_prompt_tokens=run.config.model.max_prompt_tokens,
        samples=config.samples_per_prompt,
        max_response_tokens=config.max_response_tokens,
        temperature=config.temperature,
        seed=seed,
        progress=run.progress,
    )


def _ranked_candidates(run: RunContext, candidates: Artifact | None) -> "list[ScoredCandidate]":
    """The first round's candidates with gold, for gold's correlation with surface features."""
    if candidates is None or run.config.preferences.source != "panel" or run.round > 1:
        return []
    from alignment.data.tables import read_records
    from alignment.evaluation.judging import gold_candidates

    return gold_candidates(read_records(candidates.path(CANDIDATES), CandidateSet))


def _cross_validated(reward_model: Artifact, resampling: Any) -> "CrossValidatedAccuracy | None":
    if FOLD_PAIRS not in reward_model.outputs:
        return None
    from alignment.evaluation.pair_accuracy import ScoredPair, cross_validated_accuracy

    rows = json.loads(reward_model.path(FOLD_PAIRS).read_text())
    return cross_validated_accuracy([ScoredPair(**row) for row in rows], resampling=resampling)


def _label_statistics(
    run: RunContext, preferences: Artifact, candidates: Artifact | None, resampling: Any
) -> Any:
    if candidates is None or RANKINGS not in preferences.outputs:
        return None
    from alignment.data.tables import read_records
    from alignment.evaluation.judging import gold_of
    from alignment.evaluation.label_statistics import label_statistics
    from alignment.records import Ranking

    simulated = run.config.preferences.source == "panel"
    gold = None
    if simulated:
        sets = read_records(candidates.path(CANDIDATES), CandidateSet)
        gold = {
            response.id: gold_of(s.prompt, response).total for s in sets for response in s.responses
        }
    return label_statistics(
        read_records(preferences.path(RANKINGS), Ranking),
        panel="simulated panel" if simulated else "",
        gold=gold,
        resampling=resampling,
    )


def _headline(result: "EvaluationResult") -> dict[str, Any]:
    comparison = result.headline
    figures: dict[str, Any] = {"prompts": comparison.prompts}
    for name in ("gold", "reward_score", "kl_nats"):
        if name in comparison.ppo:
            figures[f"ppo_{name}"] = comparison.ppo[name].value
            figures[f"difference_{name}"] = comparison.difference[name].value
    return figures
