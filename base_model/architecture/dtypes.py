"""The dtype in which a model is loaded, and so planned: as config.json states it, else as its weights are stored."""

from collections import Counter
from pathlib import Path
from typing import Any

from base_model import visible, warn
from base_model.architecture.config import read_architecture, skeleton_of
from base_model.read.folder import file_sizes, read_config, readable_headers
from base_model.read.headers import Header

STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
PLANNED = "planned"  # stands for the file of tensors that no file holds
UNSTATED = "bfloat16"  # of a model with neither: what most of those of the last years are published in


def read_planned(folder: Path) -> Any:
    """The config of `read_architecture`, always with a dtype, as transformers' `dtype="auto"` would find it.

    A ModelWarning says so where neither config.json nor the weights tell the dtype.
    """
    config = read_architecture(folder)
    if config.dtype is None:
        config.dtype = _stored(folder) or _of_the_text(folder) or _assumed(folder)
    return config


def planned_header(config: Any) -> Header:
    """The tensors of a config's model as one safetensors file would list them, tied ones once; no file is there."""
    codes = {name: code for code, name in STORED.items()}
    stored = dict(skeleton_of(config).named_parameters())
    tensors = stored.values()
    return Header(
        path=Path(PLANNED), names=list(stored), dtypes=[codes[str(one.dtype).split(".")[-1]] for one in tensors],
        shapes=[tuple(one.shape) for one in tensors], elements=[one.numel() for one in tensors],
        sizes=[one.nbytes for one in tensors], header_bytes=0, file_bytes=0,
    )  # fmt: skip


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
    warn(
        f"config.json of {visible(folder.name)} states no dtype, and there are no weights to read it from: "
        f"{UNSTATED} is assumed."
    )
    return UNSTATED
