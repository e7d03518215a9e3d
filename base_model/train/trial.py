"""A real run of a few steps on this machine, by the script that is written for others, compared with its plan."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, format_bytes, require_whole, visible, warn
from base_model.plan.machine import usable_bytes
from base_model.scratch import scratch_folder
from base_model.text.data import read_data, watched
from base_model.text.lengths import text_lengths
from base_model.train.gpus import this_card
from base_model.train.methods import adapter_of, packing_of
from base_model.train.script import write_script
from base_model.train.settings import Choice, Precision, arguments, precision_here
from base_model.train.time import plan_time
from base_model.train.trainer import plan_trainer

COLUMNS = ("check", "planned", "measured", "difference")
ROOT = Path(__file__).resolve().parents[2]
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
# A launcher's place for its own process: the script would wait for the others.
LAUNCHERS = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
LEAST = 3  # steps: the first warms up, the last may be listened to, and one between them is timed
FAR = 3  # times what is planned: a plan is off by up to twice, a busy machine by more
HELD_OUT = 12  # texts at least beyond those that are trained on: the script holds out one in ten


def try_training(
    config: Any, choice: Choice, model: str, revision: str | None, folder: Path, data: Any, steps: int
) -> pd.DataFrame:
    """The table of `compared` for a run in a folder that is gone afterwards. Raises ModelError.

    `folder` is where the model lies, as `text_lengths` reads it.
    """
    require_whole("steps", steps, LEAST)
    here = precision_here(choice)
    _require_room(planned(config, choice, here, choice.batch, choice.tokens), here)
    with scratch_folder() as place:
        rows = _texts(config, choice, steps) if data is None else _sample(data, choice.batch * steps)
        if data is not None:
            text_lengths(folder, rows, choice.tokens)  # first where a template can do no harm
        script = write_script(config, choice, model, revision, place / "run", rows)
        return compared(config, choice, run_script(script, steps))


def _texts(config: Any, choice: Choice, steps: int) -> Any:
    """Texts of the planned length, of tokens at random."""
    import datasets

    dice, words = random.Random(0), config.get_text_config().vocab_size
    number = _with_held_out(choice.batch * steps)
    texts = ([dice.randrange(words) for _ in range(choice.tokens)] for _ in range(number))
    return datasets.Dataset.from_list([{"input_ids": text} for text in texts])


def _sample(data: Any, texts: int) -> Any:
    """So many texts of the data at random, and some to hold out."""
    dataset = read_data(data)
    return dataset.shuffle(seed=0).select(range(min(len(dataset), _with_held_out(texts))))


def _with_held_out(texts: int) -> int:
    """How many texts there must be, so that these are left to train on."""
    return texts + max(HELD_OUT, texts // 5)


def planned(config: Any, choice: Choice, here: Precision, batch: int, tokens: int) -> int:
    """The peak of a step of this batch here, in bytes."""
    adapter, packing = adapter_of(config, choice.method), packing_of(choice.method)
    args = arguments(choice, here) | {"per_device_train_batch_size": batch}
    plan = plan_trainer(config, args, adapter, packing, tokens, model_init_kwargs={"dtype": here.dtype})
    return int(plan["peak_bytes"][0])


def _seconds(config: Any, choice: Choice, here: Precision, batch: int, tokens: int) -> float | None:
    """The planned time of a step here; None for an accelerator that is not in `gpus`."""
    on = this_card(here.device)
    if on is None:
        return None
    adapter, packing = adapter_of(config, choice.method), packing_of(choice.method)
    args = arguments(choice, here) | {"per_device_train_batch_size": batch}
    load = {"dtype": here.dtype}
    plan = plan_time(config, args, adapter, packing, tokens, on["gpu"], model_init_kwargs=load)
    return float(plan["step_s"][0])


def _require_room(peak: int, here: Precision) -> None:
    """A machine that swaps stands still for everybody: stop before."""
    usable = usable_bytes(here.device)
    if peak > usable:
        raise ModelError(
            f"The plan needs {format_bytes(peak)}, but {here.device} has {format_bytes(usable)} free. Try a row "
            "with a smaller batch, fewer tokens or checkpointing, or a machine with more memory."
        )


def run_script(script: Path, steps: int, *options: str) -> list[dict[str, Any]]:
    """Run a script of `write_script` for some steps in a process of its own; what `watch` recorded of each step.

    Its output goes to train.log next to it. An interrupt ends it. Raises ModelError if it fails.
    """
    record, log = script.with_name("steps.jsonl"), script.with_name("train.log")
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS} | QUIET
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "base_model.train.watch", str(record), str(script), "--steps", str(steps)]
    with log.open("wb") as said:
        process = subprocess.Popen([*command, *options], env=environment, stdout=said, stderr=said)
    try:
        _wait(process, record, steps)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise ModelError(_told(process.returncode, log))
    return _recorded(record)


def _wait(process: "subprocess.Popen[bytes]", record: Path, steps: int) -> None:
    """Until it ends, with a progress bar where somebody watches."""
    from tqdm.auto import tqdm

    with tqdm(total=steps, desc="Training", unit="step", disable=not watched()) as bar:
        while process.poll() is None:
            time.sleep(0.1)
            bar.update(len(_recorded(record)) - bar.n)


def _recorded(record: Path) -> list[dict[str, Any]]:
    lines = record.read_text().splitlines(keepends=True) if record.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _told(code: int, log: Path) -> str:
    """Why the run ended, in its own last words."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    words = visible(lines[-1])[:300] if lines else "it said nothing"
    if code == -9:
        words = "the system killed it, as it does when memory runs out"
    return f"The run ended with an error: {words.rstrip('.')}. Correct what it names, or try a smaller batch."


def compared(config: Any, choice: Choice, steps: list[dict[str, Any]]) -> pd.DataFrame:
    """Plan and measurement, in `COLUMNS`: the peak (bytes) and the seconds of a step, each at its own batch."""
    import numpy as np

    here = precision_here(choice)
    peaks = [step for step in steps if step["peak_bytes"] is not None]
    timed = [step for step in steps[1:] if step["seconds"] is not None]
    rows = []
    if peaks:
        top = max(peaks, key=lambda step: step["peak_bytes"])
        plan = planned(config, choice, here, top["batch"], top["tokens"])
        rows.append(_row(f"peak of {top['batch']} x {top['tokens']:,} tokens (bytes)", plan, top["peak_bytes"]))
    if timed:
        tokens = round(float(np.mean([step["tokens"] for step in timed])))
        seconds = float(np.mean([step["seconds"] for step in timed]))
        plan_s = _seconds(config, choice, here, timed[0]["batch"], tokens)
        rows.append(_row(f"seconds per step of {timed[0]['batch']} x {tokens:,} tokens", plan_s, seconds))
        if plan_s and seconds > FAR * plan_s:
            warn("A step took much longer than planned. Was the machine busy with something else, or short of memory?")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(check: str, planned: float | None, measured: float) -> list[Any]:
    nan = float("nan")
    return [check, planned or nan, measured, measured / planned - 1 if planned else nan]


def losses(script: Path) -> pd.DataFrame:
    """The loss on the held-out part as a script's run has logged it: `step`, `loss`."""
    state = json.loads((script.parent / "checkpoints" / "trainer_state.json").read_text())
    logged = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    return pd.DataFrame({"step": list(logged), "loss": list(logged.values())})
