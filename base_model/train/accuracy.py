"""Rebuilds docs/accuracy.md in a few minutes: `python -m base_model.train.accuracy [FILE]`."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import format_bytes
from base_model.train.published import check_plans
from base_model.train.runs import as_of_their_day, compare_runs, describe, published_runs

UNPLANNED = "not planned: "  # how the note of a run begins that is listed only
OPENING = """# How right the plans are

This page compares plans with published runs, all those that we know enough about to plan, hits and misses.

`python -m base_model.train.accuracy` rebuilds this page. Sizes count in 1024s. The plans are of the libraries in
requirements.txt; the runs used earlier versions.

A plan should be within 5% of an *allocated* peak (torch's own count). *Reserved* memory, or memory seen from outside
the process, is larger: there a plan should be at most 20% below and 5% above. The peaks of a plain loop, in the first
table, are held to 10%.
"""
LOOPS = """
## Llama-3.2-3B: counts, files, and peaks of a plain loop

The last rows are runs of HF's Trainer, and steps of PEFT's comparison on an L40S.
"""
TIMES = """
## How long the same runs took

Tokens per second of one card. The published pace should be within the planned range, which is 25% of the step's time
either way. How much of its data sheet an A100 sustains was fitted to such runs, so these rows describe the plan more
than they test it. Plans are weakest for bases prepared in float32 and for products with 4-bit weights.
"""
TRAINERS = """
## Runs of HF's Trainer, and of SFTTrainer with whole logits

All with checkpointing, flash attention and torch's AdamW; QLoRA with double quantisation.
"""
MISSES = """
## Why some differ

The libraries have changed two habits since. The column "with its libraries" puts them back: every run in it is then
planned to within 0.01%.

**The loss.** transformers 4.46 to 4.49 copied the shifted logits: at the peak, three float32 copies and one in half
precision lived at once. Today's version shifts the labels instead and makes one copy fewer.

**QLoRA, "baseline" and "accelerated".** In the baseline, `prepare_model_for_kbit_training` made the norms float32.
bitsandbytes returns the dtype that it is given, so the MLP's output is float32, and so is the residual stream from
there on: each checkpoint takes twice the bytes, 4.0 GiB more for 32 layers of 4 x 4,096 tokens. The accelerated runs
leave the norms as they are, as TRL does today. `plan_trainer(prepared=True)` plans the baseline; TRL of that time cast
embedding and head back to bfloat16 afterwards, which today's TRL does not.

**Qwen.** Its README does not say how memory was read. Memory seen from outside the process would also include CUDA's
context, the allocator's reserve and DeepSpeed's buffers.

**Experts.** Mixtral with QLoRA was published at 34 GiB and takes 96 GiB today: transformers 5 keeps the experts of
a layer in one parameter, which bitsandbytes does not pack. `plan_trainer` warns of it.

## Not planned
"""


def accuracy() -> str:
    """The page, as Markdown."""
    runs = published_runs()
    left = runs["note"].str.startswith(UNPLANNED)
    reasons = runs.loc[left, "note"].str.removeprefix(UNPLANNED)
    listed = zip(runs[left].itertuples(), reasons, strict=True)
    skipped = [f"- {describe(run)}, {run.peak_gib} GiB: {reason}" for run, reason in listed]
    compared = compare_runs(runs)
    memory, times = _table(_runs(runs, compared)), _table(_times(compared))
    return "\n".join([OPENING, LOOPS, _table(_checks()), TRAINERS, memory, TIMES, times, MISSES, *skipped, ""])


def _times(compared: pd.DataFrame) -> pd.DataFrame:
    """The pace of each run, published and planned."""
    known = compared.dropna(subset="published_tokens_per_s")
    published, planned = known["published_tokens_per_s"], known["planned_tokens_per_s"]
    ends = zip(known["slow"], known["fast"], strict=True)
    return known[["run", "gpu"]].assign(
        published=published.map("{:,.0f}".format), planned=planned.map("{:,.0f}".format),
        range=[f"{low:,.0f} to {high:,.0f}" for low, high in ends],
        difference=(planned / published - 1).map(_difference),
        within=published.between(known["slow"], known["fast"]).map(_word),
    )  # fmt: skip


def _checks() -> pd.DataFrame:
    table = check_plans()
    return table.assign(difference=table["difference"].map(_difference), match=table["match"].map(_word))


def _runs(runs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The runs as they are shown; those that ran otherwise are planned once more as they did."""
    copied = runs[runs["note"].str.startswith("transformers 4.46")]
    old = as_of_their_day(lambda: compare_runs(copied)).set_index("run")["difference"]
    shown = table[["run", "gpu", "measure"]].assign(
        published=table["published_bytes"].map(format_bytes),
        planned=table["planned_bytes"].map(format_bytes),
        difference=table["difference"].map(_difference),
        match=table["match"].map(_word),
    )
    shown["with its libraries"] = [_difference(old[run]) if run in old else "" for run in table["run"]]
    return shown.assign(note=table["note"], source=table["source"])


def _difference(share: float) -> str:
    """As the notebook prints it: `none` where both are equal, `0.0%` where they nearly are."""
    return f"{share:+.1%}" if abs(share) >= 0.0005 else "none" if not share else "0.0%"


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
