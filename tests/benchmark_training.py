"""`python -m tests.benchmark_training FILE`: the steps of measured_runs.csv, measured on this machine's CUDA card.

Writes a table of the same columns, each different run once, with this card's name, peaks and seconds. Weights are
random, so nothing is downloaded; they lie in a scratch folder for the length of the run. A step that fails, for want of
memory for instance, is reported and left out.
"""

import gc
import random
import shutil
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from base_model.train.measured_runs import MODELS, describe, measured_runs, setup_of
from base_model.train.step import plain_tokenizer

STEPS = 5  # the first warms up, and is left out
QUIET = {
    "report_to": [], "save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
    "max_steps": STEPS,
}  # fmt: skip


class Watch(TrainerCallback):
    """The peak (bytes that torch allocated) and the seconds of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.cuda.reset_peak_memory_stats()
        self.start, self.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self.start.record()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end.record()
        torch.cuda.synchronize()
        self.steps.append((torch.cuda.max_memory_allocated(), self.start.elapsed_time(self.end) / 1000))


def measure(run: Any, folder: Path) -> tuple[int, float]:
    """The highest peak of the steps after the first, in bytes, and their median seconds."""
    gc.collect()  # the trainer before holds itself
    weights = with_weights(run.model, folder)
    torch._C._cuda_clearCublasWorkspaces()  # each run counts its own
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()  # what libraries kept of the run before
    watch = Watch()
    trainer_of(run, weights, folder, watch).train()
    peaks, seconds = zip(*watch.steps[1:], strict=True)
    return max(peaks) - before, statistics.median(seconds)


def with_weights(model: str, folder: Path) -> Path:
    """The folder of a model with random weights. Only the last one is kept."""
    place = folder / model
    if not place.exists():
        for other in MODELS:
            shutil.rmtree(folder / other, ignore_errors=True)
        with torch.device("cuda"):
            made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODELS[model]), dtype=torch.bfloat16)
        made.save_pretrained(place)
    return place


def trainer_of(run: Any, weights: Path, folder: Path, watch: Watch) -> Any:
    """The trainer of a run, on texts of random tokens."""
    made = setup_of(run)
    load: dict[str, Any] = {"quantization_config": made.packing} if made.packing is not None else {}
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=made.dtype, device_map={"": 0}, **load)
    if run.prepared:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    texts = run.batch * STEPS * made.args.get("gradient_accumulation_steps", 1)
    dice = random.Random(0)
    rows = [{"input_ids": [dice.randrange(model.config.vocab_size) for _ in range(run.tokens)]} for _ in range(texts)]
    args = made.args | QUIET | {"output_dir": str(folder / "out")}
    if run.trainer == "trl":
        more: dict[str, Any] = {"peft_config": made.adapter, "processing_class": plain_tokenizer()}
        return SFTTrainer(
            model, SFTConfig(**args), train_dataset=datasets.Dataset.from_list(rows), callbacks=[watch], **more
        )
    if made.adapter is not None:
        from peft import get_peft_model

        model = get_peft_model(model, made.adapter)
    rows = [row | {"labels": row["input_ids"], "attention_mask": [1] * run.tokens} for row in rows]
    return Trainer(model, TrainingArguments(**args), train_dataset=datasets.Dataset.from_list(rows), callbacks=[watch])


def main(file: Path) -> None:
    """Measure every run, and write what was measured after each."""
    if not torch.cuda.is_available():
        raise SystemExit("This needs a CUDA card.")
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    runs = measured_runs().drop(columns=["gpu", "peak_bytes", "step_s"]).drop_duplicates()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for run in runs.itertuples(index=False):
            try:
                peak, seconds = measure(run, Path(folder))
            except Exception as error:  # one that fails is no reason to lose the others
                print(f"{describe(run)}: {type(error).__name__}: {error}", flush=True)
                continue
            print(f"{describe(run)}: {peak / 2**30:.2f} GiB, {seconds:.3f} s", flush=True)
            found.append({"gpu": torch.cuda.get_device_name(), **run._asdict(), "peak_bytes": peak, "step_s": seconds})
            pd.DataFrame(found).to_csv(file, index=False)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
