"""candidates: the newest policy (and its parent) and prompts to K responses each, to be ranked."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from alignment.config import CandidatesConfig
from alignment.records import CandidateSet, Prompt, Response
from alignment.role_specs import GeneratorSpec
from alignment.seeds import derive_seed
from flows.manifest import Artifact
from flows.run_context import RunContext, StageResult
from flows.sampling import sample_responses
from flows.stages.data import TRAIN_PROMPTS, read_prompts
from flows.workspace import StageWorkspace

STAGE, VERSION = "candidates", 3
CANDIDATES = "candidates.parquet"


def sample_candidates(run: RunContext, policies: Sequence[Artifact], data: Artifact) -> Artifact:
    """Sample responses and add probes.

    `policies` is the newest policy alone, or its parent and then itself: they share the
    responses evenly, the newest takes the odd one.
    """
    config = run.config.candidates
    newest, parent = policies[-1], policies[-2] if len(policies) > 1 else None

    def work(workspace: StageWorkspace) -> StageResult:
        from alignment.data.tables import write_records

        prompts = run.prompts_of_round(read_prompts(data, TRAIN_PROMPTS))[: config.prompts]
        from_parents = config.responses_per_prompt // 2 if parent else 0
        spec = GeneratorSpec(
            name="generator",
            model_folder=newest.path("model"),
            max_sequence_tokens=run.config.model.max_prompt_tokens + config.max_response_tokens,
            precision=run.config.cluster.generator_precision,
            resources=run.config.cluster.generator,
        )
        with run.engines.roles([spec]) as roles, run.clock.phase("model_work"):
            sample = partial(
                sample_responses,
                roles["generator"],
                prompts,
                tokenizer_folder=newest.path("model"),
                max_prompt_tokens=run.config.model.max_prompt_tokens,
                max_response_tokens=config.max_response_tokens,
                temperature=config.temperature,
                progress=run.progress,
            )
            seed = workspace.request.seed
            responses = sample(samples=config.responses_per_prompt - from_parents, seed=seed)
            if parent:
                weights = run.engines.weights_of(parent.path("model"))
                roles["generator"].load_weights(weights, version=1)
                older = sample(samples=from_parents, seed=derive_seed(seed, "parent"))
                responses = [
                    [*own, *_of_parent(o)] for own, o in zip(responses, older, strict=True)
                ]
        sets = with_probes(prompts, responses, config, seed=seed)
        write_records(workspace.output(CANDIDATES), sets, CandidateSet)
        return StageResult(outputs=(CANDIDATES,), metrics=_figures(sets))

    request = run.request(
        STAGE,
        version=VERSION,
        settings={**config.model_dump(mode="json"), **run.round_settings()},
        inputs={
            "policy" if parent else "sft": newest.reference("model"),
            **({"parent": parent.reference("model")} if parent else {}),
            "prompts": data.reference(TRAIN_PROMPTS),
        },
    )
    return run.stage(request, work)


def with_probes(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    config: CandidatesConfig,
    *,
    seed: int,
) -> list[CandidateSet]:
    """Candidate sets of sampled responses plus `config.probes_per_prompt` poor ones.

    The first probe is a finished response to another prompt, the second the opening words of an
    own response as if it ended there: they show the reward model that finishing and fitting the
    question matter, which good samples alone hardly do.
    """
    sets = []
    for index, (prompt, own) in enumerate(zip(prompts, responses, strict=True)):
        probes: list[Response] = []
        if config.probes_per_prompt >= 1 and len(prompts) > 1:
            shift = 1 + derive_seed(seed, "probe", prompt.id) % (len(prompts) - 1)
            other = responses[(index + shift) % len(prompts)]
            donor = next((r for r in other if r.finish_reason == "stop"), other[0])
            probes.append(_renamed(donor, f"{prompt.id}/probe-off-topic", "probe:off-topic"))
        if config.probes_per_prompt >= 2:
            probes.append(_cut_off(prompt, own[0], seed))
        sets.append(CandidateSet(prompt=prompt, responses=(*own, *probes)))
    return sets


def _of_parent(responses: Sequence[Response]) -> list[Response]:
    """Responses of the parent policy under ids of their own."""
    return [_renamed(r, f"{r.id}/parent", "parent") for r in responses]


def _cut_off(prompt: Prompt, response: Response, seed: int) -> Response:
    words = response.text.split()
    kept = 2 + derive_seed(seed, "cut", prompt.id) % 5
    text = " ".join(words[: min(kept, max(1, len(words) - 1))]) or "Well"
    return Response(id=f"{prompt.id}/probe-cut-off", text=text, origin="probe:cut-off")


def _renamed(response: Response, new_id: str, origin: str) -> Response:
    return Response(
        id=new_id,
        text=response.text,
        token_ids=response.token_ids,
        finish_reason=response.finish_reason,
        origin=origin,
    )


def _figures(sets: Sequence[CandidateSet]) -> dict[str, Any]:
    sampled = [r for s in sets for r in s.responses if not r.origin.startswith("probe")]
    finished = sum(r.finish_reason == "stop" for r in sampled)
    return {
        "prompts": len(sets),
        "responses": sum(len(s.responses) for s in sets),
        "finished_share": finished / len(sampled),
    }
