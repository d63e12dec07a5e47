"""A stage's code changes only with its version, or with an acknowledgement."""

import json
from pathlib import Path

import pytest
from stage_digests import RECORD, STAGES, stage_record, used_modules


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_changed_stage_code_has_a_raised_version_or_is_acknowledged(path: Path) -> None:
    recorded = json.loads(RECORD.read_text())[path.stem]
    now = stage_record(path)
    assert now == recorded, (
        f"code behind stage {path.stem} changed since version {recorded['version']}. If its "
        f"results change, raise VERSION in its file; then, or if they do not, run "
        "`python tests/flows/stage_digests.py` and commit its file"
    )


def test_the_ppo_stage_reaches_the_mathematics() -> None:
    (ppo,) = [path for path in STAGES if path.stem == "ppo"]
    names = {module.name for module in used_modules(ppo)}
    assert {"ppo.py", "policy_losses.py", "advantages.py", "modules.py"} <= names
