"""The cards that people tune on, by their makers' figures, and this machine's CPU, measured.

The figures lie in gpus.csv, each row with its source. They are dense ones (no sparsity) that accumulate in float32, as
torch's matrix products do: a GeForce card runs these at half the rate that its box states, and a sheet that gives
TFLOPS "with sparsity" gives twice the dense rate. Where a sheet gives no such figure, it is computed as its
generation's whitepaper does: SMs x operations per SM and clock x boost clock. float32 is that of torch's default,
without TF32.
"""

import difflib
import re
from functools import cache
from pathlib import Path

import pandas as pd

from base_model import ModelError, visible, warn
from base_model.plan.machine import row_of_machine
from base_model.plan.speed import cpu_flops, memory_bandwidth

COLUMNS = ("gpu", "memory_bytes", "bandwidth", "bf16_flops", "fp16_flops", "fp32_flops", "source")
FLOPS = {"bf16_flops": "bfloat16", "fp16_flops": "float16", "fp32_flops": "float32"}
CPU = "CPU"
# Words that say nothing about which card it is, and what drivers call the same thing.
NOISE = {"nvidia", "geforce", "tesla", "amd", "instinct", "apple", "gpu", "generation", "edition"}
PLAIN = re.compile(r"rtx|gtx|pcie|sxm|\d+gb")  # what one leaves out of a name; "4070" without "ti" means the 4070
SAME = {"sxm2": "sxm", "sxm4": "sxm", "sxm5": "sxm", "hbm3": "sxm", "hbm2e": "", "gen5": ""}


def gpus(measure: bool = False) -> pd.DataFrame:
    """All known cards, one row each; with `measure`, this machine's CPU as well (see `this_cpu`).

    Columns: `gpu`, `memory_bytes` (as sold; a driver and error correction hold some of it back; of an Apple chip the
    most that can be ordered), `bandwidth` (bytes/s), `bf16_flops`, `fp16_flops`, `fp32_flops` (operations/s, dense,
    accumulating in float32; <NA> where a card has no bfloat16), `source` (with what is special about the card).
    """
    sheet = pd.read_csv(Path(__file__).with_name("gpus.csv"))
    table = pd.DataFrame({"gpu": sheet["gpu"], "source": sheet["source"]})
    table["memory_bytes"] = (sheet["memory_gib"] * 2**30).astype("int64")
    table["bandwidth"] = (sheet["bandwidth_gb_s"] * 1e9).round()
    for column in FLOPS:
        table[column] = (sheet[column.replace("flops", "tflops")] * 1e12).round().astype("Float64")
    table = table[list(COLUMNS)]
    return pd.concat([table, this_cpu().to_frame().T.astype(table.dtypes)], ignore_index=True) if measure else table


@cache
def this_cpu() -> pd.Series:
    """This machine's CPU as a row of `gpus`, measured once per process in about two seconds.

    `memory_bytes` is the RAM, or a container's limit; `bandwidth` that of matrix-vector products in float32; the
    operations those of a linear layer's training step, in each dtype.
    """
    memory = row_of_machine("cpu")["total_bytes"]
    bandwidth = memory_bandwidth("cpu", "float32", seconds=0.3)
    flops = [cpu_flops(dtype) for dtype in FLOPS.values()]
    source = "measured on this machine: matrix-vector products, and the products of a linear layer's training step"
    return pd.Series([CPU, int(memory), bandwidth, *flops, source], index=list(COLUMNS), name=CPU)


def card(name: str) -> pd.Series:
    """The row of `gpus` for a name: "4090", "rtx 4090", "A100-SXM4-80GB", "l40s"; "cpu" measures this one.

    Where a name fits several cards of equal memory, a ModelWarning says so and the slowest is taken. Raises
    ModelError, with the nearest names, for an unknown card, and for one sold with different memories.
    """
    if is_cpu(name):
        return this_cpu()
    table = gpus()
    words = _words(name)
    rests = [_words(gpu) - words if words and words <= _words(gpu) else None for gpu in table["gpu"]]
    plain = [rest is not None and all(PLAIN.fullmatch(word) for word in rest) for rest in rests]
    found = table[plain if any(plain) else [rest is not None for rest in rests]]
    if len(found.drop_duplicates(list(COLUMNS[1:-1]))) == 1:
        return found.iloc[0]
    if found.empty or found["memory_bytes"].nunique() > 1:
        raise ModelError(_unclear(name, list(found["gpu"]), list(table["gpu"])))
    slowest = found.sort_values(["bandwidth", "fp16_flops"]).iloc[0]
    others = " or ".join(found["gpu"])
    warn(f"{visible(name)!r} could be {others}: taken as {slowest['gpu']}, the slowest. Give its full name.")
    return slowest


def this_card(device: str) -> pd.Series | None:
    """The row of `gpus` for a device of this machine, such as "cuda"; None, with a ModelWarning, where none is known.

    The CPU is measured; an accelerator is found by what its driver calls it.
    """
    if is_cpu(device):
        return this_cpu()
    try:
        return card(row_of_machine(device)["name"])
    except ModelError as error:
        warn(f"Times are not planned. {error}")
        return None


def is_cpu(name: str) -> bool:
    """Whether the name of a card is "cpu", this machine's own. Raises ModelError for what is no name."""
    if not isinstance(name, str):
        raise ModelError(f"A card is given by its name, such as 'RTX 4090', not {name!r}. `gpus()` lists all.")
    return name.strip().lower() == CPU.lower()


def _words(name: str) -> frozenset[str]:
    """What tells cards apart in a name: "GeForce RTX4090Ti" and "rtx 4090 ti" give the same."""
    text = re.sub(r"(\d+) ?gi?b\b", r" \1gb ", name.lower())
    text = re.sub(r"\b(rtx|gtx)(?=\d)", r"\1 ", text)
    text = re.sub(r"(?<=\d)(ti|pro|max)\b", r" \1", text)
    words = [SAME.get(word, word) for word in re.findall(r"[a-z0-9]+", text)]
    return frozenset(word for word in words if word and word not in NOISE)


def _unclear(name: str, found: list[str], known: list[str]) -> str:
    """The sentence for a name that fits no card, or several that differ."""
    if found:
        return f"{visible(name)!r} could be {' or '.join(found)}, which differ in memory. Give its full name."
    short = {" ".join(word for word in gpu.lower().split() if word not in NOISE): gpu for gpu in known}
    near = [short[match] for match in difflib.get_close_matches(name.lower(), short, n=3, cutoff=0.4)]
    hint = f"The nearest are {', '.join(near)}. " if near else ""
    return f"The card {visible(name)!r} is not known. {hint}`gpus()` in Python lists all."
