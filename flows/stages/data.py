"""data: prompts, demonstrations and comparisons, cleaned, split and checked against the model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignment.errors import DataError
from alignment.records import Demonstration, PreferenceGroup, Prompt
from flows.manifest import Artifact, InputReference, digest_file
from flows.run_context import RunContext, StageResult
from flows.workspace import StageWorkspace

if TYPE_CHECKING:
    from alignment.data.importing import PreparedData

STAGE, VERSION = "data", 1

DEMONSTRATIONS = "demonstrations.parquet"
TRAIN_PROMPTS = "prompts.parquet"
HELDOUT_PROMPTS = "heldout_prompts.parquet"
PREFERENCES = "preference_groups.parquet"
REFUSED = "refused.jsonl"


def prepare_data(run: RunContext, base_model: Artifact) -> Artifact:
    """Read the source, split it, refuse what cannot be used (and say why), write tables."""
    config = run.config.data
    max_prompt_tokens = run.config.model.max_prompt_tokens

    def work(workspace: StageWorkspace) -> StageResult:
        from alignment.data.importing import prepare, why_refused, write_prepared
        from alignment.models.loading import load_tokenizer

        prepared = prepare(
            config,
            seed=workspace.request.seed,
            tokenizer=load_tokenizer(base_model.path("model")),
            max_prompt_tokens=max_prompt_tokens,
        )
        if run.config.preferences.source == "imported" and not prepared.preference_groups:
            raise DataError(
                f"{config.path} has no comparison that can be used, and `preferences.source` is "
                f'"imported"{why_refused(prepared.refused)}; bring a file with comparisons, or let '
                "people or the panel rank"
            )
        folder = workspace.output(DEMONSTRATIONS).parent
        write_prepared(folder, prepared)
        if not prepared.refused:
            (folder / REFUSED).unlink()
        written = tuple(sorted(file.name for file in folder.iterdir()))
        return StageResult(outputs=written, metrics=_counts(prepared))

    settings = config.model_dump(mode="json", exclude={"path"})
    request = run.request(
        STAGE,
        version=VERSION,
        settings={**settings, "max_prompt_tokens": max_prompt_tokens},
        inputs={"base_model": base_model.reference("model"), **_source_input(run)},
    )
    data = run.stage(request, work)
    if REFUSED in data.outputs:
        count, path = data.metrics["refused"], data.path(REFUSED)
        were = "was" if count == 1 else "were"
        run.progress.say(f"{count} of the data's records {were} left out: {path} says why")
    return data


def _source_input(run: RunContext) -> dict[str, InputReference]:
    path = run.config.data.path
    if path is None:
        return {}
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return {
        file.name: InputReference(digest=digest_file(file), source=str(file))
        for file in files
        if file.is_file()
    }


def _counts(prepared: "PreparedData") -> dict[str, Any]:
    return {
        "demonstrations": len(prepared.demonstrations),
        "train_prompts": len(prepared.train_prompts),
        "heldout_prompts": len(prepared.heldout_prompts),
        "preference_groups": len(prepared.preference_groups),
        "preference_groups_available": prepared.preference_groups_available,
        "refused": len(prepared.refused),
    }


def read_demonstrations(data: Artifact) -> Sequence[Demonstration]:
    """The demonstrations of a data artifact."""
    from alignment.data.tables import read_records

    return read_records(data.path(DEMONSTRATIONS), Demonstration)


def read_prompts(data: Artifact, name: str) -> Sequence[Prompt]:
    """The prompts of a data artifact: `TRAIN_PROMPTS` or `HELDOUT_PROMPTS`."""
    from alignment.data.tables import read_records

    return read_records(data.path(name), Prompt)


def read_groups(artifact: Artifact) -> Sequence[PreferenceGroup]:
    """The preference groups of a data or preferences artifact."""
    from alignment.data.tables import read_records

    return read_records(artifact.path(PREFERENCES), PreferenceGroup)
