"""config.json describes a model. It never chooses what runs, which weights are read, or what a limit applies to."""

import json
import shutil

import pytest

import model_tools as mt
from base_model.architecture.config import read_architecture
from tests.folders import write_toy


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("sound") / "toy", chat=False)


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "folder")


def change(folder, name="config.json", **fields):
    settings = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(settings | fields))


KERNEL = {"attribute_map": {"note": "_attn_implementation_internal"}, "note": "evil/kernel"}


def test_no_map_of_names_reaches_the_loader_of_kernels(folder):
    change(folder, **KERNEL)
    assert read_architecture(folder)._attn_implementation_internal is None
    assert mt.load_model(folder)[0].config._attn_implementation == "sdpa"


def test_no_map_of_names_chooses_other_weights(folder):
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({name: one + 1 for name, one in tensors.items()}, folder / "other.safetensors", {"format": "pt"})
    change(folder, attribute_map={"note": "transformers_weights"}, note="other.safetensors")
    model, _ = mt.load_model(folder)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())


def test_no_map_of_names_evades_a_limit(folder):
    many = {"attribute_map": {"note": "num_hidden_layers"}, "note": 10**6, "num_hidden_layers": 2}
    change(folder, **many)
    assert read_architecture(folder).num_hidden_layers == 2
    assert mt.check_model(folder)["match"].all()
    nested = many | {"model_type": "gemma3_text"}
    change(folder, model_type="gemma3", text_config=nested, vision_config=many)
    config = read_architecture(folder)
    assert (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers) == (2, 2)


OWN = [
    "to_dict", "get_text_config", "sub_configs_defaults", "base_model_tp_plan", "is_heterogeneous", "extra_files",
    "_auto_class", "__class__", "__dict__", "distributed_config", "fusion_config", "output_attentions",
    "_experts_implementation_internal", "nested_rope_parameter_keys", "_post_init_done",
]  # fmt: skip


@pytest.mark.parametrize("value", ["x", {"a": "b"}, True])
def test_config_replaces_nothing_of_transformers_own(value, folder):
    change(folder, **dict.fromkeys(OWN, value))
    assert mt.check_model(folder)["match"].all()
    config, text = mt.load_model(folder)[0].config, json.dumps({"a": "b"})
    assert config._attn_implementation == "sdpa"
    assert text not in json.dumps(config.to_dict())


def test_a_list_hides_nothing(folder):
    change(folder, notes=[{"attribute_map": {"a": "b"}, "_attn_implementation": "evil", "kept": 1}])
    assert read_architecture(folder).notes == [{"kept": 1}]


def test_a_mapped_name_is_refused_where_it_comes_through(folder, monkeypatch):
    """Should a name that steers ever pass the first check, the built config is held to the same."""
    monkeypatch.setattr("base_model.architecture.config._steers", lambda name, machinery: False)
    plain = (folder / "config.json").read_text()
    for fields in (KERNEL, {"attribute_map": {}}, {"get_mtp_config": 1}):
        change(folder, **fields)
        with pytest.raises(mt.ModelError, match="not a model setting"):
            read_architecture(folder)
        (folder / "config.json").write_text(plain)


def test_what_is_mapped_by_the_class_itself_is_held_to_the_limits(folder):
    """n_layer is what gpt2 calls its layers: the limit applies to what is built."""
    change(folder, model_type="gpt2", n_layer=5_000)
    with pytest.raises(mt.ModelError, match="5,000"):
        read_architecture(folder)


def test_the_tokenizer_reads_no_config_of_its_own_accord(folder, monkeypatch):
    from transformers import AutoConfig, PreTrainedConfig

    def never(*_, **__):
        raise AssertionError("config.json was read unchecked")

    monkeypatch.setattr(AutoConfig, "from_pretrained", never)
    monkeypatch.setattr(PreTrainedConfig, "from_pretrained", never)
    change(folder, **KERNEL)
    assert len(mt.load_model(folder)[1]) == 260


@pytest.mark.parametrize("name", ["fast_tokenizer_files", "init_inputs"])
def test_the_tokenizers_settings_choose_no_other_files(name, folder):
    shutil.copy(folder / "tokenizer.json", folder / "tokenizer.4.0.0.json")
    change(folder, "tokenizer_config.json", **{name: ["tokenizer.4.0.0.json"]})
    with pytest.raises(mt.ModelError, match=name):
        mt.describe_tokenizer(folder)


def test_numbers_that_json_cannot_write_are_read_as_transformers_writes_them(folder):
    """Mamba 2 and its kin end their range of time steps at infinity."""
    limit = [0.0, {"__float__": "Infinity"}]
    change(folder, model_type="mamba2", time_step_limit=limit, num_heads=2, head_dim=32, expand=2)
    assert list(read_architecture(folder).time_step_limit) == [0.0, float("inf")]
