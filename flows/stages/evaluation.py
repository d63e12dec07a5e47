"""evaluation: the trained policy against its SFT start on held-out prompts."""

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from alignment.gold_rubric import gold_score
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
    from alignment.experience import TokenBatch

STAGE, VERSION = "evaluation", 1
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
        from alignment.evaluation.result import write_evaluation
        from alignment.evaluation.samples import write_samples

        prompts = read_prompts(data, HELDOUT_PROMPTS)
        judged = _Judged(run, sft, policy, reward_model, seed=workspace.request.seed)
        judged.sample(prompts)
        result = _compare(run, judged, reward_model, preferences, candidates)
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


class _Judged:
    """Held-out responses of both policies with every judge's verdict."""

    def __init__(
        self,
        run: RunContext,
        sft: Artifact,
        policy: Artifact,
        reward_model: Artifact,
        *,
        seed: int,
    ) -> None:
        self.run = run
        self.folders = {"sft": sft.path("model"), "ppo": policy.path("model")}
        self.reward_folder = reward_model.path("model")
        self.seed = seed
        self.samples: list[EvaluatedSample] = []
        self.candidates: list[ScoredCandidate] = []

    def sample(self, prompts: Sequence[Prompt]) -> None:
        """Sample and judge; the rollout engine is started once and takes both policies' weights."""
        with self.run.engines.roles(self._specs()) as roles, self.run.clock.phase("model_work"):
            for version, name in enumerate(("sft", "ppo")):
                weights = self.run.engines.weights_of(self.folders[name])
                roles["generator"].load_weights(weights, version=version)
                responses = self._responses(roles["generator"], prompts)
                self._judge(name, prompts, responses, roles)
                if name == "sft":
                    self._judge_candidates(prompts, responses, roles["reward_model"])

    def _specs(self) -> list[RoleSpec]:
        cluster, config = self.run.config.cluster, self.run.config.evaluation
        tokens = self.run.config.ppo.tokens_per_microbatch
        frozen = partial(
            FrozenSpec,
            kind="language",
            tokens_per_microbatch=tokens,
            temperature=config.temperature,
        )
        return [
            GeneratorSpec(
                name="generator",
                model_folder=self.folders["sft"],
                max_sequence_tokens=self.run.config.model.max_prompt_tokens
                + config.max_response_tokens,
                precision=cluster.generator_precision,
                resources=cluster.generator,
            ),
            frozen(
                name="reference",
                model_folder=self.folders["sft"],
                resources=cluster.reference,
            ),
            frozen(name="policy", model_folder=self.folders["ppo"], resources=cluster.policy),
            FrozenSpec(
                name="reward_model",
                kind="value",
                model_folder=self.reward_folder,
                tokens_per_microbatch=tokens,
                resources=cluster.reward_model,
            ),
        ]

    def _responses(self, generator: Any, prompts: Sequence[Prompt]) -> list[list[Response]]:
        config = self.run.config.evaluation
        return sample_responses(
            generator,
            prompts,
            tokenizer_folder=self.folders["sft"],
            max_prompt_tokens=self.run.config.model.max_prompt_tokens,
            samples=config.samples_per_prompt,
            max_response_tokens=config.max_response_tokens,
            temperature=config.temperature,
            seed=self.seed,
            progress=self.run.progress,
        )

    def _judge(
        self,
        name: Any,
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[Response]],
        roles: dict[str, Any],
    ) -> None:
        from alignment.evaluation.samples import EvaluatedSample

        flat = [
            (p, n, r) for p, own in zip(prompts, responses, strict=True) for n, r in enumerate(own)
        ]
        batch = self._encode([(prompt, response) for prompt, _, response in flat])
        scores = roles["reward_model"].scores(batch).tolist()
        kl = [0.0] * len(flat)
        if name == "ppo":
            gap = roles["policy"].logprobs(batch) - roles["reference"].logprobs(batch)
            kl = gap.sum(1).tolist()
        for (prompt, number, response), score, kl_nats in zip(flat, scores, kl, strict=True):
            gold = self._gold(prompt, response)
            self.samples.append(
                EvaluatedSample(
                    prompt_id=prompt.id,
                    prompt_text=prompt.messages[-1].content,
                    language=prompt.language,
                    policy=name,
                    sample=number,
                    text=response.text,
                    response_tokens=len(response.token_ids),
                    finished=response.finish_reason == "stop",
                    gold_total=gold.total if gold else None,
                    gold_components=gold.components if gold else {},
                    reward_score=score,
                    kl_nats=kl_nats,
                )
            )

    def _judge_candidates(
        self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], reward_model: Any
    ) -> None:
        """Held-out candidates, probes included, for the reward model's accuracy against gold."""
        if self.run.config.preferences.source != "panel":
            return
        sets = with_probes(prompts, responses, self.run.config.candidates, seed=self.seed)
        flat = [(s.prompt, response) for s in sets for response in s.responses]
        batch = self._encode(flat)
        tokens = batch.response_mask.sum(1).tolist()
        scores = reward_model.scores(batch).tolist()
        for (prompt, response), score, length in zip(flat, scores, tokens, strict=True):
            self.candidates.append(_candidate(prompt, response, score=score, tokens=length))

    def _gold(self, prompt: Prompt, response: Response) -> Any:
        if self.run.config.preferences.source != "panel":
            return None
        finished = response.finish_reason == "stop"
        return gold_score(prompt.messages[-1].content, response.text, finished)

    def _encode(self, pairs: Sequence[tuple[Prompt, Response]]) -> "TokenBatch":
        from alignment.data.chat import encode_example
        from alignment.experience import batch_from_rows
        from alignment.models.loading import load_tokenizer

        tokenizer = load_tokenizer(self.folders["sft"])
        limit = self.run.config.model.max_prompt_tokens
        examples = [
            encode_example(tokenizer, prompt, response, max_prompt_tokens=limit)
            for prompt, response in pairs
        ]
        return batch_from_rows(
            [example.prompt_ids for example in examples],
            [example.response_ids for example in examples],
        )


def _candidate(
    prompt: Prompt, response: Response, *, score: float, tokens: int
) -> "ScoredCandidate":
    from alignment.evaluation.pair_accuracy import ScoredCandidate

    finished = response.finish_reason == "stop"
    gold = gold_score(prompt.messages[-1].content, response.text, finished)
    return ScoredCandidate(
        prompt_id=prompt.id,
        language=prompt.language,
        text=response.text,
        response_tokens=tokens,
        finished=finished,
        is_probe=response.origin.startswith("probe"),
        gold_total=gold.total,
        gold_components=gold.components,
        reward_score=score,
    )


def _compare(
    run: RunContext,
    judged: _Judged,
    reward_model: Artifact,
    preferences: Artifact,
    candidates: Artifact | None,
) -> "EvaluationResult":
    from alignment.evaluation.resampling import Resampling
    from alignment.evaluation.result import evaluate

    resampling = Resampling(
        seed=derive_seed(judged.seed, "bootstrap") % 2**32,
        resamples=run.config.evaluation.bootstrap_resamples,
    )
    return evaluate(
        judged.samples,
        resampling=resampling,
        heldout_candidates=judged.candidates,
        sft_candidates=_ranked_candidates(run, candidates),
        cross_validated=_cross_validated(reward_model, resampling),
        labels=_label_statistics(run, preferences, candidates, resampling),
    )


def _ranked_candidates(run: RunContext, candidates: Artifact | None) -> "list[ScoredCandidate]":
    """The ranked round's candidates with gold, for gold's correlation with surface features."""
    if candidates is None or run.config.preferences.source != "panel":
        return []
    from alignment.data.tables import read_records

    sets = read_records(candidates.path(CANDIDATES), CandidateSet)
    return [
        _candidate(s.prompt, r, score=0.0, tokens=max(1, len(r.token_ids)))
        for s in sets
        for r in s.responses
    ]


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
    from alignment.evaluation.label_statistics import label_statistics
    from alignment.records import Ranking

    simulated = run.config.preferences.source == "panel"
    gold = None
    if simulated:
        sets = read_records(candidates.path(CANDIDATES), CandidateSet)
        gold = {
            r.id: gold_score(s.prompt.messages[-1].content, r.text, r.finish_reason == "stop").total
            for s in sets
            for r in s.responses
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
