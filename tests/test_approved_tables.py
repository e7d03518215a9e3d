"""Tables and texts about two folders, the toy and the replica of Llama-3.2-3B, as somebody found them right."""

from pathlib import Path

import pandas as pd
import pytest

import model_tools as mt
from base_model.train.methods import METHODS
from tests.approving import require_approved

APPROVED = Path(__file__).parent / "approved"
# These name a folder of the moment, or what this machine has.
OF_THE_MACHINE = {"path", "folder", "device", "usable_bytes", "verdict", "largest_context", "modified"}
ROW = {"method": METHODS[-1].name, "checkpointing": True, "batch": 4, "tokens": 128}
WORDS = "What is LoRA? Ein Maß, 測"


TABLES = {
    "list_files": lambda toy, llama: mt.list_files(llama),
    "read_tensors": lambda toy, llama: mt.read_tensors(toy),
    "components": lambda toy, llama: mt.group_parameters(mt.read_tensors(llama), "component"),
    "check_model": lambda toy, llama: mt.check_model(toy),
    "compare_models": lambda toy, llama: mt.compare_models([toy, llama]),
    "describe_tokenizer": lambda toy, llama: mt.describe_tokenizer(toy),
    "describe_data": lambda toy, llama: mt.describe_data(toy, mt.example_data()),
    "text_lengths": lambda toy, llama: mt.text_lengths(toy, mt.example_data()).head(20),
    "show_tokens": lambda toy, llama: mt.show_tokens(toy, WORDS),
    "plan_adapters": lambda toy, llama: mt.plan_adapters(llama),
    "insertion_points": lambda toy, llama: mt.insertion_points(toy, mt.default_adapters(toy)["LoRA r16"]),
    "plan_inference": lambda toy, llama: mt.plan_inference(llama),
    "compare_training": lambda toy, llama: mt.compare_training(toy, 48, 2),
    "training_ladder": lambda toy, llama: mt.training_ladder(toy, 48, 2),
    "compare_gpus": lambda toy, llama: mt.compare_gpus(toy, ["T4", "H100 SXM"], tokens=64, batch=2),
}


@pytest.mark.filterwarnings("ignore::base_model.ModelWarning")
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_as_it_was_approved(name, toy, llama_3b):
    table = TABLES[name](toy, llama_3b)
    kept = [column for column in table.columns if column not in OF_THE_MACHINE]
    with pd.option_context("display.max_columns", None, "display.width", 1000):
        require_approved(
            APPROVED / f"{name}.txt", table[kept].to_string(float_format="{:.4g}".format, max_colwidth=120)
        )


def test_texts_are_as_they_were_approved(toy, tmp_path):
    script = mt.write_script(toy, ROW, tmp_path / "run")
    text = "\n".join([mt.show_prompt(toy, "What is LoRA?"), mt.directory_tree(toy), script.read_text()])
    for name, path in {"DATA": mt.example_data(), "TOY": toy, "FOLDER": tmp_path}.items():
        text = text.replace(str(path), name)
    require_approved(APPROVED / "texts.txt", text)


@pytest.mark.parametrize("devices", [1, 2])
def test_settings_are_as_they_were_approved(devices, toy):
    rows = [ROW | {"method": method.name, "devices": devices, "batch": 2 + devices} for method in METHODS]
    require_approved(APPROVED / f"settings_{devices}.txt", "\n".join(mt.settings(toy, row) for row in rows))
