"""A `train.py` that a person would write for a row of `recommend`, the pins that it needs, a launcher's config."""

import glob
import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any

from base_model import ModelError, brief, visible
from base_model.architecture.config import require_loadable, skeleton_of
from base_model.read.folder import in_home
from base_model.text.data import KINDS, example_data, name_of, quiet, read_data
from base_model.train.settings import Choice, body

PINNED = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
PROJECT = "base-model-visualize"
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
SEED = 42
SCRIPT, PINS, LAUNCH, DATA = "train.py", "requirements.txt", "fsdp.yaml", "data.parquet"

HEAD = '''"""{method}, by TRL's SFTTrainer.

    {run}             # one epoch, resuming from the last checkpoint if there is one
    {run} --steps 20  # a short run, to check that it works
{merge_usage}"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
{imports}
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

MODEL = {model}{elsewhere}
{revision}DATA = {data}{pattern}
HERE = Path(__file__).parent  # everything is written next to this script
SEED = {seed}

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=-1, help="steps in all; one epoch unless given")
{merge_option}options = parser.parse_args()

'''
MORE = (
    'output_dir=str(HERE / "checkpoints"),',
    "max_steps=options.steps,",
    'eval_strategy="steps",',
    "eval_steps=100,",
    "eval_on_start=True,  # the loss before the first step, which is the one to beat",
    "save_steps=100, save_total_limit=2,  # older ones are deleted",
    "seed=SEED,",
)
RUN = """
rows = load_dataset("{kind}", data_files=DATA, split="train")
# One text in ten, at most 200, is held out: it tells whether tuning helps where the model has not seen the answer.
parts = rows.train_test_split(test_size=min(200, max(1, len(rows) // 10)), seed=SEED)

# Conversations are written in the tokenizer's chat template. With prompt and completion, only the completion is
# learned; with `messages`, every turn (or only the answers: assistant_only_loss=True).
tokenizer = AutoTokenizer.from_pretrained(MODEL{with_revision})
# Given only a name, TRL would load the weights in float32, which takes twice the memory of 16 bits.
model = AutoModelForCausalLM.from_pretrained(
    MODEL,{and_revision}
    dtype=dtype,{quantization}
    attn_implementation="{attention}",{flash}
)
trainer = SFTTrainer(
    model, args, train_dataset=parts["train"], eval_dataset=parts["test"],
    processing_class=tokenizer,{adapter}
)
{adapter_dtype}if checkpoint := get_last_checkpoint(args.output_dir):
    print(f"Resuming from {{checkpoint}}. Delete {{args.output_dir}} to start over.")
trainer.train(resume_from_checkpoint=checkpoint)
trainer.save_state()  # with all losses
trainer.save_model(HERE / "{result}")
"""
ADAPTER_DTYPE = """if args.fp16:  # TRL makes the adapter of packed weights bfloat16, which float16's scaler refuses
    for parameter in filter(lambda one: one.requires_grad, model.parameters()):
        parameter.data = parameter.data.float()
"""
MERGE = """
if options.merge and trainer.is_world_process_zero():
    # Merge into the weights as they are stored, not into the 4-bit copies used for tuning.
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto"{with_revision})
    PeftModel.from_pretrained(base, HERE / "adapter").merge_and_unload().save_pretrained(HERE / "merged")
    tokenizer.save_pretrained(HERE / "merged")
"""
OPTION = 'parser.add_argument("--merge", action="store_true", help="write the merged model at the end")\n'
ELSEWHERE = "  # its path on this machine: change it on another one"
MERGED = "# train to the end, then merge the adapter into the model, to serve it"
FLASH = '  # "flash_attention_2" is faster for long texts, once flash-attn is installed'
FSDP = """# accelerate launch --config_file {launch} {script}
# FSDP2: each device keeps its part of the weights, gradients and optimizer states, and gathers one layer at a time.
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: true
  fsdp_offload_params: false
  fsdp_cpu_ram_efficient_loading: true
  fsdp_state_dict_type: FULL_STATE_DICT  # so that the adapter is saved whole
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: {devices}
rdzv_backend: static
same_network: true
use_cpu: false
"""


def script_text(config: Any, choice: Choice, model: str, revision: str | None, data: str) -> str:
    """The text of train.py; `model` is an absolute folder or a Hub id, `data` an absolute file."""
    values = _of_model(config, model, revision) | _of_data(data) | _of_method(config, choice)
    parts = [HEAD.format(**values), body(config, choice, _more(choice)), RUN.format(**values)]
    return "".join([*parts, MERGE.format(**values)] if choice.method.adapter else parts)


def _of_model(config: Any, model: str, revision: str | None) -> dict[str, str]:
    """What the script says of the model. Names are written by `repr` alone, and stay data whatever they hold."""
    attention = "sdpa" if getattr(skeleton_of(config), "_supports_sdpa", False) else "eager"
    return {
        "model": repr(model), "elsewhere": ELSEWHERE if Path(model).is_absolute() else "",
        "attention": attention, "flash": FLASH if attention == "sdpa" else "",
        "revision": f"REVISION = {revision!r}\n" if revision else "",
        "and_revision": "\n    revision=REVISION," if revision else "",
        "with_revision": ", revision=REVISION" if revision else "",
    }  # fmt: skip


def _of_data(data: str) -> dict[str, str]:
    """What it says of the data; `datasets` takes a name for a pattern."""
    pattern = glob.escape(data)
    kind, odd = KINDS[Path(data).suffix], f"{ELSEWHERE}; a pattern: [[] stands for [, and so on"
    return {"seed": repr(SEED), "data": repr(pattern), "kind": kind, "pattern": odd if pattern != data else ELSEWHERE}


def _of_method(config: Any, choice: Choice) -> dict[str, str]:
    """What it says of the method: how it is run, and what is left out without an adapter or without 4 bits."""
    run = f"accelerate launch --config_file {LAUNCH} {SCRIPT}" if choice.devices > 1 else f"python {SCRIPT}"
    packed, tuned = choice.method.bits == 4, choice.method.adapter is not None
    return {
        "method": choice.method.name, "run": run, "imports": _imports(config, choice),
        "merge_usage": f"    {run} --merge     {MERGED}\n" if tuned else "", "merge_option": OPTION if tuned else "",
        "quantization": "\n    quantization_config=quantization," if packed else "",
        "adapter": " peft_config=adapter," if tuned else "", "adapter_dtype": ADAPTER_DTYPE if packed else "",
        "result": "adapter" if tuned else "model",
    }  # fmt: skip


def _more(choice: Choice) -> tuple[str, ...]:
    return (f"per_device_eval_batch_size={choice.batch!r},", *MORE)


def _imports(config: Any, choice: Choice) -> str:
    """The lines for PEFT and transformers."""
    from base_model.train.methods import adapter_of

    adapter = adapter_of(config, choice.method)
    peft = f"from peft import {type(adapter).__name__}, PeftModel\n" if adapter is not None else ""
    packing = ", BitsAndBytesConfig" if choice.method.bits == 4 else ""
    return f"{peft}from transformers import AutoModelForCausalLM, AutoTokenizer{packing}"


def requirements(choice: Choice) -> str:
    """The lines of requirements.txt: this project's own pins of what the script needs."""
    wanted = {*PINNED, *(("bitsandbytes",) if choice.method.bits == 4 or "8bit" in choice.method.optim else ())}
    lines = REQUIREMENTS.read_text().splitlines() if REQUIREMENTS.is_file() else importlib.metadata.requires(PROJECT)
    pins = [re.split(r"[\s;#]", line.strip(), maxsplit=1)[0] for line in lines or []]
    return "".join(f"{pin}\n" for pin in pins if pin.partition("==")[0] in wanted)


def write_script(config: Any, choice: Choice, model: str, revision: str | None, folder: Any, data: Any) -> Path:
    """Write the files, none of which may be there, and give the path of train.py, as the folder is given."""
    require_loadable(config)
    dataset = read_data(example_data() if data is None else data)
    if len(dataset) < 2:
        raise ModelError(f"{name_of(data)} holds one example, and one is held out. Give a file with two or more.")
    given = in_home(folder)
    here = given.absolute()
    in_hand = not (data is None or isinstance(data, str | Path))
    file = here / DATA if in_hand else in_home(example_data() if data is None else data).absolute()
    texts = {SCRIPT: script_text(config, choice, model, revision, str(file)), PINS: requirements(choice)}
    if choice.devices > 1:
        texts[LAUNCH] = FSDP.format(launch=LAUNCH, script=SCRIPT, devices=choice.devices)
    try:
        _require_free(here, [*texts, *([DATA] if in_hand else [])])
        here.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with (here / name).open("x", encoding="utf-8") as written:
                written.write(text)
        if in_hand:
            with quiet():
                dataset.to_parquet(here / DATA)
    except (OSError, ValueError) as error:  # ValueError: a name that no disk can hold
        raise ModelError(f"The script cannot be written to {visible(str(here))}: {brief(error)}.") from error
    return given / SCRIPT


def _require_free(folder: Path, names: list[str]) -> None:
    """Nothing of the user's is overwritten."""
    taken = [name for name in names if os.path.lexists(folder / name)]
    if taken:
        raise ModelError(
            f"{visible(str(folder))} holds {taken[0]} already. Give another folder, or move that file away."
        )


def questions(data: Any, most: int) -> list[str]:
    """What to ask the tuned model: beginnings of texts that it was not trained on, by the script's own split."""
    rows = read_data(example_data() if data is None else data)
    held_out = rows.train_test_split(test_size=min(200, max(1, len(rows) // 10)), seed=SEED)["test"]
    return [asked for asked in map(_question, held_out.select(range(min(most, len(held_out))))) if asked]


def _question(row: dict[str, Any]) -> str:
    """The prompt of an example, what its user says first, or the first words of its text; "" where it holds tokens."""
    said = row.get("prompt") or row.get("messages") or row.get("conversations") or row.get("text") or ""
    if isinstance(said, list):
        turns = ((turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))) for turn in said)
        return next((str(content) for role, content in turns if role in ("user", "human")), "")
    return said if "prompt" in row else " ".join(said.split()[:12])
