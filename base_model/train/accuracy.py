"""Rebuilds docs/accuracy.md in a few minutes: `python -m base_model.train.accuracy [FILE]`."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import format_bytes
from base_model.train.measured_runs import compare_measured, measured_runs, short
from base_model.train.published import check_plans
from base_model.train.runs import as_of_their_day, compare_runs, describe, published_runs

UNPLANNED = "not planned: "  # how the note of a run begins that is listed only
OPENING = """# How right the plans are

This page compares plans with steps that we measured on a card, and with published runs, all those that we know enough
about to plan: hits and misses.

`python -m base_model.train.accuracy` rebuilds this page. Sizes count in 1024s. The plans are of the libraries in
requirements.txt; the published runs used earlier versions.

A plan should be within 5% of an *allocated* peak (torch's own count). *Reserved* memory, or memory seen from outside
the process, is larger: there a plan should be at most 20% below and 5% above. The peaks of a plain loop, in the first
table, are held to 10%.
"""
MEASURED = """
## Steps that we measured

{peaks} of {runs} peaks are within 5%, {times} of {runs} times within the planned range. These are steps of SFTTrainer,
or of HF's Trainer where it says so, on an H100 and an H200, with the libraries of requirements.txt, but torch 2.11;
with random weights, random tokens and sdpa. The peak is torch's own count, the time a median.
`python -m tests.benchmark_training FILE` measures the same steps on a card of yours.

Nothing was fitted to the peaks. One plan, Phi-3-mini with QLoRA, was 11% too high at first and showed a fault: it kept
a mask for each layer, which checkpointing lets go. Three quarters of the plans lie about 48 MiB below their peaks: on
these cards cuBLAS takes two workspaces of 32 MiB, on others of 8 MiB, which plans assume. The others miss up to 135 MiB
more, which torch's allocator leaves unsplit at the end of a block.

The last four are the largest batches that `recommend` gave for that H100, run by the script that it writes
(`try_training`, whose times are means). They were planned before they ran, and nothing was changed since but QLoRA's
time, by 0.3%: each fits, with a peak within 0.1% of its plan.

The pace of the two cards was fitted to the other steps, so their times describe the plan more than they test it. For
the CPU beside the card one figure, 25 microseconds per launch, stands for all machines. Both hosts here were slower: a
short batch waits for them, and took up to twice as long as planned. The host of the A100 below was faster. Hence the
wide range there, from half the time to twice. Copies to the machine's memory, which offloading and paged optimizers
make, are not planned.
"""
LOOPS = """
## Llama-3.2-3B: counts, files, and peaks of a plain loop

The last rows are runs of trainers, and steps of PEFT's comparison on an L40S.
"""
TIMES = """
## How long the same runs took

Tokens per second of one card. The published pace should be within the planned range, which is 25% of the step's time
either way, and wider where a short batch waits for the CPU beside the card. How much of its data sheet an A100 sustains
was fitted to such runs, so these rows describe the plan more than they test it.
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
    opening = [OPENING, *_measured(), LOOPS, _table(_checks())]
    return "\n".join([*opening, TRAINERS, memory, TIMES, times, MISSES, *skipped, ""])


def _measured() -> list[str]:
    """What was measured for this page, in words and as a table."""
    compared = compare_measured(measured_runs())
    counts = {"runs": len(compared), "peaks": compared["match"].sum(), "times": compared["within"].sum()}
    shown = compared[["run"]].assign(
        gpu=compared["gpu"].map(short), measured=compared["measured_bytes"].map(format_bytes),
        planned=compared["planned_bytes"].map(format_bytes), difference=compared["difference"].map(_difference),
        match=compared["match"].map(_word), seconds=compared["measured_s"].map("{:.3f}".format),
        plan=compared["planned_s"].map("{:.3f}".format),
        range=[f"{low:.3f} to {high:.3f}" for low, high in zip(compared["low_s"], compared["high_s"], strict=True)],
        within=compared["within"].map(_word),
    )  # fmt: skip
    return [MEASURED.format(**counts), _table(shown)]


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
