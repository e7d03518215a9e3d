"""docs/accuracy.md, made anew: `python -m base_model.train.accuracy [FILE]`, some minutes."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import format_bytes
from base_model.train.published import check_plans
from base_model.train.runs import as_of_their_day, compare_runs, describe, published_runs

OPENING = """# How right the plans are

This page sets every published figure that we know well enough to plan beside its plan, hits and misses.

`python -m base_model.train.accuracy` makes it anew. Sizes count in 1024s. The plans are of the libraries in
requirements.txt; the runs used those of their day.

A peak that was *allocated* (torch's own count) should be met within 5%. *Reserved* memory, and what is seen from
outside the process, is more than is allocated: a plan should lie between 20% below it and 5% above.
"""
LOOPS = """
## Llama-3.2-3B: counts, files, and peaks of a plain loop

The last rows are runs of HF's Trainer, and steps of PEFT's comparison on an L40S.
"""
TIMES = """
## How long the same runs took

Tokens per second of one card. A planned pace should be within the range that is printed with it, 25% to either side.
The shares of its sheet that an A100 sustains were set by such runs, so these rows describe the plan more than they test
it. Runs whose base was prepared in float32, and products with 4-bit weights, are planned least well.
"""
TRAINERS = """
## Runs of HF's Trainer, and of SFTTrainer with whole logits

Checkpointing, flash attention, AdamW of torch; QLoRA with double quantisation.
"""
MISSES = """
## Why some differ

Two habits of the libraries have changed since. With them put back, in the column "with its libraries", each of
these runs of A100s is planned to 0.01%.

**The loss.** transformers 4.46 to 4.49 copied the shifted logits: at the peak, three float32 copies and one in half
precision lived at once. Today's shifts the labels instead, and takes one copy less.

**QLoRA, "baseline" and "accelerated".** In the baseline, `prepare_model_for_kbit_training` made the norms float32.
bitsandbytes returns the dtype that it is given, so the MLP's output is float32, and so is the residual stream from
there on: each checkpoint takes twice the bytes, 4.0 GiB more for 32 layers of 4 x 4,096 tokens. The accelerated runs
leave the norms as they are, as TRL does today. `plan_trainer(prepared=True)` plans the baseline; TRL of that time cast
embedding and head back to bfloat16 afterwards, which today's does not.

**Qwen.** Its README does not say how memory was read. What is seen from outside the process holds CUDA's context, the
allocator's reserve and DeepSpeed's buffers, too.

**Experts.** QLoRA of Mixtral is published at 34 GiB, and takes 96 today: transformers 5 keeps the experts of a layer in
one parameter, which bitsandbytes does not pack. `plan_trainer` warns of it.

## Not planned
"""


def accuracy() -> str:
    """The page, as Markdown."""
    runs = published_runs()
    left = runs["note"].str.startswith("not planned")
    skipped = [f"- {describe(run)}, {run.peak_gib} GiB: {run.note}" for run in runs[left].itertuples()]
    compared = compare_runs(runs)
    memory, times = _table(_runs(runs, compared)), _table(_times(compared))
    return "\n".join([OPENING, LOOPS, _table(_checks()), TRAINERS, memory, TIMES, times, MISSES, *skipped, ""])


def _times(compared: pd.DataFrame) -> pd.DataFrame:
    """The pace of each run beside its plan."""
    known = compared.dropna(subset="published_tokens_per_s")
    published, planned = known["published_tokens_per_s"], known["planned_tokens_per_s"]
    ends = zip(known["slow"], known["fast"], strict=True)
    return known[["run", "gpu"]].assign(
        published=published.map("{:,.0f}".format), planned=planned.map("{:,.0f}".format),
        range=[f"{low:,.0f} to {high:,.0f}" for low, high in ends],
        difference=(planned / published - 1).map("{:+.1%}".format),
        within=published.between(known["slow"], known["fast"]).map(_word),
    )  # fmt: skip


def _checks() -> pd.DataFrame:
    table = check_plans()
    return table.assign(difference=table["difference"].map("{:+.1%}".format), match=table["match"].map(_word))


def _runs(runs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The runs as they are shown; those that ran otherwise are planned once more as they did."""
    copied = runs[runs["note"].str.startswith("transformers 4.46")]
    old = as_of_their_day(lambda: compare_runs(copied)).set_index("run")["difference"]
    shown = table[["run", "gpu", "measure"]].assign(
        published=table["published_bytes"].map(format_bytes),
        planned=table["planned_bytes"].map(format_bytes),
        difference=table["difference"].map("{:+.1%}".format),
        match=table["match"].map(_word),
    )
    shown["with its libraries"] = [f"{old[run]:+.1%}" if run in old else "" for run in table["run"]]
    return shown.assign(note=table["note"], source=table["source"])


def _word(match: bool) -> str:
    return "yes" if match else "**no**"


def _table(table: pd.DataFrame) -> str:
    rows: list[Any] = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def main(path: Path) -> None:
    """Write the page."""
    text = accuracy()
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/accuracy.md"))
