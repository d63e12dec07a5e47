"""The command line: quick help, exit codes, messages, and every command that needs no engine."""

import json
import os
import subprocess
import sys
import time
import tomllib
from argparse import Namespace
from pathlib import Path

import pytest
from summary_records import make_summary

from alignment.config import PipelineConfig, RunConfig, load_config
from flows.cli import main
from flows.derived_sizes import derived_sizes
from flows.environment import OFFLINE, PRIVATE_SERVER, prepare_environment
from flows.manifest import InputReference, StageRequest
from flows.run_record import RunOptions, open_run
from flows.shipped_configs import FOLDER, config_path, shipped_configs
from flows.store import ArtifactStore
from flows.summary import write_summary
from flows.toml_text import toml_text

HEAVY = ("torch", "ray", "prefect", "gradio", "vllm", "transformers", "deepspeed", "rich", "numpy")


@pytest.fixture
def finished_run(tmp_path):
    """A run `one` with one finished stage and a summary, as other commands find it."""
    config = PipelineConfig(
        run=RunConfig(name="one", store=tmp_path / "store", runs=tmp_path / "runs")
    )
    request = StageRequest(
        stage="data",
        stage_version=1,
        inputs={"file": InputReference(digest="a" * 64, source="file pairs.jsonl")},
    )
    with open_run(config, RunOptions()) as record:
        with ArtifactStore(config.run.store).open_stage(request, run="one") as workspace:
            workspace.output("out").write_text("out")
            record.finish_stage(workspace.commit(outputs=["out"]), reused=False)
        write_summary(record.folder, make_summary())
    return record.folder


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; from flows.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print('loaded', [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):  # the machine may be busy: the best of three is the command's own time
        begun = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - begun)
    assert result.returncode == 0
    assert result.stderr.strip() == "loaded []"
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["alignflow run quickstart", "75 waiting for people", "same command again"]),
        (["run", "--help"], ["one: hh_harmless", "--serve-labels", "last one wins"]),
        (["config", "--help"], ["--set KEY=VALUE"]),
        (["report", "--help"], ["--json"]),
        (["lineage", "--help"], ["rankings"]),
        (["import", "--help"], ["hh-rlhf", "--out FOLDER"]),
        (["label", "serve", "--help"], ["--store", "--port", "--round"]),
    ],
)
def test_help_shows_examples(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in [*words, "alignflow"]:
        assert word in text


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run"], ["import", "csv", "a", "--out", "b"]])
def test_wrong_usage_is_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: alignflow" in capsys.readouterr().err


def test_module_runs_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "flows.cli", "report", "none", "--runs", "nowhere"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("alignflow: there is no run 'none'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "none.toml"], "configuration none.toml does not exist"),
        (["run", "quickstart", "--set", "ppo.step=1"], "`ppo.step` is not a setting"),
        (["run", "quickstart", "--set", "ppo.steps"], "is not key=value"),
        (["run", "quickstart", "--set", "ppo.steps=many"], "`ppo.steps`"),
        (["run", "quickstart", "--set", "data.path=a"], "`data.path` has no effect"),
        (
            ["run", "quickstart", "--set", "data.preference_groups=9"],
            "`data.preference_groups` has no effect",
        ),
        (
            ["run", "quickstart", "--set", "ppo.sequences_per_minibatch=7"],
            "32 sequences is not divisible by `ppo.sequences_per_minibatch` 7",
        ),
        (
            ["run", "quickstart", "--set", "preferences.source=imported"],
            'needs comparisons in the data; `data.source = "starter"` has none',
        ),
        (["run", "quickstart", "--run", "a/b"], "`run.name`"),
        (["config", "hh_harmless"], "needs `data.path`"),
        (["label", "serve", "--store", "none"], "nothing waits to be ranked"),
    ],
)
def test_refusals_are_one_message_and_leave_nothing(
    arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_load_and_name_their_run(name):
    overrides = ["data.path=pairs.jsonl.gz"] if name == "hh_harmless" else []
    assert load_config([config_path(name)], overrides).run.name == name


def test_every_shipped_configuration_is_listed_and_valid_toml():
    files = sorted(path.stem for path in FOLDER.iterdir())
    assert shipped_configs() == files
    assert {"hh_harmless", "quickstart", "quickstart_people", "tiny"} <= set(files)
    for name in files:
        tomllib.loads(config_path(name).read_text())


def test_a_file_beats_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path("quickstart") == FOLDER / "quickstart.toml"
    Path("quickstart").write_text("")
    assert config_path("quickstart") == Path("quickstart")


@pytest.mark.parametrize("overrides", [[], ["model.source='a \"b\" é 🙂'", "ppo.value_clip=1e-05"]])
def test_printed_settings_are_read_again(overrides, tmp_path):
    config = load_config([config_path("tiny")], overrides)
    path = tmp_path / "printed.toml"
    path.write_text(toml_text(config))
    assert load_config([path]) == config


def test_config_prints_settings_and_sizes(capsys):
    assert main(["config", "quickstart", "--set", "ppo.prompts_per_step=64"]) == 0
    text = capsys.readouterr().out
    assert tomllib.loads(text)["ppo"]["prompts_per_step"] == 64
    assert "# PPO sequences a step: 64 = 64 prompts x 1 responses" in text


def test_derived_sizes_do_the_arithmetic():
    config = load_config(
        [config_path("tiny")],
        ["ppo.epochs=3", "candidates.prompts=8", "cluster.policy={ranks=2, gpus_per_rank=1}"],
    )
    sizes = dict(derived_sizes(config))
    assert sizes["PPO optimiser steps"].startswith("12 = 2 steps x 3 epochs x 2 minibatches")
    assert sizes["PPO responses in all"].startswith("8 ")
    assert sizes["responses ranked at once"].startswith("3 ")
    assert sizes["rankings wanted"].startswith("24 ")
    assert sizes["processes in PPO"] == "6 for 5 roles, 2 GPUs"


def test_output_may_end_early():
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "config", "quickstart"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    _, errors = process.communicate()
    assert process.returncode == 0
    assert errors == b""


def test_report_for_people_and_programs(finished_run, capsys):
    assert main(["report", "one", "--runs", str(finished_run.parent)]) == 0
    assert "PPO - SFT" in capsys.readouterr().out
    assert main(["report", str(finished_run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"]["gain/gold"]["n"] == 56


def test_lineage_for_people_and_programs(finished_run, capsys):
    assert main(["lineage", str(finished_run)]) == 0
    assert "file: file pairs.jsonl, sha256 aaaaaaaaaaaa" in capsys.readouterr().out
    assert main(["lineage", "one", "--runs", str(finished_run.parent), "--json"]) == 0
    graph = json.loads(capsys.readouterr().out)
    assert [graph["artifacts"][end]["stage"] for end in graph["ends"]] == ["data"]


def test_import_writes_a_new_folder_and_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pairs = [
        {
            "chosen": f"\n\nHuman: Question {i}?\n\nAssistant: A good answer.",
            "rejected": f"\n\nHuman: Question {i}?\n\nAssistant: A bad answer.",
        }
        for i in range(20)
    ]
    lines = [json.dumps(pair) for pair in pairs] + ["not json"]
    Path("pairs.jsonl").write_text("\n".join(lines) + "\n")
    command = ["import", "hh-rlhf", "pairs.jsonl", "--out", "data/harmless"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "1 refused" in text
    assert Path("data/harmless/demonstrations.parquet").exists()
    assert [path.name for path in Path("data").iterdir()] == ["harmless"]
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["import", "hh-rlhf", "none.jsonl", "--out", "data/none"]) == 1
    assert not Path("data/none").exists()


def test_environment_keeps_the_users_values(tmp_path):
    config = PipelineConfig(run=RunConfig(store=tmp_path / "store"))
    environ = {"VLLM_LOGGING_LEVEL": "DEBUG", "PREFECT_HOME": "/elsewhere"}
    prepare_environment(config, environ)
    assert environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert environ["PREFECT_HOME"] == "/elsewhere"
    assert environ["PREFECT_LOCAL_STORAGE_PATH"] == str(tmp_path / "store" / "prefect" / "storage")
    for name in ("DO_NOT_TRACK", "RAY_USAGE_STATS_ENABLED", "GRADIO_ANALYTICS_ENABLED"):
        assert name in environ
    assert environ.items() >= OFFLINE.items()
    assert environ.items() >= PRIVATE_SERVER.items()


def test_environment_with_a_server_and_a_hub_model():
    config = load_config([], ["model.source=someone/some-model"])
    environ = {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}
    prepare_environment(config, environ)
    assert not environ.keys() & OFFLINE.keys()
    assert not environ.keys() & PRIVATE_SERVER.keys()


def test_environment_changes_this_process_only_when_asked():
    before = dict(os.environ)
    prepare_environment(PipelineConfig(), {})
    assert dict(os.environ) == before


def test_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(arguments: Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.commands.run", interrupt)
    assert main(["run", "quickstart", "--set", "run.name=a b"]) == 130
    assert "alignflow run quickstart --set 'run.name=a b'" in capsys.readouterr().err


def test_waiting_for_people_is_code_75(monkeypatch, capsys):
    from flows.waiting import WaitingForPeople

    def wait(arguments: Namespace) -> int:
        raise WaitingForPeople("3 of 9 rankings")

    monkeypatch.setattr("flows.commands.run", wait)
    assert main(["run", "quickstart_people"]) == 75
    assert capsys.readouterr().err.strip() == "3 of 9 rankings"
