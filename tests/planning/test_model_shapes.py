"""Shapes against published parameter counts and against the files of real folders."""

import json

import pytest
from safetensors.torch import load_file

from alignment.errors import ConfigError, ModelError
from alignment.planning.known_shapes import KNOWN_SHAPES, known_shape, shape_named, shape_of_source
from alignment.planning.model_shapes import read_model_shape, shape_of_settings

# As published: model cards, or the totals of the models' safetensors indices.
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "codellama-34b": 33_743_970_304,
    "llama-2-70b": 68_976_648_192,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
}


@pytest.mark.parametrize("name", sorted(set(KNOWN_SHAPES) - {"tiny"}))
def test_table_has_the_published_number_of_parameters(name):
    assert KNOWN_SHAPES[name].parameters == PUBLISHED[name]


def test_a_folder_is_counted_from_its_headers(tiny_model):
    weights = load_file(tiny_model / "model.safetensors")
    shape = read_model_shape(tiny_model)
    assert shape.parameters == sum(w.numel() for w in weights.values())
    assert shape.other_parameters == 0
    plain = {"name": "tiny", "other_parameters": 0}
    table = KNOWN_SHAPES["tiny"]
    assert {f: getattr(shape, f) for f in shape.__slots__} | plain == {
        f: getattr(table, f) for f in table.__slots__
    }


def test_without_weights_the_configuration_counts(tiny_model, tmp_path):
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    assert read_model_shape(tmp_path).parameters == KNOWN_SHAPES["tiny"].parameters


@pytest.mark.parametrize(
    ("hub_id", "name"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("smollm2-135m-instruct", "smollm2-135m"),
        ("tiny", "tiny"),
    ],
)
def test_hub_ids_find_their_shape(hub_id, name):
    found = known_shape(hub_id)
    assert found is not None
    assert found.name == name


def test_unknown_shapes_are_not_guessed():
    assert shape_of_source("someone/unknown-9b") is None
    with pytest.raises(ConfigError, match=r"'gpt-9' is not known; accepted: tiny, smollm2-135m"):
        shape_named("gpt-9")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_size": None}, "`hidden_size` is None"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0; expected a positive integer"),
        ({"num_local_experts": 8}, "only dense models"),
    ],
)
def test_settings_that_describe_no_dense_decoder_are_refused(tiny_model, change, told):
    settings = json.loads((tiny_model / "config.json").read_text()) | change
    with pytest.raises(ModelError, match=told):
        shape_of_settings(settings, name="x", source="config.json")


def test_a_folder_of_two_models_or_half_a_file_is_refused(tiny_model, tmp_path):
    settings = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 40}))
    weights = (tiny_model / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="incomplete or mixes two models"):
        read_model_shape(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(ModelError, match="is no safetensors file"):
        read_model_shape(tmp_path)
    with pytest.raises(ModelError, match=r"has no config.json"):
        read_model_shape(tmp_path / "none")


def test_fewer_layers_leave_the_vocabulary():
    shape = KNOWN_SHAPES["smollm2-135m"]
    cut = shape.first_layers(12)
    assert shape.parameters - cut.parameters == 18 * shape.layer_parameters
    with pytest.raises(ConfigError, match=r"`reward_model.layers` is 31, but smollm2-135m has 30"):
        shape.first_layers(31)
