"""The loss before tuning, on examples of the data: the number that tuning has to beat."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from base_model import ModelError, brief, require_whole
from base_model.hub.locate import local_folder
from base_model.run.faults import memory_error, out_of_memory
from base_model.run.loading import cpu_multiplies_in, load_model
from base_model.text.data import name_of, read_data
from base_model.text.measure import Task
from base_model.text.processes import in_processes

AT_ONCE = 256  # tokens whose scores, one per word of the vocabulary, are made float32 at one time


def base_loss(
    model: str | Path,
    data: Any,
    examples: int = 16,
    max_length: int | None = 1024,
    device: str = "cpu",
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool = False,
) -> pd.DataFrame:
    """The loss of the untuned model on some examples of the data, from its first row to its last; one row.

    Columns: `loss` (mean cross-entropy of the tokens that count, in nats), `perplexity` (its exponential), `low` and
    `high` (quartiles of the examples' own means), `examples`, `tokens` (that count), `device`, `dtype`.
    The examples are prepared as by SFTTrainer; those that it would drop are left out. `data` and the settings as in
    `text_lengths`; `max_length` is 1,024 unless given, as in `SFTConfig`. Needs the weights on this disk.
    Raises ModelError.
    """
    require_whole("examples", examples)
    folder = local_folder(model)
    task = Task(folder, name_of(data), None, (), max_length, completion_only_loss, assistant_only_loss, True)
    loaded, _ = load_model(folder, device, _dtype(folder, device))  # first: it says at once where no weights are
    rows = _some_examples(task, data, examples)
    losses = [_losses(loaded, **row) for row in rows]
    return _summary(losses, loaded)


def _dtype(folder: Path, device: str) -> str | None:
    """float32 on a CPU that has no instructions for bfloat16, which takes three times as long there, if it fits."""
    import psutil

    wide = 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))  # of what is stored in 16 bits
    slow = device == "cpu" and not cpu_multiplies_in("bfloat16")
    return "float32" if slow and 1.5 * wide < psutil.virtual_memory().available else None


def _some_examples(task: Task, data: Any, examples: int) -> list[dict[str, Any]]:
    """Rows at equal distances, as tokens; those of which nothing counts are left out."""
    dataset = read_data(data)
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(examples, len(dataset))).astype(int)).tolist()
    written, _ = in_processes(replace(task, dataset=dataset.select(numbers), numbers=numbers))
    rows = [json.loads(line) for line in b"".join(written).splitlines()]
    cut = [{name: values[: task.max_length] for name, values in row.items()} for row in rows]
    kept = [row for row in cut if any(row["trained"][1:])]  # nothing comes before the first token, to predict it from
    if not kept:
        raise ModelError(f"{task.name}: no token counts in any of {len(rows)} examples. Raise max_length.")
    return kept


def _losses(model: Any, input_ids: list[int], trained: list[bool]) -> np.ndarray:
    """The cross-entropy of each token that counts, from the scores at the token before it."""
    import torch

    counted = torch.tensor(trained[1:])
    ids = torch.tensor([input_ids], device=model.device)
    try:
        with torch.inference_mode():
            scores = model(input_ids=ids, use_cache=False).logits[0, :-1][counted]
            pairs = zip(scores.split(AT_ONCE), ids[0, 1:][counted].split(AT_ONCE), strict=True)
            entropy = torch.nn.functional.cross_entropy
            return torch.cat([entropy(some.float(), right, reduction="none").cpu() for some, right in pairs]).numpy()
    except Exception as error:  # each architecture fails in its own way
        if out_of_memory(error):
            raise memory_error(error, "compute the loss", str(model.device)) from error
        raise ModelError(f"The loss cannot be computed on {model.device}: {brief(error)}. Try the CPU.") from error


def _summary(losses: list[np.ndarray], model: Any) -> pd.DataFrame:
    every = np.concatenate(losses)
    low, high = np.quantile([each.mean() for each in losses], [0.25, 0.75])
    facts: dict[str, Any] = {"loss": every.mean(), "perplexity": np.exp(every.mean()), "low": low, "high": high}
    counts = {"examples": len(losses), "tokens": len(every)}
    return pd.DataFrame(
        [facts | counts | {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch.")}]
    )
