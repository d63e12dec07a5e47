"""base_model: one local folder with weights, tokenizer and chat template."""

import hashlib
from pathlib import Path

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
    return run.stage(request, work)


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
