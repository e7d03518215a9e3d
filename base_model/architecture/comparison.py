"""Several models side by side, from their headers and config.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import COMPONENTS, ModelError, warn
from base_model.architecture.config import is_tied, read_architecture
from base_model.architecture.experts import active_parameters, experts_of
from base_model.read.folder import read_config

# Column: the name that transformers gives it for every architecture, whatever its config.json says.
SETTINGS = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
}
MIXED = (ModelError, ValueError, RuntimeError)  # transformers': several text models in one, layers that differ


def model_table(models: Sequence[tuple[str | Path, Path, pd.DataFrame]]) -> pd.DataFrame:
    """One row for each `(model, folder, tensors)`; the columns are those of `compare_models`."""
    if not models:
        raise ModelError("No model was given to compare. Give folders or Hub ids in a list.")
    names = [Path(model).name for model, _, _ in models]
    labels = [name if names.count(name) == 1 else str(model) for name, (model, _, _) in zip(names, models, strict=True)]
    rows = [_row(folder, tensors) for _, folder, tensors in models]
    return pd.DataFrame(rows, index=pd.Index(labels, name="model")).astype(
        dict.fromkeys(("active", *SETTINGS), "Int64")
    )


def _row(folder: Path, tensors: pd.DataFrame) -> dict[str, Any]:
    parameters, size = int(tensors["parameters"].sum()), int(tensors["bytes"].sum())
    by_component = tensors.groupby("component")["parameters"].sum().reindex(COMPONENTS, fill_value=0)
    return {
        "parameters": parameters,
        "active": _active(folder, parameters),
        "bytes": size,
        "dtype": ", ".join(tensors.groupby("dtype")["bytes"].sum().sort_values(ascending=False).index),
        "bits_per_parameter": size * 8 / max(parameters, 1),
        **_settings(folder),
        "tied": is_tied(read_config(folder)),
        **{f"{name}_share": count / max(parameters, 1) for name, count in by_component.items()},
    }


def _active(folder: Path, parameters: int) -> int | Any:
    """The parameters that one token uses: all of a dense model's; <NA> where the architecture is not known."""
    try:
        config = read_architecture(folder)
        return parameters if experts_of(config) is None else active_parameters(config)
    except MIXED as error:
        warn(f"{folder.name}: active parameters are not known. {error}")
        return pd.NA


def _settings(folder: Path) -> dict[str, Any]:
    """The sizes that transformers reads from config.json, defaults of the architecture included; <NA> where none."""
    try:
        config = read_architecture(folder).get_text_config()
        sizes = {column: getattr(config, name, None) for column, name in SETTINGS.items()}
    except MIXED as error:
        warn(f"{folder.name}: sizes are left out of the comparison. {error}")
        return dict.fromkeys(SETTINGS, pd.NA)
    return {column: size if type(size) is int else pd.NA for column, size in sizes.items()}  # some have one per layer
