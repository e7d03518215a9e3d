"""A model from its folder onto a device, ready to generate: all weights placed, greedy, in a dtype that runs well."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import MOST, ModelError, brief, is_fault
from base_model.architecture.config import is_tied, read_architecture, require_fit, require_loadable
from base_model.plan.machine import warn_if_too_large
from base_model.read.counting import is_known
from base_model.read.folder import completeness, in_home, is_folder, model_headers, read_config, read_json
from base_model.read.tensors import tensor_table
from base_model.run.faults import memory_error, note_files, out_of_memory
from base_model.run.kernels import choose_kernel
from base_model.text.tokenizer import SETTINGS, load_tokenizer, require_tame_template


def available_devices() -> list[str]:
    """`["cpu"]`, and the accelerator of this machine if it has one: `["cpu", "mps"]`, `["cpu", "cuda"]`."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] + ([accelerator.type] if accelerator else [])


def load_model(
    folder: str | Path, device: str = "cpu", dtype: str | None = None, kernel: str | None = None
) -> tuple[Any, Any]:
    """The model and its tokenizer from a complete local folder, on `device`, ready to generate greedily.

    `device` is one of `available_devices`, or "auto": accelerate then spreads the layers over all accelerators and, for
    what does not fit, the CPU. `dtype` is "float32", "bfloat16" or "float16"; None keeps the one that config.json
    states, or else the stored one, except where the device runs it badly: bfloat16 becomes float16 on MPS (older chips
    only emulate it) and on NVIDIA GPUs before Ampere; float16 becomes bfloat16 on a CPU with instructions for that one
    alone. Attention stays transformers' choice (torch's SDPA where the architecture has it), threads torch's (one per
    core). `kernel` picks what makes single tokens on the CPU from 16-bit weights: "torch", "oneDNN", or "measured", the
    faster of the two; by default that of this kind of machine (torch's on x86). `run_conditions` shows every choice.

    Memory that nothing uses any more is freed first. A model that a variable still holds stays: `del` it, or use
    `run_both`, which keeps none. On the CPU, a model loaded twice in its stored dtype shares its pages in any case.
    Raises ModelError for an incomplete folder, an absent device, weights that do not match the architecture, or a
    memory that is too small.
    """
    folder = in_home(folder)
    if device != "auto":
        _require_device(device)
    config, tensors = _complete(folder)
    tokenizer = load_tokenizer(folder)
    require_tame_template(tokenizer)
    if os.path.lexists(folder / SETTINGS):
        read_json(folder / SETTINGS)  # transformers would pass over one that it cannot read
    release_memory()
    warn_if_too_large(_loaded_bytes(tensors, dtype), device)
    model = _load_weights(folder, config, tensors, dtype or _default_dtype(device, config), device)
    note_files(model, (folder / file for file in tensors["file"].unique()))
    if device != "auto":
        model = _move(model, device)
    model.eval().one_token_kernel = choose_kernel(model, kernel)
    model.generation_config = _greedy(model.generation_config)
    return model, tokenizer


def _complete(folder: Path) -> tuple[Any, pd.DataFrame]:
    """The architecture and the tensors of a folder that passed the checks."""
    if not is_folder(folder):
        raise ModelError(f"There is no folder {folder}. `fetch_model` downloads one.")
    found = completeness(folder)
    if found.missing:
        raise ModelError(f"{folder} is not a complete model: {'; '.join(found.missing)}. `fetch_model` completes it.")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter too, which transformers would apply. Move adapter_config.json away."
        )
    config, settings = read_architecture(folder), read_config(folder)
    require_loadable(config)
    tensors = tensor_table(model_headers(folder, found.headers), settings, is_tied)
    require_fit(config, tensors, countable=is_known(settings))
    return config, tensors


def _loaded_bytes(tensors: pd.DataFrame, dtype: str | None) -> int:
    """What the weights take once they are loaded: as stored, or in the dtype that was asked for."""
    import torch

    each = None if dtype is None else getattr(torch, dtype).itemsize
    return int(tensors["bytes"].sum() if each is None else tensors["parameters"].sum() * each)


def release_memory() -> None:
    """Give back what nobody holds any more: models hang in reference cycles, accelerators keep freed blocks."""
    import torch

    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _require_device(device: str) -> None:
    import torch

    present = available_devices()
    kind, _, number = device.partition(":")
    count = torch.accelerator.device_count() if kind != "cpu" and kind in present else 1
    if kind not in present or (number and not (number.isdecimal() and int(number) < count)):
        raise ModelError(f"This machine has no device {device!r}. It has: {', '.join(present)}.")


def _default_dtype(device: str, config: Any) -> str:
    """The stated dtype ("auto"), or the other 16-bit one where the device has no instructions for it.

    float32 would be exact instead, but takes twice the memory and halves the decoding speed.
    """
    import torch

    stated, kind = str(config.dtype), device.partition(":")[0]
    if "bfloat16" in stated:
        old_cuda = kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        return "float16" if kind == "mps" or old_cuda else "auto"
    if "float16" in stated and kind == "cpu":
        return "bfloat16" if cpu_multiplies_in("bfloat16") and not cpu_multiplies_in("float16") else "auto"
    return "auto"


def cpu_multiplies_in(dtype: str) -> bool:
    """Has this CPU instructions for products in "bfloat16", or "float16"? A prompt takes far longer without."""
    import torch

    suffix = {"bfloat16": "bf16", "float16": "fp16"}[dtype]  # avx512_bf16, amx_bf16, avx512_fp16, ...
    return any(name.endswith(suffix) and present is True for name, present in torch.cpu.get_capabilities().items())


def _load_weights(folder: Path, config: Any, tensors: pd.DataFrame, dtype: str, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with _late_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map="auto" if device == "auto" else None,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except BaseException as error:  # each architecture and quantisation fails in its own way
        if not is_fault(error):
            raise
        if out_of_memory(error):
            raise memory_error(error, "load the model", device) from error
        raise ModelError(f"transformers cannot load {folder}: {brief(error)}. Look at what it names.") from error
    model, report = loaded
    _require_all_placed(folder, report, tensors)
    return model


@contextmanager
def _late_bars() -> Iterator[None]:
    """transformers' own progress bars only after three seconds, so that none flashes, and gone once they are full."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    calm = {"delay": 3, "leave": False, "disable": are_progress_bars_disabled() or None}  # None: where nobody watches
    before = logging.set_tqdm_hook(lambda factory, args, options: factory(*args, **(options | calm)))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _move(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except (
        RuntimeError,
        AssertionError,
        MemoryError,
    ) as error:  # the device is full, or cannot do a dtype
        if out_of_memory(error):
            raise memory_error(error, "load the model", device) from error
        raise ModelError(
            f"The model cannot be moved to {device}: {brief(error)}. Try the CPU, or a smaller model."
        ) from error


def _require_all_placed(folder: Path, report: dict[str, Any], tensors: pd.DataFrame) -> None:
    """Every parameter must have found its place: transformers fills what is missing at random, and only logs it."""
    uncounted = set(tensors.loc[tensors["parameters"] == 0, "tensor"])  # masks and the like may stay unused
    unused = sorted(set(report["unexpected_keys"]) - uncounted)
    others = [str(name) for kind, names in report.items() if kind != "unexpected_keys" for name in names]
    if others:
        raise ModelError(
            f"In {folder}, {len(others)} weights do not fit config.json; the first is {others[0]}. "
            "Download the folder again."
        )
    if unused:
        raise ModelError(
            f"{len(unused)} tensors have no place in the text model of config.json; the first is {unused[0]}. "
            "A model that also sees or hears can be inspected here, but not run; if it does not, download it again."
        )


def _greedy(settings: Any) -> Any:
    """Generation settings that always take the likeliest token: of the model's own, only the special tokens stay.

    Its defaults may sample, punish repetitions or search beams, each of which would make runs hard to compare.
    """
    from transformers import GenerationConfig

    ends, pad = settings.eos_token_id, settings.pad_token_id
    ends = None if ends == [] else ends
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        stated = getattr(settings, name)
        for token_id in stated if isinstance(stated, list) and name == "eos_token_id" else [stated]:
            if token_id is not None and not (type(token_id) is int and 0 <= token_id <= MOST):
                raise ModelError(f"{SETTINGS} gives {token_id!r} as {name}, which is not a token id. Correct it.")
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(do_sample=False, bos_token_id=settings.bos_token_id, eos_token_id=ends, pad_token_id=pad)
