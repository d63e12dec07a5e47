"""TRL's environment, and its process as seen from ours."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment.experience import EncodedPrompt
from benchmarks.ppo.workload import MINIBATCH, RESPONSE_TOKENS, Variant

REQUIREMENTS = Path(__file__).with_name("trl_requirements.txt")
UNUSED_TOKEN = 0
"""TRL tells padding by its token; SmolLM2's own padding token is its end of turn."""


def trl_python(folder: Path) -> Path:
    """The Python of an environment with TRL beside our torch, built the first time with uv."""
    python = folder / "bin" / "python"
    built = folder / "requirements.txt"
    if built.exists() and built.read_bytes() == REQUIREMENTS.read_bytes():
        return python
    uv = str(Path(sys.executable).with_name("uv"))
    torch_source = [] if os.environ.get("UV_FIND_LINKS") else ["--torch-backend", "cpu"]
    subprocess.run([uv, "venv", "--quiet", "--clear", "-p", sys.executable, folder], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps"]
    install += ["--compile-bytecode", *torch_source, "-r", str(REQUIREMENTS)]
    subprocess.run(install, check=True)
    built.write_bytes(REQUIREMENTS.read_bytes())
    return python


class TrlProcess:
    """A trainer that takes a step when told to."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log
        self._read("ready")

    def step(self) -> float:
        """Take one step; its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._read("step")["seconds"])

    def _read(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@@"):
                told: dict[str, Any] = json.loads(line[2:])
                assert told["event"] == event, f"TRL said {told}, expected {event}"
                return told
        raise RuntimeError(f"TRL's process ended before its `{event}`; see {self._log}")


@contextmanager
def trl_trainer(
    python: Path,
    variant: Variant,
    prompts: Sequence[EncodedPrompt],
    models: tuple[Path, Path],
    scratch: Path,
    *,
    threads: int,
) -> Iterator[TrlProcess]:
    """TRL's trainer, loaded and waiting; ended with the block."""
    language, value = models
    scratch.mkdir(parents=True, exist_ok=True)
    work = {
        "language": str(language.absolute()),
        "value": str(value.absolute()),
        "prompts": [list(prompt.token_ids) for prompt in prompts],
        "minibatch": MINIBATCH,
        "epochs": variant.epochs,
        "response_tokens": RESPONSE_TOKENS,
        "stops": not variant.forced,
        "precision": variant.precision,
        "pad_token_id": UNUSED_TOKEN,
        "scratch": str((scratch / "trl").absolute()),
    }
    (scratch / "trl.json").write_text(json.dumps(work))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    log = scratch / "trl.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [python, Path(__file__).with_name("trl_side.py"), scratch / "trl.json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            yield TrlProcess(process, log)
        finally:
            process.kill()
            process.wait()
