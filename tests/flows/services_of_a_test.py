"""The real services of `alignflow up` in a folder of a test, and what a test asks of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.supervisor import is_flow_run, marked_processes

ROOT = Path(__file__).parents[2]
PORTS = ("server", "label", "ray", "ray-dashboard", "metrics")
TINY_PEOPLE = {
    "model": {"source": "tiny", "max_prompt_tokens": 64},
    "data": {"demonstrations": 16, "train_prompts": 8, "heldout_prompts": 8},
    "sft": {"epochs": 1},
    "candidates": {
        "prompts": 3,
        "responses_per_prompt": 2,
        "probes_per_prompt": 0,
        "max_response_tokens": 8,
    },
    "preferences": {"source": "people", "rankings_per_prompt": 1},
    "reward_model": {"epochs": 1, "layers": 1, "groups_per_minibatch": 3},
    "ppo": {
        "steps": 2,
        "prompts_per_step": 4,
        "max_response_tokens": 8,
        "sequences_per_minibatch": 2,
        "checkpoint_every_steps": 1,
    },
    "evaluation": {
        "samples_per_prompt": 1,
        "max_response_tokens": 8,
        "bootstrap_resamples": 200,
    },
    "cluster": {"threads": 1, "object_store_gib": 0.25},
}


class Services:
    """`alignflow up` in a folder; use as a context: `down` at the end."""

    def __init__(self, folder, *options, environ=None):
        self.folder, self.options = folder, options
        self.store = folder / "store"
        self.environ = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
        self.environ |= {"PYTHONPATH": str(ROOT)} | (environ or {})

    def __enter__(self):
        ports = [word for name in PORTS for word in (f"--{name}-port", "0")]
        done = self.alignflow("up", *ports, "--object-store-gib", "0.25", *self.options)
        assert done.returncode == 0, done.stdout + done.stderr
        self.mark = self.record()["mark"]
        return self

    def __exit__(self, *error):
        done = self.alignflow("down")
        assert done.returncode == 0, done.stdout + done.stderr

    def alignflow(self, *arguments, timeout_s=480):
        """A finished command of ours in the folder."""
        return self._run([sys.executable, "-m", "flows.cli", *arguments], timeout_s)

    def prefect(self, *arguments, timeout_s=240):
        """A finished command of Prefect's own, with the address that `up` prints."""
        return self._run([sys.executable, "-m", "prefect", *arguments], timeout_s)

    def _run(self, command, timeout_s):
        environ = self.environ
        if command[2] == "prefect":
            environ = environ | {"PREFECT_API_URL": self.told("prefect_api")}
        return subprocess.run(
            command, cwd=self.folder, env=environ, text=True, capture_output=True, timeout=timeout_s
        )

    def record(self):
        return json.loads((self.store / "services" / "services.json").read_text())

    def told(self, name):
        return self.record()["told"][name]

    def pid(self, service):
        return self.record()["services"][service]["process"]["pid"]

    def log(self, service):
        return (self.store / "services" / "logs" / f"{service}.log").read_text(errors="replace")

    def ask(self, question):
        """What `question(client)` gives."""
        settings = {PREFECT_API_URL: self.told("prefect_api")}
        if "PREFECT_SERVER_API_AUTH_STRING" in self.environ:
            settings[PREFECT_API_AUTH_STRING] = self.environ["PREFECT_SERVER_API_AUTH_STRING"]
        with temporary_settings(settings), get_client(sync_client=True) as client:
            return question(client)

    def flow_processes(self):
        return [p.pid for p in marked_processes(self.mark) if is_flow_run(p)]

    def wait_for_state(self, flow_run_id, *names, timeout_s=420, while_not=("Failed",)):
        """The run, once its state is one of `names`."""
        deadline = time.monotonic() + timeout_s
        while True:
            run = self.ask(lambda client: client.read_flow_run(flow_run_id))
            if run.state.name in names:
                return run
            told = f"{run.state.name}: {run.state.message}"
            assert run.state.name not in while_not, told
            assert time.monotonic() < deadline, told
            time.sleep(1)

    def starts(self, flow_run_id):
        """How often a process began to run the body."""
        states = self.ask(lambda client: client.read_flow_run_states(flow_run_id))
        return sum(state.name == "Running" for state in states)

    def artifacts(self, flow_run_id):
        """Newest content of each artifact of a run, by key."""

        def question(client):
            found = client.request(
                "POST",
                "/artifacts/filter",
                json={"artifacts": {"flow_run_id": {"any_": [str(flow_run_id)]}}, "limit": 200},
            ).json()
            return {one["key"]: one for one in sorted(found, key=lambda one: one["updated"])}

        return self.ask(question)

    def processes(self):
        return [process.pid for process in marked_processes(self.mark)]

    def actors(self):
        """Processes of roles on the Ray of the services."""
        return [p for p in self.processes() if command_of(p).startswith(ROLES)]

    def job_processes(self):
        """Processes of stages that are done as Ray jobs."""
        return [p for p in self.processes() if "flows.job_entry" in command_of(p)]

    def processors_in_use(self):
        """Processors that somebody reserved on the Ray of the services."""
        done = subprocess.run(
            [sys.executable, "-c", _ASK_RAY, self.told("ray")],
            env=self.environ | self.ray_token(),
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    def ray_token(self):
        """Variables with which a process is let in by that Ray."""
        path = self.store / "services" / "ray_token"
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


_ASK_RAY = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
print(ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0))
"""
ROLES = ("ray::TrainableActor", "ray::FrozenActor", "ray::GeneratorActor")


def command_of(pid):
    """A process's command line; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
