"""Unusable models and data, through the stages that meet them first: each is refused by name.

No engine starts: what cannot work is refused at the door. The command line turns every such error
into one message and exit code 1 (test_cli.py, test_cli_signals.py).
"""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignment.config import load_config
from alignment.errors import AlignmentError, DataError, ModelError, StoreError
from flows.cli import main
from flows.run_record import RunOptions, read_run
from flows.running import running
from flows.shipped_configs import config_path
from flows.stages.base_model import prepare_base_model
from flows.stages.data import prepare_data

WEIGHTS = "model.safetensors"


def first_stages(tmp_path, *settings):
    """Base model and data of a run with these settings, in this process."""
    places = [f"run.store={tmp_path / 'store'}", f"run.runs={tmp_path / 'runs'}"]
    config = load_config([config_path("tiny")], [*places, "cluster.backend=local", *settings])
    with running(config, RunOptions()) as run:
        return prepare_data(run, prepare_base_model(run))


def refused(tmp_path, *settings):
    """The error that the run ends with; it must leave a failed run and no finished stage."""
    with pytest.raises(AlignmentError) as caught:
        first_stages(tmp_path, *settings)
    assert read_run(tmp_path / "runs" / "tiny").state == "failed"
    stage = "data" if isinstance(caught.value, DataError) else "base_model"
    finished = list((tmp_path / "store" / "stages" / stage).glob("*/manifest.json"))
    assert finished == [], f"{stage} was committed"
    return caught.value


def cut_weights(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def remove_weights(folder):
    (folder / WEIGHTS).unlink()


def lose_a_tensor(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.1.input_layernorm.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def spoil_a_number(folder):
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def remove_template(folder):
    (folder / "chat_template.jinja").unlink()


DAMAGED_MODELS = {
    "missing": (shutil.rmtree, "neither `smollm2-135m-instruct`, `tiny`, an existing folder"),
    "config_no_json": (write("config.json", "no"), "config.json is not JSON: Expecting value"),
    "config_empty": (write("config.json", "[]"), "config.json has no `model_type`"),
    "tokenizer": (write("tokenizer.json", "{half"), "no usable tokenizer: Expecting property name"),
    "weights_cut": (cut_weights, "cannot be loaded: .*not fully covered"),
    "weights_missing": (remove_weights, "cannot be loaded: .*no file named model.safetensors"),
    "tensor_missing": (lose_a_tensor, "lacks 1 of the weights .*layers.1.input_layernorm.weight"),
    "not_finite": (spoil_a_number, "weight model.norm.weight has values that are not finite"),
    "no_template": (remove_template, 'no chat template; set `model.chat_template` to "chatml"'),
    "template": (write("chat_template.jinja", "{% for m in messages %}"), "cannot be applied: "),
}


@pytest.mark.parametrize("damage", DAMAGED_MODELS)
def test_a_damaged_model_is_refused_by_name(damage, tiny_model, tmp_path):
    folder = tmp_path / "given"
    shutil.copytree(tiny_model, folder)
    spoil, told = DAMAGED_MODELS[damage]
    spoil(folder)
    error = refused(tmp_path, f"model.source={folder}", "model.chat_template=model")
    assert isinstance(error, ModelError)
    assert re.search(told, str(error)), error
    assert str(folder) in str(error)


def test_sequences_beyond_the_context_are_refused_with_the_numbers(tmp_path):
    with pytest.raises(ModelError) as caught:
        first_stages(tmp_path, "model.max_prompt_tokens=2000", "ppo.max_response_tokens=300")
    assert (
        "`model.max_prompt_tokens` 2000 + `ppo.max_response_tokens` 300 = 2300 tokens, but the "
        "context of 'tiny' is 2048" in str(caught.value)
    )


# --- data ----------------------------------------------------------------------------


def pairs(count, *, question="Question", answer="A good answer."):
    """The text of a file in the hh-rlhf format."""
    lines = []
    for number in range(count):
        prompt = f"\n\nHuman: {question} {number}?\n\nAssistant:"
        pair = {"chosen": f"{prompt} {answer}", "rejected": f"{prompt} A bad answer."}
        lines.append(json.dumps(pair) + "\n")
    return "".join(lines)


UNUSABLE_DATA = {
    "missing": (None, "pairs.jsonl does not exist"),
    "empty": ("", "pairs.jsonl is empty"),
    "half_written": (pairs(20)[:-10], "pairs.jsonl, line 20: the file ends within a line"),
    "no_response": (pairs(3, answer=""), "line 1: the last reply of `chosen` is empty"),
    "too_long": (
        pairs(20, question="long " * 500),
        "no prompts are left; 60 records were refused, the first: prompt hh-0 has 2.* tokens with "
        "the chat template; `model.max_prompt_tokens` accepts 64",
    ),
    "response_too_long": (
        pairs(20, answer="x" * 900),
        "first: response hh-0 has 901 tokens; `data.max_response_tokens` accepts 256: raise it",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE_DATA)
def test_unusable_data_is_refused_with_file_line_and_field(kind, tmp_path):
    path = tmp_path / "pairs.jsonl"
    text, told = UNUSABLE_DATA[kind]
    if text is not None:
        path.write_text(text)
    error = refused(tmp_path, "data.source=hh-rlhf", f"data.path={path}")
    assert isinstance(error, DataError)
    assert re.search(told, str(error)), error
    assert str(path) in str(error)


def test_a_record_without_a_response_is_left_out_and_the_run_says_so(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_text(pairs(20) + pairs(1, question="Silence", answer=""))
    data = first_stages(tmp_path, "data.source=hh-rlhf", f"data.path={path}")
    assert data.metrics["refused"] == 1
    (record,) = map(json.loads, data.path("refused.jsonl").read_text().splitlines())
    assert (record["file"], record["line"]) == ("pairs.jsonl", 21)
    assert record["reason"] == "the last reply of `chosen` is empty"
    printed = capsys.readouterr().out
    assert f"1 of the data's records was left out: {data.path('refused.jsonl')} says why" in printed


def test_imported_rankings_need_comparisons(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(pairs(20))
    folder = tmp_path / "tables"
    assert main(["import", "hh-rlhf", str(path), "--out", str(folder)]) == 0
    (folder / "preference_groups.parquet").unlink()
    imported = ["data.source=parquet", f"data.path={folder}", "preferences.source=imported"]
    error = refused(tmp_path, *imported, "data.heldout_prompts=2")
    assert f"{folder} has no comparison that can be used" in str(error)


# --- two processes -------------------------------------------------------------------


def test_a_second_process_on_the_same_run_is_refused(tmp_path):
    config = load_config(
        [config_path("tiny")], [f"run.store={tmp_path / 's'}", f"run.runs={tmp_path / 'r'}"]
    )
    with (
        running(config, RunOptions()),
        pytest.raises(StoreError, match=r"run tiny is being worked on by process \d+"),
        running(config, RunOptions()),
    ):
        pass
    assert read_run(tmp_path / "r" / "tiny").state == "done"
