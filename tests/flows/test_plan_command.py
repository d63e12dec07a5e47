"""`alignflow plan`, and the refusal of a run that is larger than the machine."""

import json

import pytest
from summary_records import make_summary

from alignment.config import PipelineConfig, RunConfig, load_config
from alignment.errors import ClusterError
from alignment.planning.machines import GIB, Machines, Node
from flows.cli import main
from flows.plan_alternatives import with_settings
from flows.planning import make_plan, refuse_what_cannot_fit
from flows.run_record import RunOptions, open_run
from flows.shipped_configs import config_path
from flows.summary import write_summary

HUGE = {
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_attention_heads": 128,
    "num_hidden_layers": 126,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}

CLUSTER = """\
max_workers: 1
head_node_type: gpus
available_node_types:
  gpus:
    max_workers: 1
    resources: {CPU: 96, GPU: 8, memory: 1000000000000, "accelerator_type:A100-80G": 1}
"""


SHARED = ["--set", "cluster.store_is_shared=true"]


def machine(memory_gib):
    node = Node(name="this machine", cpus=2.0, memory=int(memory_gib * GIB))
    return Machines(nodes=(node,), source="test")


def notes_of_quickstart(*settings):
    plan = make_plan(load_config([config_path("quickstart")], settings), machine(24))
    return [note for note in plan.notes if "side_by_side" in note]


def test_the_better_order_of_cpu_roles_is_told():
    """A critic as large as the policy gains by working beside it, a small one loses, and the
    quickstart's comes out even; a method without critic has nobody to work beside the policy.
    """
    as_large, small = "reward_model.layers=30", "reward_model.layers=6"
    assert notes_of_quickstart() == []
    [note] = notes_of_quickstart(as_large)
    assert note.startswith("with `cluster.side_by_side = true` a PPO step would take ")
    assert notes_of_quickstart(as_large, "cluster.side_by_side=true") == []
    assert notes_of_quickstart("cluster.side_by_side=true") == []
    [note] = notes_of_quickstart(small, "cluster.side_by_side=true")
    assert note.startswith("with `cluster.side_by_side = false` a PPO step would take ")
    assert notes_of_quickstart(as_large, "ppo.method=rloo", "ppo.responses_per_prompt=4") == []


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("tiny", []),
        ("quickstart", []),
        ("quickstart_people", []),
        ("learn", []),
        ("hh_harmless", ["data.path=pairs.jsonl.gz"]),
    ],
)
def test_shipped_runs_are_not_refused_on_24_gib(name, more):
    assert refuse_what_cannot_fit(load_config([config_path(name)], more), machine(23.5)) == []


def test_a_run_is_refused_with_role_need_and_memory():
    config = load_config([config_path("quickstart")])
    told = refuse_what_cannot_fit(config, machine(12.0))
    assert len(told) == 1
    assert "stage ppo: policy, critic, reference, reward_model, generator are" in told[0]
    with pytest.raises(ClusterError, match=r"policy .* 4\.0 GiB are available; use a smaller mod"):
        refuse_what_cannot_fit(config, machine(4.0))
    with pytest.raises(ClusterError, match=r"9 = 9 GPUs wanted, 0 in the cluster"):
        refuse_what_cannot_fit(
            with_settings(config, {"cluster.policy.ranks": 9, "cluster.policy.gpus_per_rank": 1}),
            machine(1000),
        )


def test_what_is_not_known_is_not_judged():
    config = load_config([config_path("quickstart")])
    for settings in (
        {"model.source": "someone/unknown"},
        {"cluster.address": "10.0.0.1:6379"},
        {"cluster.backend": "local"},
    ):
        assert refuse_what_cannot_fit(with_settings(config, settings), machine(0.1)) == []


def test_a_model_larger_than_this_machine_stops_run_at_once(tmp_path, monkeypatch, capsys):
    """405 billion parameters, as a folder with nothing but config.json, on the real machine."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "huge"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HUGE))
    arguments = ["quickstart", "--set", f"model.source={folder}"]
    assert main(["run", *arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith("alignflow: stage sft: sft and the roles beside it need at least 60")
    assert "GiB are available; use a smaller model" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["huge"]
    assert main(["plan", *arguments]) == 1
    out = capsys.readouterr().out
    assert "huge, 405,853 million parameters" in out
    assert "too large" in out
    assert "nothing fits these machines" in out


def test_plan_prints_what_a_person_decides_by(capsys):
    assert main(["plan", "quickstart"]) == 0
    out = capsys.readouterr().out
    for word in ("smollm2-135m", "sft x 1", "generator x 1", "AdamW", "placed", "update_policy"):
        assert word in out
    assert "a PPO step about" in out


def test_json_has_a_stable_schema(tmp_path, capsys):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(CLUSTER)
    arguments = ["--cluster", str(cluster), "--model-shape", "qwen2.5-0.5b", "--json"]
    assert main(["plan", "quickstart", *SHARED, *arguments]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["schema_version"] == 1
    assert set(plan) == {
        "schema_version", "run", "model", "machines", "lengths", "fits", "refusal", "stages",
        "ppo_step", "alternatives", "notes",
    }  # fmt: skip
    assert [stage["stage"] for stage in plan["stages"]] == ["sft", "reward_model", "ppo"]
    ppo = plan["stages"][-1]
    assert set(ppo) == {"stage", "verdict", "refusal", "roles", "nodes"}
    for role in ppo["roles"]:
        assert set(role) == {
            "role", "ranks", "gpus", "weights", "gradients", "optimizer", "activations",
            "kv_cache", "buffers", "overhead", "start", "host", "resting", "needed", "available",
            "verdict",
        }  # fmt: skip
    assert set(ppo["nodes"][0]) == {"node", "roles", "used", "certain", "available", "verdict"}
    assert set(plan["ppo_step"]) == {"seconds", "steps", "phases_s", "bottleneck"}
    in_turn = sum(plan["ppo_step"]["phases_s"].values())
    assert plan["ppo_step"]["seconds"] == pytest.approx(in_turn)
    assert plan["alternatives"]
    for alternative in plan["alternatives"]:
        assert set(alternative) == {"settings", "step_s", "gpus", "verdict"}


def test_several_machines_without_a_shared_store_are_refused(tmp_path, capsys):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(CLUSTER)
    arguments = ["plan", "quickstart", "--cluster", str(cluster), "--model-shape", "qwen2.5-0.5b"]
    assert main(arguments) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "refused the cluster has 2 machines" in told
    assert "cluster.store_is_shared = true" in told
    assert "name a place on S3 as `run.shared_store`" in told
    assert main([*arguments, "--set", "run.shared_store=s3://bucket/store"]) == 0
    assert main([*arguments, *SHARED]) == 0
    assert "refused" not in capsys.readouterr().out


def test_an_alternative_fits_every_stage_of_the_run(tmp_path):
    """The policy's ranks are also those of SFT, whose own ZeRO stage may have to change."""
    from alignment.planning.cluster_file import read_cluster_file

    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(CLUSTER)
    machines = read_cluster_file(cluster)
    config = load_config([config_path("quickstart")], ["ppo.precision=bfloat16", SHARED[1]])
    plan = make_plan(config, machines, model_shape="qwen2.5-7b")
    assert plan.alternatives
    for _, settings in plan.alternatives:
        changed = make_plan(with_settings(config, settings), machines, model_shape="qwen2.5-7b")
        assert changed.fits
    assert any("sft.zero_stage" in settings for _, settings in plan.alternatives)


def test_an_unknown_model_asks_for_a_shape(capsys):
    assert main(["plan", "quickstart", "--set", "model.source=someone/unknown"]) == 1
    assert "name its shape with --model-shape: tiny, smollm2-135m" in capsys.readouterr().err


STEP = {
    "step": 1,
    "wall_s": 40.0,
    "ppo/response_tokens_mean": 24.0,
    "time/step_s": 40.0,
    "time/generate_s": 7.0,
    "time/update_policy_s": 70.0,
}


class MeasuredRun:
    """The finished run `one`, whose record a test writes, and the plan against it."""

    def __init__(self, root, capsys):
        self._capsys = capsys
        run = RunConfig(name="one", store=root / "store", runs=root / "runs")
        with open_run(PipelineConfig(run=run), RunOptions()) as record:
            self._folder = record.folder
        self.runs = ["--set", f"run.runs={root / 'runs'}"]
        self.record(STEP)

    def record(self, *steps, **facts):
        memory = make_summary().memory.model_copy(
            update={"peak_pss_gib": {"policy-0": 5.0, "reference-0": 100.0}}
        )
        write_summary(self._folder, make_summary().model_copy(update={"memory": memory, **facts}))
        (self._folder / "metrics").mkdir(exist_ok=True)
        lines = "".join(json.dumps(step) + "\n" for step in steps)
        (self._folder / "metrics" / "ppo.jsonl").write_text(lines)

    def check(self):
        """The comparison, and its figures of memory by role."""
        assert main(["plan", "quickstart", *self.runs, "--against", "one", "--json"]) == 0
        check = json.loads(self._capsys.readouterr().out)
        return check, {c["name"]: c for c in check["memory_above_idle_gib"]}


@pytest.fixture
def measured_run(tmp_path, capsys):
    return MeasuredRun(tmp_path, capsys)


def test_against_a_run_that_recorded_memory_and_phases(measured_run, capsys):
    """Its steps tell no memory, so what the summary has counts."""
    check, memory = measured_run.check()
    assert set(check) == {"run", "memory_above_idle_gib", "phase_shares", "step_s"}
    assert set(memory) == {"policy-0", "reference-0"}
    assert not memory["reference-0"]["within"]
    shares = {c["name"]: c for c in check["phase_shares"]}
    assert set(shares) == {"generate", "update_policy"}
    assert shares["update_policy"]["measured"] == pytest.approx(10 / 11)
    assert sum(c["predicted"] for c in shares.values()) == pytest.approx(1.0)
    assert main(["plan", "quickstart", *measured_run.runs, "--against", "one"]) == 0
    assert "GiB above idle" in capsys.readouterr().out
    assert main(["plan", "quickstart", *measured_run.runs, "--against", "none"]) == 1


def test_memory_is_planned_for_the_step_with_the_longest_responses(measured_run):
    _, before = measured_run.check()
    long = STEP | {"step": 3, "ppo/response_tokens_mean": 48.0}
    measured_run.record(STEP, STEP | {"step": 2}, long)  # the median stays what it was
    _, after = measured_run.check()
    assert after["policy-0"]["predicted"] > before["policy-0"]["predicted"]


def test_the_steps_memory_counts_before_the_summary(measured_run):
    """The summary's is of the last command alone, and with the evaluation."""
    _, before = measured_run.check()
    high, low = ({"memory/gib_of_policy-0": gib} for gib in (6.0, 1.0))
    measured_run.record(STEP | high, STEP | low | {"step": 2})  # resumed between them
    _, after = measured_run.check()
    assert set(after) == {"policy-0"}
    assert after["policy-0"]["measured"] - before["policy-0"]["measured"] == pytest.approx(1.0)


def test_a_stage_from_the_store_is_not_compared(measured_run):
    """Where its training was reused, the reward model is one that only scores."""
    step = STEP | {"memory/gib_of_reward_model-0": 1.0, "memory/gib_of_sft-0": 1.0}
    measured_run.record(step)
    _, trained = measured_run.check()
    measured_run.record(step, reused=("sft", "reward_model"))
    _, reused = measured_run.check()
    assert (set(trained), set(reused)) == ({"sft-0", "reward_model-0"}, {"reward_model-0"})
    assert reused["reward_model-0"]["predicted"] < trained["reward_model-0"]["predicted"] / 2
