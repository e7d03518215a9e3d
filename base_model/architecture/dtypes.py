"""The dtype in which a model is loaded, and so planned: as config.json states it, else as its weights are stored."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from base_model import ModelWarning, visible
from base_model.architecture.config import read_architecture
from base_model.read.folder import file_sizes, read_config, readable_headers

STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
UNSTATED = "bfloat16"  # of a model with neither: what most of those of the last years are published in


def read_planned(folder: Path) -> Any:
    """The config of `read_architecture`, always with a dtype, as transformers' `dtype="auto"` would find it.

    A ModelWarning says so where neither config.json nor the weights tell the dtype.
    """
    config = read_architecture(folder)
    if config.dtype is None:
        config.dtype = _stored(folder) or _of_the_text(folder) or _assumed(folder)
    return config


def _stored(folder: Path) -> str | None:
    """The floating dtype that most bytes of the weights have; None where no weights can be read."""
    sizes: Counter[str] = Counter()
    for header in readable_headers(folder, file_sizes(folder)).values():
        for dtype, size in zip(header.dtypes, header.sizes, strict=True):
            sizes[dtype] += size if dtype in STORED else 0
    return STORED[max(sizes, key=sizes.__getitem__)] if sizes.total() else None


def _of_the_text(folder: Path) -> str | None:
    """What config.json states for the text model within a larger one."""
    text = read_config(folder).get("text_config")
    stated = [text.get(name) for name in ("dtype", "torch_dtype")] if isinstance(text, dict) else []
    return next((dtype for dtype in stated if dtype in STORED.values()), None)


def _assumed(folder: Path) -> str:
    warnings.warn(
        f"config.json of {visible(folder.name)} states no dtype, and there are no weights to read it from: it is "
        f"planned in {UNSTATED}.",
        ModelWarning,
        stacklevel=5,
    )
    return UNSTATED
