"""base_model: one local folder with weights, tokenizer and chat template."""

import hashlib
import json
from pathlib import Path

from alignment.config import PipelineConfig
from alignment.errors import ModelError
from flows.manifest import Artifact, InputReference
from flows.run_context import RunContext, StageResult
from flows.workspace import StageWorkspace

STAGE, VERSION = "base_model", 1


def prepare_base_model(run: RunContext) -> Artifact:
    """Unpack, copy or fetch the base model into the store, once."""
    config = run.config.model

    def work(workspace: StageWorkspace) -> StageResult:
        from alignment.models.base_model import prepare_base_model as prepare

        facts = prepare(config, workspace.output("model"), seed=workspace.request.seed)
        return StageResult(outputs=("model",), metrics=facts)

    request = run.request(
        STAGE,
        version=VERSION,
        settings={"source": config.source, "chat_template": config.chat_template},
        inputs=_folder_input(config.source),
    )
    base_model = run.stage(request, work)
    require_context(run.config, base_model.path("model"))
    return base_model


def require_context(config: PipelineConfig, folder: Path) -> None:
    """Refuse, before any engine starts, sequences that the model's context cannot hold.

    Raises:
        ModelError: names the setting whose responses are too long, and all the numbers.
    """
    limit = json.loads((folder / "config.json").read_bytes()).get("max_position_embeddings")
    if limit is None:
        return
    responses = {
        "data.max_response_tokens": config.data.max_response_tokens,
        "candidates.max_response_tokens": config.candidates.max_response_tokens,
        "ppo.max_response_tokens": config.ppo.max_response_tokens,
        "evaluation.max_response_tokens": config.evaluation.max_response_tokens,
    }
    name, longest = max(responses.items(), key=lambda item: item[1])
    prompt = config.model.max_prompt_tokens
    if prompt + longest > limit:
        raise ModelError(
            f"`model.max_prompt_tokens` {prompt} + `{name}` {longest} = {prompt + longest} tokens, "
            f"but the context of {config.model.source!r} is {limit} (`max_position_embeddings` of "
            "its config.json); lower one of the two"
        )


def _folder_input(source: str) -> dict[str, InputReference]:
    """A local folder is pinned by the names, sizes and times of its files."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return {}
    listing = [
        f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}"
        for file in sorted(folder.iterdir())
        if file.is_file()
    ]
    digest = hashlib.sha256("\n".join(listing).encode()).hexdigest()
    return {"folder": InputReference(digest=digest, source=str(folder))}
