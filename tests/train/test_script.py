"""The script that is written for a row: it is read as Python, and run as a user would, on a toy."""

import ast
import csv
import json
import re
import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

import model_tools as mt
from base_model.architecture.config import read_architecture
from base_model.train.methods import METHODS, adapter_of, packing_of
from base_model.train.settings import arguments, choice_of, precision_here
from tests.conftest import ROOT

LORA = {"method": "LoRA r16, all linear", "checkpointing": True, "batch": 2, "tokens": 64}
FULL = LORA | {"method": "full fine-tuning", "checkpointing": False}
PAIRS = [{"prompt": f"What is {n}?", "completion": f" It is the number {n}."} for n in range(12)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}"}]} for n in range(12)
]
TEXTS = [{"text": f"A line of text, number {n}."} for n in range(12)]


def write_data(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(rows)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture
def run(monkeypatch):
    """Run a script as `python train.py OPTIONS`, in this process, which has the libraries loaded already."""

    def run(script: Path, *options: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", [str(script), *options])
        runpy.run_path(str(script), run_name="__main__")
        return json.loads((script.parent / "checkpoints" / "trainer_state.json").read_text())["log_history"]

    return run


def constants(script: Path) -> dict[str, object]:
    """The values at the top of the script, read without running it."""
    assigned = [node for node in ast.parse(script.read_text()).body if isinstance(node, ast.Assign)]
    plain = {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}
    return {name: ast.literal_eval(value) for name, value in plain.items() if isinstance(value, ast.Constant)}


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_settings_give_the_objects_that_were_planned(toy, method):
    row = LORA | {"method": method, "batch": 3, "tokens": 128}
    made: dict = {}
    exec(mt.settings(toy, row), made)
    config, choice = read_architecture(toy), choice_of(row)
    adapter, packing, here = adapter_of(config, choice.method), packing_of(choice.method), precision_here(choice)
    for name, value in arguments(choice, here).items():
        assert getattr(made["args"], name) == value, name
    assert made.get("adapter") == adapter
    assert str(made["dtype"]) == f"torch.{here.dtype}"
    if packing is not None:
        packing.bnb_4bit_compute_dtype = made["dtype"]
        assert made["quantization"].to_dict() == packing.to_dict()
    else:
        assert "quantization" not in made


@pytest.mark.parametrize(
    ("cuda", "bf16", "dtypes"), [(True, True, ("bfloat16", "bfloat16")), (True, False, ("float16", "float32"))]
)
def test_the_precision_is_that_of_the_card(toy, monkeypatch, cuda, bf16, dtypes):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    for row, dtype in zip((LORA, FULL), dtypes, strict=True):
        text, made = mt.settings(toy, row), {}
        exec(text[: text.index("args = ")], made)
        here = precision_here(choice_of(row))
        assert (here.device, here.bf16, here.fp16, here.dtype) == ("cuda", bf16, not bf16, dtype)
        assert (made["bf16"], made["dtype"]) == (bf16, getattr(torch, dtype))


@pytest.mark.parametrize("kind", [pd.Series, lambda row: pd.DataFrame([row]), dict])
def test_a_row_may_come_in_three_shapes(toy, kind):
    assert mt.settings(toy, kind(LORA)) == mt.settings(toy, LORA)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (None, "a row of `recommend`"),
        (pd.DataFrame([LORA, LORA]), "a row of `recommend`"),
        ({"method": "LoRA r16, all linear"}, "lacks checkpointing, batch, tokens"),
        (LORA | {"method": "magic"}, "one of full fine-tuning; "),
        (LORA | {"batch": 0}, "batch must be a whole number"),
        (LORA | {"batch": pd.NA}, "batch must be a whole number"),
        (LORA | {"tokens": "__import__('os')"}, "tokens must be a whole number"),
        (LORA | {"checkpointing": "yes"}, "True or False"),
        (LORA | {"devices": -1}, "devices must be a whole number"),
        (LORA | {"devices": 1025}, "devices must be a whole number from 1 to 1,024"),
        (LORA | {"method": pd.NA}, "one of full fine-tuning; "),
        (pd.concat([pd.Series(LORA)] * 2), "one of full fine-tuning; "),
    ],
)
def test_what_is_no_row_is_refused(toy, tmp_path, row, words):
    with pytest.raises(mt.ModelError, match=words):
        mt.write_script(toy, row, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_a_person_can_read_it(toy, tmp_path, method):
    script = mt.write_script(toy, LORA | {"method": method}, tmp_path)
    text = script.read_text()
    code = text.split('"""', 2)[2].splitlines()
    assert 40 <= len([line for line in code if line.strip() and not line.lstrip().startswith("#")]) <= 70
    assert max(map(len, text.splitlines()[:6] + code)) <= 120 + len(str(toy))
    assert ("--merge" in text) == ("full" not in method)
    assert f"MODEL = {str(toy)!r}  # its path on this machine" in text and text.count("# its path on this machine") == 2
    assert text.index("Delete {args.output_dir} to start over") < text.index("trainer.train(")


def test_a_run_holds_out_saves_goes_on_and_merges(toy, tmp_path, run):
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    data = write_data(tmp_path / "data.jsonl", PAIRS)
    script = mt.write_script(toy, LORA, tmp_path / "run", data)
    before = [entry["step"] for entry in run(script, "--steps", "2") if "eval_loss" in entry]
    assert before[0] == 0 and before[-1] == 2
    first = load_file(script.with_name("adapter") / "adapter_model.safetensors")
    assert (script.parent / "checkpoints" / "checkpoint-2").is_dir() and not script.with_name("merged").exists()

    log = run(script, "--steps", "4", "--merge")
    assert [entry["step"] for entry in log if "eval_loss" in entry][-1] == 4
    assert {0, 2} <= {entry["step"] for entry in log if "eval_loss" in entry}  # the log of the first run goes on
    second = load_file(script.with_name("adapter") / "adapter_model.safetensors")
    assert any(not first[name].equal(second[name]) for name in first)

    base = AutoModelForCausalLM.from_pretrained(toy)
    merged, ids = AutoModelForCausalLM.from_pretrained(script.with_name("merged")), base.dummy_inputs["input_ids"]
    plain, after = base(input_ids=ids).logits, merged(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(base, script.with_name("adapter"))(input_ids=ids).logits
    assert (adapted - after).abs().max() < 0.01 * (plain - after).abs().max()
    assert (script.with_name("merged") / "tokenizer.json").is_file()


@pytest.mark.parametrize(("name", "rows"), [("a.json", CHATS), ("b.csv", TEXTS), ("c.parquet", CHATS)])
def test_other_files_and_formats_run_too(toy, tmp_path, run, name, rows):
    script = mt.write_script(toy, LORA, tmp_path / "run", write_data(tmp_path / name, rows))
    assert [entry["eval_loss"] > 0 for entry in run(script, "--steps", "1") if "eval_loss" in entry][:1] == [True]


def test_a_data_set_in_hand_is_saved_beside_it_and_full_fine_tuning_runs(toy, tmp_path, run):
    import datasets

    script = mt.write_script(toy, FULL, tmp_path, datasets.Dataset.from_list(PAIRS))
    assert constants(script)["DATA"] == str(tmp_path / "data.parquet")
    run(script, "--steps", "1")
    assert (tmp_path / "model" / "model.safetensors").is_file() and not (tmp_path / "adapter").exists()


def test_the_methods_are_what_they_are_called(toy):
    config = read_architecture(toy)
    made = {method.name: adapter_of(config, method) for method in METHODS}
    assert [name for name, one in made.items() if getattr(one, "use_dora", False)] == ["DoRA r16, all linear"]
    assert [name for name, one in made.items() if one is None] == ["full fine-tuning", "full fine-tuning, 8-bit Adam"]
    published = {method.name: method.accuracy for method in METHODS if method.accuracy is not None}
    assert published == {
        "full fine-tuning": 0.472, "LoRA r16, attention": 0.478, "LoRA r16, all linear": 0.494,
        "DoRA r16, all linear": 0.469, "IA-3": 0.311,
    }  # fmt: skip


def test_a_row_that_was_read_from_text_means_the_same(toy):
    assert mt.settings(toy, LORA | {"checkpointing": "False", "verdict": pd.NA}) == mt.settings(
        toy, LORA | {"checkpointing": False}
    )
    with pytest.warns(mt.ModelWarning, match=r"does not fit: \\x1b\[31mred"):
        mt.settings(toy, LORA | {"verdict": "does not fit", "why": "\x1b[31mred"})


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (None, "given by its path"),
        (5, "given by its path"),
        ("a\0b", "cannot be written"),
        ("\ud800", "cannot be written"),
    ],
)
def test_a_folder_that_no_disk_can_hold(toy, folder, words):
    with pytest.raises(mt.ModelError, match=words):
        mt.write_script(toy, LORA, folder)


@pytest.mark.parametrize("name", ["train.py", "requirements.txt"])
def test_nothing_is_overwritten(toy, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(mt.ModelError, match=rf"holds {name} already"):
        mt.write_script(toy, LORA, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_a_link_to_nowhere_is_not_followed(toy, tmp_path):
    (tmp_path / "train.py").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(mt.ModelError, match="already"):
        mt.write_script(toy, LORA, tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_a_file_is_told(toy, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(mt.ModelError, match="cannot be written"):
        mt.write_script(toy, LORA, tmp_path / "file")


@pytest.mark.parametrize(
    "odd", ["'); import os; os.abort() #", '"""\nraise SystemExit("""', "{model} {0} %s", "a[b]*?.", "\u202eevil\ttab"]
)
def test_hostile_names_stay_data(toy, tmp_path, run, odd):
    import shutil

    model = tmp_path / f"model {odd.replace('/', '')}"
    shutil.copytree(toy, model)
    data = write_data(tmp_path / f"{odd}.jsonl", TEXTS)
    script = mt.write_script(model, LORA, tmp_path / "run", data)
    assert constants(script)["MODEL"] == str(model)
    assert "\u202e" not in script.read_text()
    run(script, "--steps", "1")
    assert script.with_name("adapter").is_dir()


def test_a_hub_id_keeps_its_revision(toy, tmp_path, monkeypatch):
    from base_model.train import planning

    monkeypatch.setattr(planning, "folder_of", lambda model: toy)
    script = mt.write_script("org/name@v1.2", LORA, tmp_path)
    assert (constants(script)["MODEL"], constants(script)["REVISION"]) == ("org/name", "v1.2")
    assert len(re.findall(r"revision=REVISION", script.read_text())) == 3


def test_requirements_are_the_projects_own_pins(toy, tmp_path):
    ours = re.findall(r"^\S+==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    mt.write_script(toy, LORA, tmp_path / "lora")
    mt.write_script(toy, LORA | {"method": "QLoRA r16, all linear"}, tmp_path / "qlora")
    lora, qlora = ((tmp_path / name / "requirements.txt").read_text().split() for name in ("lora", "qlora"))
    assert {pin.partition("==")[0] for pin in lora} == {
        "torch", "transformers", "peft", "trl", "datasets", "accelerate",
    }  # fmt: skip
    assert set(qlora) - set(lora) == {next(pin for pin in ours if pin.startswith("bitsandbytes"))}
    assert set(qlora) < set(ours)


def test_several_devices_get_a_config_that_accelerate_takes(toy, tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    script = mt.write_script(toy, LORA | {"devices": 4, "method": "QLoRA r16, all linear"}, tmp_path)
    config = load_config_from_file(str(script.with_name("fsdp.yaml")))
    assert (config.num_processes, config.distributed_type.value, config.fsdp_config["fsdp_version"]) == (4, "FSDP", 2)
    assert "accelerate launch --config_file fsdp.yaml train.py" in script.read_text()
    assert "bnb_4bit_quant_storage=dtype" in script.read_text()


def test_one_example_is_too_few(toy, tmp_path):
    with pytest.raises(mt.ModelError, match="one example"):
        mt.write_script(toy, LORA, tmp_path / "run", write_data(tmp_path / "one.jsonl", TEXTS[:1]))


def test_a_folder_with_an_adapter_is_refused(toy, tmp_path):
    import shutil

    shutil.copytree(toy, tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(mt.ModelError, match=r"adapter_config\.json"):
        mt.write_script(tmp_path / "model", LORA, tmp_path / "run")


def test_a_row_that_does_not_fit_is_written_with_a_warning(toy, tmp_path):
    row = LORA | {"verdict": "does not fit", "why": "One text needs 2.00 GiB more."}
    with pytest.warns(mt.ModelWarning, match=r"does not fit: One text needs 2\.00 GiB more"):
        assert mt.write_script(toy, row, tmp_path / "run").is_file()
    row = LORA | {"verdict": "not planned", "batch": pd.NA, "why": "No such scan."}
    with pytest.raises(mt.ModelError, match=r"could not be planned here.*No such scan"):
        mt.settings(toy, row)


def test_a_folder_without_weights_has_a_script_and_a_warning(toy, tmp_path):
    import shutil

    shutil.copytree(toy, tmp_path / "model")
    for weights in (tmp_path / "model").glob("*.safetensors*"):
        weights.unlink()
    with pytest.warns(mt.ModelWarning, match="has no weights yet"):
        mt.write_script(tmp_path / "model", LORA, tmp_path / "run")


def test_the_path_of_the_script_is_as_its_folder_was_given(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mt.write_script(toy, LORA, "run") == Path("run/train.py")
