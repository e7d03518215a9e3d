"""Do the runs agree? Two methods on one device must; an accelerator is compared with the CPU, in case it is wrong."""

from collections.abc import Sequence

import pandas as pd

from base_model.run.timing import Generation

TOLERANCE = 0.05  # of the largest score; rounding to 16 bits stays below 1%, a broken kernel does not


def check_runs(runs: Sequence[Generation]) -> pd.DataFrame:
    """The runs compared with one another, one row per check.

    Columns: `check`, `expected`, `found` (text), `match`. On one device all methods must give equal token ids; on
    another device than the CPU the first tokens must equal the CPU's, and their scores (logits) lie within 5% of the
    largest; a server, which gives no ids, must have counted the same prompt. Different dtypes may diverge by rounding;
    `agreement` says so in words.
    """
    runs = [run for run in runs if not run.stopped]
    rows: list[dict[str, object]] = []
    for run in runs:
        first = next(other for other in runs if other.device == run.device)
        if run is not first and run.token_ids:
            rows.append(_row(f"{run.device}: token ids, {run.method} as {first.method}", _ids(first), _ids(run)))
    cpu = next((run for run in runs if run.device == "cpu"), None)
    others = {run.device: run for run in reversed(runs) if run.device != "cpu"}
    if cpu:
        for run in reversed(others.values()):
            rows += _against_cpu(cpu, run)
    return pd.DataFrame(rows, columns=["check", "expected", "found", "match"])


def _row(check: str, expected: str, found: str) -> dict[str, object]:
    return {"check": check, "expected": expected, "found": found, "match": expected == found}


def _ids(run: Generation, count: int | None = None) -> str:
    """Some ids in full, many by their ends and number; what is left out is still compared, by its hash."""
    ids = run.token_ids[:count]
    if len(ids) <= 8:
        return " ".join(map(str, ids))
    return f"{ids[0]} {ids[1]} ... {ids[-1]}, {len(ids)} ids, sum {sum(ids):,}"


def _against_cpu(cpu: Generation, run: Generation) -> list[dict[str, object]]:
    if not run.token_ids:
        return [_row(f"{run.device}: prompt tokens, as cpu", str(cpu.prompt_tokens), str(run.prompt_tokens))]
    count = len(cpu.first_logits)
    rows = [_row(f"{run.device}: first {count} tokens, as cpu", _ids(cpu, count), _ids(run, count))]
    difference = largest_difference(cpu, run)
    allowed = f"within {TOLERANCE:.0%}"
    found = allowed if difference <= TOLERANCE else f"{difference:.0%} apart"
    return [*rows, _row(f"{run.device}: scores of these tokens, as cpu", allowed, found)]


def largest_difference(cpu: Generation, run: Generation) -> float:
    """How far the winning scores lie apart, as a share of the largest; up to the first token that differs.

    Where two tokens are nearly as likely, the winners differ, but not their scores: that is rounding and no fault.
    """
    same = [mine == theirs for mine, theirs in zip(cpu.token_ids, run.token_ids, strict=False)]
    end = (same.index(False) if False in same else len(same)) + 1
    pairs = list(zip(cpu.first_logits[:end], run.first_logits[:end], strict=False))
    largest = max((abs(mine) for mine, _ in pairs), default=1.0) or 1.0
    # `not (x < inf)` is true of NaN too, which is how some faults show
    gaps = [abs(mine - theirs) / largest for mine, theirs in pairs]
    return max((gap if gap < float("inf") else float("inf") for gap in gaps), default=float("inf"))


def agreement(checks: pd.DataFrame) -> str:
    """`check_runs` in plain words: what agrees, and what to do where it does not."""
    if checks.empty:
        return "There is nothing to compare: a second method or device is needed."
    failed = checks[~checks["match"].astype(bool)]
    if failed.empty:
        more = f" in {len(checks)} of {len(checks)} comparisons" if len(checks) > 1 else ""
        return f"The runs agree{more}."
    return " ".join(_verdict(device, failed) for device in failed["check"].str.split(": ").str[0].unique())


def _verdict(device: str, failed: pd.DataFrame) -> str:
    checks = failed.loc[failed["check"].str.startswith(f"{device}: "), "check"].str.removeprefix(f"{device}: ")
    if checks.str.startswith("scores").any():
        return (
            f"**{device} disagrees with the CPU**: its scores are wrong, not merely rounded. Do not use its answers; "
            'run on the CPU, or try dtype="float32" and a newer torch.'
        )
    if checks.str.startswith("prompt").any():
        return f"{device} counted a different prompt: it uses a different chat template or tokenizer."
    if checks.str.startswith("token ids").any():
        return f"**The methods disagree on {device}**: compare the settings of each."
    return f"{device} and the CPU diverge where two tokens are almost equally likely: rounding, not a fault."
