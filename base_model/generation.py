"""Run the model by two methods on one footing: same weights, prompt, device, dtype, greedy decoding, same clock."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, brief
from base_model.architecture import read_architecture, require_fit
from base_model.checkpoint import is_folder, missing_parts, model_headers, read_config
from base_model.counting import is_known
from base_model.machine import warn_if_too_large
from base_model.tensors import tensor_table
from base_model.tokenizer import load_tokenizer, require_tame_template


@dataclass(frozen=True)
class Generation:
    """One measured answer. Times run from the prompt as text to the answer as text; NaN where there is no figure."""

    text: str
    method: str
    device: str
    dtype: str
    prompt_tokens: int
    new_tokens: int
    first_token_s: float  # prompt to first token: tokenising and prefill
    total_s: float
    tokens_per_s: float  # decoding alone: the tokens after the first, over the time they took
    token_ids: tuple[int, ...]  # the new tokens


class _Clock:
    """A streamer, as `generate` takes one: notes what arrives and when. The first to arrive is the prompt."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, list[int]]] = []

    def put(self, tokens: Any) -> None:
        """Called with each token, of shape (1,), and at first with the prompt, of shape (1, prompt tokens)."""
        self.arrivals.append((time.perf_counter(), tokens.flatten().tolist()))

    def end(self) -> None:
        """Part of the streamer's protocol; nothing is left to note."""


def available_devices() -> list[str]:
    """`["cpu"]`, and the accelerator of this machine if it has one: `["cpu", "mps"]`, `["cpu", "cuda"]`."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] + ([accelerator.type] if accelerator else [])


def load_model(folder: str | Path, device: str = "cpu", dtype: str | None = None) -> tuple[Any, Any]:
    """The model and its tokenizer from a complete local folder, on `device`, ready to generate greedily.

    `dtype` is "float32", "bfloat16" or "float16"; None keeps the one that config.json states, or else the stored one,
    except that bfloat16 becomes float16 on MPS, where older chips only emulate it.
    Raises ModelError for an incomplete folder, an absent device, or weights that do not match the architecture.
    """
    folder = Path(folder).expanduser()
    _require_device(device)
    missing = missing_parts(folder) if is_folder(folder) else ["there is no such folder"]
    if missing:
        raise ModelError(f"{folder} is not a complete model: {'; '.join(missing)}. `fetch_model` completes it.")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter too, which transformers would apply. Move adapter_config.json away."
        )
    config, settings = read_architecture(folder), read_config(folder)
    tensors = tensor_table(model_headers(folder), settings)
    require_fit(config, tensors, countable=is_known(settings))
    warn_if_too_large(_loaded_bytes(tensors, dtype), device)
    tokenizer = load_tokenizer(folder)
    require_tame_template(tokenizer)
    try:
        model = _load_weights(folder, config, tensors, dtype or _default_dtype(device, config)).to(device).eval()
    except (RuntimeError, AssertionError) as error:  # how torch says that a device is full, or cannot do a dtype
        raise ModelError(
            f"The model cannot be moved to {device}: {brief(error)}. Try the CPU, or a smaller model."
        ) from error
    model.generation_config = _greedy(model.generation_config)
    return model, tokenizer


def _loaded_bytes(tensors: pd.DataFrame, dtype: str | None) -> int:
    """What the weights take once they are loaded: as stored, or in the dtype that was asked for."""
    import torch

    return int(
        tensors["bytes"].sum() if dtype is None else tensors["parameters"].sum() * getattr(torch, dtype).itemsize
    )


def _require_device(device: str) -> None:
    import torch

    present = available_devices()
    kind, _, number = device.partition(":")
    count = torch.accelerator.device_count() if kind != "cpu" and kind in present else 1
    if kind not in present or (number and not (number.isdecimal() and int(number) < count)):
        raise ModelError(f"This machine has no device {device!r}. It has: {', '.join(present)}.")


def _default_dtype(device: str, config: Any) -> str:
    return "float16" if device.startswith("mps") and "bfloat16" in str(config.dtype) else "auto"


def _load_weights(folder: Path, config: Any, tensors: pd.DataFrame, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # each architecture and quantisation fails in its own way
        raise ModelError(f"transformers cannot load {folder}: {brief(error)}. See what it names.") from error
    model, report = loaded
    _require_all_placed(folder, report, tensors)
    return model


def _require_all_placed(folder: Path, report: dict[str, Any], tensors: pd.DataFrame) -> None:
    """Every parameter must have found its place: transformers fills what is missing at random, and only logs it."""
    uncounted = set(tensors.loc[tensors["parameters"] == 0, "tensor"])  # masks and the like may stay unused
    unused = sorted(set(report["unexpected_keys"]) - uncounted)
    others = [str(name) for kind, names in report.items() if kind != "unexpected_keys" for name in names]
    if others:
        raise ModelError(
            f"In {folder}, {len(others)} weights do not fit config.json, {others[0]} the first of them. "
            "Download the folder again."
        )
    if unused:
        raise ModelError(
            f"{len(unused)} tensors, {unused[0]} the first of them, have no place in the text model that config.json "
            "describes. A model that also sees or hears can be looked at here, but not run; else download it again."
        )


def _greedy(settings: Any) -> Any:
    """Generation settings that always take the likeliest token: of the model's own, only the special tokens stay.

    Its defaults may sample, punish repetitions or search beams, each of which would make runs hard to compare.
    """
    from transformers import GenerationConfig

    ends = settings.eos_token_id
    for token_id in ends if isinstance(ends, list) else [ends]:
        if token_id is not None and type(token_id) is not int:
            raise ModelError(
                f"generation_config.json gives {token_id!r} as eos_token_id, which is no token id. Correct it."
            )
    pad = settings.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(do_sample=False, bos_token_id=settings.bos_token_id, eos_token_id=ends, pad_token_id=pad)


def generate_with_pipeline(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 50) -> Generation:
    """Method 1: `transformers.pipeline`, which does tokenising, generation and decoding in one call.

    Greedy, after one warm-up run. An instruct model gets the prompt through its chat template, a base model as it is.
    """
    from transformers import pipeline

    # Without `device`, pipeline() would move the model to an accelerator by itself.
    pipe: Any = pipeline("text-generation", model=model, tokenizer=tokenizer, device=model.device)
    text_inputs = _conversation(prompt) if tokenizer.chat_template else prompt

    def run(clock: _Clock, limit: int) -> str:
        """Text to text, `limit` new tokens at most."""
        options = {"do_sample": False, "max_new_tokens": limit, "return_full_text": False, "streamer": clock}
        return pipe(text_inputs, **options)[0]["generated_text"]

    return _measure("pipeline", model, run, max_new_tokens)


def generate_manually(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 50) -> Generation:
    """Method 2: the three steps by hand: text to token ids, `model.generate`, token ids to text.

    Greedy, after one warm-up run. An instruct model gets the prompt through its chat template, a base model as it is.
    """

    def run(clock: _Clock, limit: int) -> str:
        """Text to text, `limit` new tokens at most."""
        inputs = _encode(tokenizer, prompt).to(model.device)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=limit, streamer=clock)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return _measure("manual", model, run, max_new_tokens)


def _conversation(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _encode(tokenizer: Any, prompt: str) -> Any:
    """Token ids and attention mask, each of shape (1, prompt tokens)."""
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(
            _conversation(prompt), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    return tokenizer(prompt, return_tensors="pt")


def _measure(method: str, model: Any, run: Callable[[_Clock, int], str], max_new_tokens: int) -> Generation:
    """Time one run after a short warm-up: the first call pays for kernels and buffers that later ones reuse."""
    if max_new_tokens < 1:
        raise ModelError(f"max_new_tokens is {max_new_tokens}; ask for at least 1.")
    clock = _Clock()
    try:
        run(_Clock(), min(max_new_tokens, 2))
        _synchronize(model.device)
        start = time.perf_counter()
        text = run(clock, max_new_tokens)
        _synchronize(model.device)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # torch's and generate()'s own
        raise ModelError(
            f"The model cannot generate on {model.device}: {brief(error)}. Try the CPU, or fewer tokens."
        ) from error
    total_s = time.perf_counter() - start
    (_, prompt_ids), *arrivals = clock.arrivals
    times = [moment for moment, _ in arrivals]
    return Generation(
        text=text,
        method=method,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        prompt_tokens=len(prompt_ids),
        new_tokens=len(arrivals),
        first_token_s=times[0] - start if times else math.nan,
        total_s=total_s,
        tokens_per_s=(len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else math.nan,
        token_ids=tuple(token_id for _, ids in arrivals for token_id in ids),
    )


def _synchronize(device: Any) -> None:
    """Accelerators work behind the program's back: wait for them before a clock is read."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)
