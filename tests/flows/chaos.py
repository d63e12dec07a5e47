"""`make chaos`: kill -9 at random moments whatever a run consists of, and compare with a whole run.

    python tests/flows/chaos.py --kills 12 --seed 0
    python tests/flows/chaos.py --jobs      stages as Ray jobs, whose processes are killed too

A tiny run of the deployment is started, ranked over HTTP and finished while server, worker, flow
process, ranking page, Ray head and role actors are killed. Weights, candidates and rankings must
be, byte by byte, those of a run that nobody disturbed; nothing may be done twice or be left.
"""

import argparse
import copy
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import httpx
from services_of_a_test import TINY_PEOPLE, Services, command_of

from flows.stages.preferences import label_store_path
from labeling_ui.store import LabelStore
from labeling_ui.visible_text import visible_text

KINDS = ("actor", "flow", "server", "ray", "worker", "labels")
KINDS_WITH_JOBS = (*KINDS, "job")
COMPARED = ("model.safetensors", "value_head.safetensors", "candidates.parquet")
PROMPTS = 6
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 3.0, 18.0
ENDED = ("Completed", "Failed", "Cancelled")


def settings(name, ppo_steps):
    chosen = copy.deepcopy(TINY_PEOPLE)
    chosen["run"] = {"name": name}
    chosen["candidates"]["prompts"] = PROMPTS
    chosen["ppo"]["steps"] = ppo_steps
    return chosen


@dataclass
class Kill:
    at_s: float
    kind: str
    pid: int
    during: str


@dataclass
class Labeler(threading.Thread):
    """Ranks over HTTP whatever is open, in an order that the texts decide; never gives up."""

    services: Services
    receipts: list = field(default_factory=list)
    pause_s: float = 2.0

    def __post_init__(self):
        super().__init__(daemon=True)
        self.enough = threading.Event()

    __hash__ = threading.Thread.__hash__

    def run(self):
        while not self.enough.wait(self.pause_s):
            try:
                with httpx.Client(base_url=self.services.told("labels"), timeout=20) as site:
                    self._rank(site)
            except (httpx.HTTPError, OSError, ValueError, KeyError):
                continue  # the page is away: the same cards again later

    def _rank(self, site):
        site.post("/sign-in", data={"name": "Ada"})
        parts = site.get("/rank/config").json()["components"]
        (component,) = (part["id"] for part in parts if part["type"] == "html")

        def call(function, data):
            body = {
                "data": data,
                "component_id": component,
                "fn_name": function,
                "session_hash": "chaos",
            }
            answer = site.post("/rank/gradio_api/component_server", json=body).json()
            return answer["data"]["data"] if "ok" in answer["data"] else answer["data"]

        while card := call("rank_next", {})["card"]:
            texts = [response["text"] for response in card["responses"]]
            tiers = [sorted(set(texts)).index(text) for text in texts]
            sent = {
                "assignment_id": card["assignment_id"],
                "submission_id": f"chaos-{card['assignment_id']}",
                "tiers": tiers,
                "active_seconds": 5,
            }
            if call("rank_submit", sent)["counted"]:
                self.receipts.append(sent["submission_id"])
            if self.enough.wait(self.pause_s):
                return


def whole_run(folder, name, ppo_steps):
    """The same run without a disturbance, in one process on a private Ray."""
    services = Services(folder)
    words = [
        f"--set={section}.{key}={json.dumps(value)}"
        for section, fields in settings(name, ppo_steps).items()
        for key, value in fields.items()
    ]
    waiting = services.alignflow("run", "tiny", *words)
    assert waiting.returncode == 75, waiting.stdout + waiting.stderr
    with LabelStore.open(label_store_path(services.store)) as labels:
        (status,) = labels.rounds()
        while card := labels.claim(status.round_id, "Ada"):
            texts = [visible_text(response.text) for response in card.responses]
            tiers = [sorted(set(texts)).index(text) for text in texts]
            sent = f"whole-{card.assignment_id}"
            labels.submit(card.assignment_id, "Ada", submission_id=sent, tiers=tiers)
    done = services.alignflow("run", "tiny", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return services


def disturbed_run(folder, name, ppo_steps, kills, seed, jobs):
    """The run with kills; gives services, what was killed, confirmed rankings, and seconds."""
    began = time.monotonic()
    with Services(folder, "--max-restarts", "100", "--tick-s", "3") as services:
        parameters = {"config": settings(name, ppo_steps)}
        if jobs:
            parameters["config"]["cluster"]["job_server"] = services.told("ray_dashboard")
        done = services.prefect(
            "deployment", "run", "align/pipeline", "--params", json.dumps(parameters)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        labeler = Labeler(services)
        labeler.start()
        try:
            kinds = KINDS_WITH_JOBS if jobs else KINDS
            killed = disturb(services, name, kills, random.Random(seed), kinds)
            wait_until_completed(services, name)
        finally:
            labeler.enough.set()
            labeler.join(60)
    return services, killed, labeler.receipts, time.monotonic() - began


def disturb(services, name, kills, dice, kinds):
    """Kill `kills` processes at random moments, every kind once before any twice."""
    began, killed, order = time.monotonic(), [], []
    while len(killed) < kills:
        order = order or dice.sample(kinds, len(kinds))
        kind = order.pop()
        time.sleep(dice.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S))
        while not processes_of(services, kind):
            state = run_state(services)
            assert state not in ENDED, f"{state} after {len(killed)} kills; next: {kind}"
            time.sleep(0.2)
        time.sleep(dice.uniform(0.0, 4.0))
        if pids := processes_of(services, kind):
            pid = dice.choice(pids)
            during = stage_at_work(services, name)
            os.kill(pid, signal.SIGKILL)
            killed.append(Kill(time.monotonic() - began, kind, pid, during))
            print(f"  killed {kind} (process {pid}) during {during}", flush=True)
        else:
            order.append(kind)
    return killed


def processes_of(services, kind):
    """Processes that a kill of this kind may take."""
    if kind == "flow":
        return services.flow_processes()
    if kind == "actor":
        return services.actors()
    if kind == "job":
        return services.job_processes()
    if kind == "ray":
        return [p for p in services.processes() if "/gcs_server " in command_of(p)]
    pid = services.pid(kind)
    return [pid] if pid in services.processes() else []


def run_state(services):
    """Name of the run's state; None while the server is away."""
    try:
        (run,) = services.ask(lambda client: client.read_flow_runs())
    except Exception:
        return None
    return run.state.name


def wait_until_completed(services, name, timeout_s=900):
    deadline = time.monotonic() + timeout_s
    while (state := run_state(services)) != "Completed":
        assert state not in ENDED, state
        assert time.monotonic() < deadline, f"{state} during {stage_at_work(services, name)}"
        time.sleep(1)


def stage_at_work(services, name):
    try:
        record = json.loads((services.folder / "runs" / name / "run.json").read_text())
    except (OSError, ValueError):
        return "start"
    working = [stage for stage, one in record["stages"].items() if one["state"] == "working"]
    return working[0] if working else record["state"]


def contents(services):
    """Digests of weights, candidates and rankings; fails where a stage was committed twice."""
    found = {}
    for path in sorted(services.store.glob("stages/*/*/manifest.json")):
        manifest = json.loads(path.read_text())
        stage = manifest["stage"]
        assert not any(name.startswith(f"{stage}/") for name in found), f"{stage} twice"
        for output in manifest["outputs"]:
            if output["path"].rpartition("/")[2] in COMPARED:
                found[f"{stage}/{output['path']}"] = output["sha256"]
    with LabelStore.open(label_store_path(services.store)) as labels:
        (status,) = labels.rounds()
        said = sorted(
            (r.prompt_id, r.response_ids, r.tiers) for r in labels.rankings(status.round_id)
        )
    found["rankings"] = sha256(json.dumps(said).encode()).hexdigest()
    return found


def steps_done(services, name):
    """The steps of PPO in the order in which they were written down."""
    lines = (services.folder / "runs" / name / "metrics" / "ppo.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def compare(folder, *, kills, seed, ppo_steps, jobs=False):
    """Both runs, and what has to hold; gives the kills and the digests."""
    name = "chaos"
    (folder / "whole").mkdir()
    (folder / "killed").mkdir()
    print("a run that nobody disturbs", flush=True)
    expected = contents(whole_run(folder / "whole", name, ppo_steps))
    print("a run that is disturbed", flush=True)
    services, killed, receipts, seconds = disturbed_run(
        folder / "killed", name, ppo_steps, kills, seed, jobs
    )
    found = contents(services)
    tell(killed, expected, found, seconds)
    assert found == expected
    assert steps_done(services, name) == list(range(1, ppo_steps + 1))
    assert len(set(receipts)) == PROMPTS, receipts
    assert services.processes() == []
    return killed


def tell(killed, expected, found, seconds):
    print(f"\n{'second':>7}  {'killed':<8} {'process':>8}  during")
    for kill in killed:
        print(f"{kill.at_s:>7.0f}  {kill.kind:<8} {kill.pid:>8}  {kill.during}")
    print(f"\n{'content':<44} {'whole run':<14} {'killed run':<14} equal")
    for name in sorted(expected | found):
        one, other = expected.get(name, ""), found.get(name, "")
        print(f"{name:<44} {one[:12]:<14} {other[:12]:<14} {'yes' if one == other else 'NO'}")
    print(f"\n{len(killed)} kills, {seconds:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ppo-steps", type=int, default=60)
    parser.add_argument("--jobs", action="store_true", help="stages as Ray jobs")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"in {folder}")
    try:
        compare(
            folder, kills=given.kills, seed=given.seed, ppo_steps=given.ppo_steps, jobs=given.jobs
        )
    except AssertionError as error:
        sys.exit(f"FAILED: {error}")


if __name__ == "__main__":
    main()
