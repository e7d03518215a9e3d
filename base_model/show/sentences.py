"""Each table in a sentence that says what this run has found."""

from collections.abc import Callable

import pandas as pd

from base_model import ModelError, format_bytes, format_count, format_share
from base_model.train.gpus import CPU
from base_model.train.ladder import PREPARED, QLORA
from base_model.train.places import FITTING, RESERVED_AT_BEST, needed
from base_model.train.recommend import RULE, usable_in

HOUR, MINUTE = 3600, 60


def in_words(table: pd.DataFrame | None) -> str:
    """One or two sentences that sum up a table of this module, known by its columns; nothing if it was skipped.

    Tables of `recommend`, `list_files`, `read_tensors`, `check_model`, `text_lengths`, `base_loss`, `plan_inference`,
    `plan_adapters`, `compare_training`, `training_ladder`, `compare_gpus`, `check_plans`, `compare_runs`. Raises
    ModelError for others.
    """
    if table is None or table.empty:
        return ""
    for columns, words in READ:
        if columns.issubset(table.columns):
            return words(table)
    raise ModelError("There is no sentence for this table. Give one of those that the help of `in_words` lists.")


def best_rows(recommendation: pd.DataFrame, rows: int = 5) -> pd.DataFrame:
    """The best row for each method of `recommend`, best first, in the columns that one decides by, as text.

    Columns: `method` (with checkpointing, where it has it), `verdict`, `peak_bytes`, `batch`, `one epoch`, `speed`,
    `trainable` (parameters), `accuracy`.
    """
    best = recommendation.drop_duplicates("method").head(rows)
    table = best[["method", "verdict", "peak_bytes", "batch"]].copy()
    table["method"] += best["checkpointing"].map({True: ", checkpointing", False: ""})
    table["one epoch"] = list(map(hours_in_words, best["hours_low"], best["hours_high"]))
    speeds = best["tokens_per_s"]
    table["speed"] = ["n/a" if pd.isna(speed) else f"{_round(speed)} tokens/s" for speed in speeds]
    table["trainable"] = best["trainable"]
    table["accuracy"] = ["n/a" if pd.isna(known) else f"{known:.3f}" for known in best["accuracy"]]
    return table.reset_index(drop=True)


def hours_in_words(low: float, high: float) -> str:
    """A range of hours in the unit that suits it: `40 to 67 s`, `3 to 5 min`, `1.2 to 2.0 h`; `n/a`."""
    if pd.isna(low):
        return "n/a"
    for unit, size in (("s", HOUR), ("min", MINUTE), ("h", 1)):
        if high * size < 100 or unit == "h":
            break
    ends = [_round(end * size) for end in (low, high)]
    return f"{ends[0]} {unit}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]} {unit}"


def _round(value: float) -> str:
    """Two digits that mean something: `1,200`, `47`, `3.2`, `0.45`."""
    if value >= 100:
        return f"{round(value, 2 - len(str(int(value)))):,.0f}" if value < 1e15 else f"{value:.2g}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _on_answer(table: pd.DataFrame) -> str:
    best = table.iloc[0]
    if best["verdict"] not in FITTING:
        return f"Nothing fits. {best['method']} comes closest. {best['why']}"
    how = "with" if best["checkpointing"] else "without"
    epoch = hours_in_words(best["hours_low"], best["hours_high"])
    time = "" if epoch == "n/a" else f" One epoch of your data takes {epoch}."
    size = f"{_count(best['batch'], 'text')} of up to {best['tokens']:,} tokens"
    return (
        f"Start with {best['method']}, {how} checkpointing: it trains {format_count(int(best['trainable']))} "
        f"parameters, and a batch of {size} peaks at {format_bytes(best['peak_bytes'])}. "
        f"{best['why']}{_longest(table, best)}{time}{_beyond(table)} {RULE}"
    )


def _longest(table: pd.DataFrame, best: pd.Series) -> str:
    """How long a text may be at batch 1, and with checkpointing if that is more; "" where it adds nothing."""
    if pd.isna(best["longest"]) or best["longest"] < best["tokens"]:  # it is rounded down
        return ""
    kept = table["checkpointing"] & table["verdict"].isin(FITTING) & (table["method"] == best["method"])
    longer = table.loc[kept, "longest"].dropna()
    more = "".join(f", or {int(most):,} with checkpointing" for most in longer[longer > best["longest"]])
    return f" At batch 1, a text may have up to {int(best['longest']):,} tokens{more}."


def _beyond(table: pd.DataFrame) -> str:
    """The methods that fit in no way, and by how much they miss."""
    rest = table[~table["method"].isin(table.loc[table["verdict"].isin(FITTING), "method"])]
    rest = rest[rest["verdict"] == "does not fit"].drop_duplicates("method")  # ranked: what misses least
    if rest.empty:
        return ""
    misses = zip(rest["method"], needed(rest["peak_bytes"], RESERVED_AT_BEST) - usable_in(rest), strict=True)
    each = "; ".join(f"{method} ({format_bytes(int(size))} too much)" for method, size in misses)
    least = f"even if the allocator reserves only {RESERVED_AT_BEST - 1:.0%}"
    return f" {'These do' if len(rest) > 1 else 'This does'} not fit, {least}: {each}."


def _on_files(files: pd.DataFrame) -> str:
    weights = files[files["parameters"].notna()]
    whole = format_bytes(files["size"].sum())
    if weights.empty:
        return f"{_count(len(files), 'file')}, {whole}, and no weights among them."
    share = weights["size"].sum() / max(files["size"].sum(), 1)
    hold = "hold" if len(weights) > 1 else "holds"
    return f"{len(weights)} of {_count(len(files), 'file')} {hold} the weights: {format_share(share)} of {whole}."


def _on_tensors(tensors: pd.DataFrame) -> str:
    totals = tensors.groupby("component")["parameters"].sum().sort_values(ascending=False)
    first = f"{totals.index[0]} holds {format_share(totals.iloc[0] / max(totals.sum(), 1))}"
    width = tensors["bytes"].sum() / max(totals.sum(), 1)
    dtypes = " and ".join(tensors["dtype"].unique())
    return (
        f"{format_count(int(totals.sum()))} parameters of {width:.3g} bytes each, in {_count(len(tensors), 'tensor')} "
        f"of {dtypes}; the {first} of the parameters."
    )


def _on_checks(checks: pd.DataFrame) -> str:
    words = f"{checks['match'].sum()} of {_count(len(checks), 'check')} match"
    if wrong := list(checks.loc[~checks["match"].astype(bool), "check"]):
        return f"{words}; these do not: {', '.join(wrong[:3])}."
    if "difference" not in checks:
        return f"{words}."
    most = checks["difference"].abs().groupby(checks["check"].str.rpartition(": ")[2]).max()
    known = [f"{kind}s to within {most[kind]:.1%}" for kind in ("peak", "step") if kind in most]
    return f"{words}: {_listed(known)}." if known else f"{words}."


def _on_lengths(lengths: pd.DataFrame) -> str:
    tokens = lengths["tokens"]
    cut = int(lengths["truncated"].sum())
    lost = f"{_count(cut, 'example')} would be cut" if cut else "none is cut"
    return (
        f"Your data has {_count(len(tokens), 'example')} and {tokens.sum():,} tokens; half of the examples have "
        f"{tokens.median():,.0f} tokens or fewer, the longest has {tokens.max():,}, and {lost}."
    )


def _on_loss(losses: pd.DataFrame) -> str:
    row = losses.iloc[0]
    return (
        f"Before tuning the loss is {row['loss']:.2f}, measured on {_count(row['examples'], 'example')}: a tuned model "
        f"must get lower. The middle half of the examples lies between {row['low']:.2f} and {row['high']:.2f}."
    )


def _on_inference(plan: pd.DataFrame) -> str:
    rows = plan.drop_duplicates("precision").dropna(subset="largest_context")
    fits = [f"{row.largest_context:,} in {row.precision}" for row in rows.itertuples() if row.largest_context]
    free = f"With {format_bytes(plan['usable_bytes'].iloc[0])} free on this machine's {plan['device'].iloc[0]}"
    if not fits:
        return f"{free}, the model does not fit in any precision."
    longest, *rest = fits
    if len(rows) > 1 and rows["largest_context"].nunique() == 1:
        longest, rest = f"{rows['largest_context'].iloc[0]:,} in every precision", []
    return f"{free}, a text may have up to {_listed([longest.replace(' in', ' tokens in', 1), *rest])}."


def _listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _on_adapters(adapters: pd.DataFrame) -> str:
    known = adapters.dropna(subset="trainable").sort_values("trainable", kind="stable")
    if known.empty:
        return "None of these adapters can be planned for this architecture."
    few, most = known.iloc[0], known.iloc[-1]
    return f"{few['adapter']} trains {few['share']:.3%} of the parameters; {most['adapter']}, {most['share']:.3%}."


def _on_training(training: pd.DataFrame) -> str:
    peaks = training.dropna(subset="peak_bytes").set_index("method")["peak_bytes"].astype("int64")
    if peaks.empty:
        return f"No step can be planned. {_note(training)}"
    words = f"{peaks.idxmin()} takes the least, {format_bytes(int(peaks.min()))}"
    plain = [name for name in peaks.index if "checkpointing" not in name and f"{name}, checkpointing" in peaks.index]
    saved = {name: 1 - peaks[f"{name}, checkpointing"] / peaks[name] for name in plain}
    if not saved:
        return f"{words}."
    low, high = (f"{end:.0%}" for end in (min(saved.values()), max(saved.values())))
    range_of = low if low == high else f"{low} to {high}"
    return f"{words}. Checkpointing saves {range_of} of a method's peak."


def _on_ladder(ladder: pd.DataFrame) -> str:
    known = ladder.dropna(subset="difference_bytes").iloc[1:].sort_values("difference_bytes", kind="stable")
    if known.empty:
        return f"No step can be planned. {_note(ladder)}"
    first, best, worst = ladder.iloc[0], known.iloc[0], known.iloc[-1]
    size = f" of {first['batch']} x {first['tokens']:,} tokens" if {"batch", "tokens"}.issubset(ladder) else ""
    start = f"With TRL's defaults, a step{size} peaks at {format_bytes(int(first['peak_bytes']))}."
    lightest = f"{best['change']} takes least ({format_bytes(int(best['peak_bytes']))})"
    heaviest = f"{worst['change']} takes most ({format_bytes(int(worst['peak_bytes']))})"
    ends = [lightest] * bool(best["difference_bytes"] < 0) + [heaviest] * bool(worst["difference_bytes"] > 0)
    words = f"{start} {f'Of the single changes, {_listed(ends)}' if ends else 'No single change matters'}."
    return words + _trap(ladder.set_index("change")["peak_bytes"])


def _trap(peaks: pd.Series) -> str:
    """What PEFT's preparation for 4 bits costs, if both are known; "" where it costs nothing."""
    if not {QLORA, PREPARED}.issubset(peaks.index) or pd.isna(cost := peaks[PREPARED] - peaks[QLORA]) or cost <= 0:
        return ""
    return f" QLoRA's trap, prepare_model_for_kbit_training, would cost {format_bytes(int(cost))} more."


def _note(table: pd.DataFrame) -> str:
    """Why there is no figure, where a note says so."""
    notes = list(table["note"].dropna()) if "note" in table else []
    return str(notes[0]) if notes else "The architecture does not allow it."


def _on_gpus(cards: pd.DataFrame) -> str:
    notes = {"fits": "", "tight": " (tight)", "does not fit": " (where it does not fit)"}
    times = map(hours_in_words, *million_range(cards))
    cells = zip(times, cards["gpu"], cards["verdict"], strict=True)
    each = [f"{time} on the {gpu}{notes.get(verdict, '')}" for time, gpu, verdict in cells]
    words = f"With LoRA on all linear layers, a million tokens take {_listed(each)}."
    return f"{words}{_ratios(cards)} {_dominant(cards.iloc[0])}"


def _ratios(cards: pd.DataFrame) -> str:
    """How many times as fast each accelerator is as the slowest of them; "" for fewer than two."""
    speeds = cards.set_index("gpu")["tokens_per_s"].drop(CPU, errors="ignore").sort_values(kind="stable")
    if len(speeds) < 2:
        return ""
    slowest, *rest = speeds.index
    times = [f"the {gpu}{' is' * (gpu == rest[0])} {_round(speeds[gpu] / speeds[slowest])} times" for gpu in rest]
    return f" Compared with the {slowest}, {_listed(times)} as fast."


def _on_time(plan: pd.DataFrame) -> str:
    row = plan.iloc[0]
    seconds = hours_in_words(row["low_s"] / HOUR, row["high_s"] / HOUR)
    return f"A step takes {seconds}. {_dominant(row)}"


# What a step's time goes into, and what shortens it.
SHORTER = {
    "compute_s": ("computing", "A card that computes more per second would shorten it."),
    "memory_s": ("moving bytes to and from memory", "A card with more bandwidth would shorten it."),
    "launch_s": ("starting operations from Python", "A larger batch would use the card better."),
}


def _dominant(row: pd.Series) -> str:
    """Which part of a step's time is the largest, and what would change it."""
    part = max(SHORTER, key=lambda name: row[name])
    doing, change = SHORTER[part]
    return f"On the {row['gpu']}, {row[part] / row['step_s']:.0%} of a step is {doing}. {change}"


def million_range(cards: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The hours of a million tokens on each card of `compare_gpus`, the least and the most."""
    hours, step = cards["hours_per_million"].astype(float), cards["step_s"].astype(float)
    return hours * cards["low_s"] / step, hours * cards["high_s"] / step


def _on_runs(runs: pd.DataFrame) -> str:
    ranked = runs.dropna(subset="tokens_per_s").sort_values("tokens_per_s", ascending=False, kind="stable")
    if ranked.empty:
        return "No speed was measured: the answers are too short."
    best, noise = ranked.iloc[0], max(ranked["spread"].max(), 0.02)
    close = len(ranked) > 1 and ranked["tokens_per_s"].iloc[1:].max() > best["tokens_per_s"] * (1 - noise)
    place = f"{best['method']} on {best['device']} generates {_round(best['tokens_per_s'])} tokens/s"
    return f"{place}; the runs vary too much to name a winner." if close else f"{place}, the fastest here."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# What tells a table, and what reads it; the more particular ones first.
READ: tuple[tuple[set[str], Callable[[pd.DataFrame], str]], ...] = (
    ({"verdict", "why", "least_bytes"}, _on_answer),
    ({"hours_per_million", "verdict"}, _on_gpus),
    ({"step_s", "compute_s"}, _on_time),
    ({"change", "difference_bytes"}, _on_ladder),
    ({"method", "peak_bytes", "embedding_bytes"}, _on_training),
    ({"adapter", "trainable"}, _on_adapters),
    ({"precision", "largest_context"}, _on_inference),
    ({"loss", "perplexity"}, _on_loss),
    ({"tokens", "trained", "truncated"}, _on_lengths),
    ({"check", "match"}, _on_checks),
    ({"tensor", "component", "parameters"}, _on_tensors),
    ({"file", "size", "parameters"}, _on_files),
    ({"method", "tokens_per_s", "spread"}, _on_runs),
)
