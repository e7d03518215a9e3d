"""A row of `recommend` as the libraries' own settings: as objects for this machine, and as Python for any."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

import pandas as pd

from base_model import ModelError, require_whole, warn
from base_model.train.arguments import MOST_DEVICES
from base_model.train.methods import METHODS, Method, adapter_of, method_of, packing_of

NEEDED = ("method", "checkpointing", "batch", "tokens")
WIDTH = 100  # of a line of the Python that is written
# Where to begin: TRL's own rate for all weights, ten times that for LoRA, and what PEFT's comparison took for IA-3.
RATES = {None: 2e-5, "IA-3": 5e-3}
LORA_RATE = 2e-4


@dataclass(frozen=True)
class Choice:
    """What a row of `recommend` says of a run."""

    method: Method
    checkpointing: bool
    batch: int
    tokens: int
    devices: int

    @property
    def rate(self) -> float:
        """The learning rate to begin with."""
        return RATES.get(self.method.adapter, LORA_RATE)


def choice_of(row: Any) -> Choice:
    """A row as a Series, a dict or a table of one row. Raises ModelError for anything else."""
    if isinstance(row, pd.DataFrame) and len(row) == 1:
        row = row.iloc[0]
    if not isinstance(row, pd.Series | Mapping):
        raise ModelError(
            "`row` must be a row of `recommend`, such as recommend(model).iloc[0], or a dict of its columns."
        )
    if missing := [name for name in NEEDED if name not in row]:
        raise ModelError(f"The row lacks {', '.join(missing)}. Take one from `recommend`.")
    method, kept, verdict = str(row["method"]), str(row["checkpointing"]), str(row.get("verdict"))
    if method not in (names := [method.name for method in METHODS]):
        raise ModelError(f"The row's method must be one of {'; '.join(names)}; not {method!r}.")
    if kept not in ("True", "False"):
        raise ModelError(f"The row's checkpointing must be True or False, not {kept!r}.")
    if verdict == "not planned":
        raise ModelError(f"{method} could not be planned here, so there are no settings: {row.get('why', '')}")
    devices = row.get("devices", 1)
    require_whole("batch", row["batch"])
    require_whole("tokens", row["tokens"], least=2)
    require_whole("devices", devices, most=MOST_DEVICES)
    if verdict == "does not fit":
        warn(f"{method} does not fit: {row.get('why', '')}")
    return Choice(method_of(method), kept == "True", int(row["batch"]), int(row["tokens"]), int(devices))


@dataclass(frozen=True)
class Precision:
    """How this machine computes: what `PRECISION` finds out when it runs here."""

    device: str
    bf16: bool
    fp16: bool
    dtype: str


def precision_here(choice: Choice) -> Precision:
    """The device that the script would take on this machine, its autocast, and the dtype of the weights."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = accelerator.type if accelerator else "cpu"
    cuda = device == "cuda"
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else accelerator is not None
    low = "float16" if cuda and choice.method.adapter else "float32"
    return Precision(device, bf16, cuda and not bf16, "bfloat16" if bf16 else low)


def arguments(choice: Choice, here: Precision) -> dict[str, Any]:
    """The arguments of `SFTConfig` for a machine that computes in this way."""
    return {
        "per_device_train_batch_size": choice.batch, "max_length": choice.tokens,
        "gradient_checkpointing": choice.checkpointing, "optim": choice.method.optim, "learning_rate": choice.rate,
        "bf16": here.bf16, "fp16": here.fp16, "use_cpu": here.device == "cpu",
    }  # fmt: skip


def settings(config: Any, choice: Choice) -> str:
    """The Python of one choice: imports, the precision, then `adapter`, `quantization` and `args`, as far as needed."""
    names = "\n".join(imports(config, choice))
    return f"import torch\n{names}\n\n{body(config, choice)}{_usage(choice)}"


def _usage(choice: Choice) -> str:
    """How the settings are handed over, as comments."""
    packed = ", quantization_config=quantization" if packing_of(choice.method) is not None else ""
    adapter = ", peft_config=adapter" if choice.method.adapter else ""
    return (
        f"# model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype{packed})\n"
        f"# SFTTrainer(model, args, train_dataset=rows{adapter}).train()\n"
    )


def imports(config: Any, choice: Choice) -> list[str]:
    """The lines that import the classes of the settings."""
    adapter, packing = adapter_of(config, choice.method), packing_of(choice.method)
    lines = [f"from peft import {type(adapter).__name__}"] if adapter is not None else []
    lines += ["from transformers import BitsAndBytesConfig"] if packing is not None else []
    return [*lines, "from trl import SFTConfig"]


def body(config: Any, choice: Choice, more: tuple[str, ...] = ()) -> str:
    """The settings without imports; `more` are further arguments of `SFTConfig`, as Python."""
    adapter, packing = adapter_of(config, choice.method), packing_of(choice.method)
    parts = [_precision(choice)]
    if adapter is not None:
        parts.append(f"adapter = {_call(type(adapter).__name__, _differences(adapter))}\n")
    if packing is not None:
        parts.append(f"quantization = {_call('BitsAndBytesConfig', _packing(packing, choice.devices))}\n")
    parts.append("args = SFTConfig(\n" + "".join(f"    {line}\n" for line in (*_arguments(choice), *more)) + ")\n")
    return "".join(parts)


def _precision(choice: Choice) -> str:
    """The lines that ask the machine how it computes; `precision_here` is the same for us."""
    if choice.method.adapter is None:  # float16 weights cannot be trained themselves: their gradients vanish
        low, words = "torch.float32", "else in float16, over weights in float32"
    else:
        low, words = "torch.float16 if cuda else torch.float32", "else in float16"
    return (
        f"# A card computes in bfloat16 if it can (NVIDIA's from Ampere on), {words}; a CPU in float32.\n"
        "cuda, accelerator = torch.cuda.is_available(), torch.accelerator.is_available()\n"
        "bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else accelerator\n"
        f"dtype = torch.bfloat16 if bf16 else {low}\n\n"
    )


def _arguments(choice: Choice) -> list[str]:
    """The arguments of `arguments`, as lines of Python."""
    kept = "recomputed in the backward pass: less memory, a third more computing" if choice.checkpointing else ""
    return [
        f"per_device_train_batch_size={choice.batch!r},  # gradient_accumulation_steps=4 would join four such batches",
        f"max_length={choice.tokens!r},  # tokens; what is longer is cut",
        "num_train_epochs=1,",
        f"activation_checkpointing={choice.checkpointing!r},{f'  # {kept}' if kept else ''}",
        f"optim={choice.method.optim!r},",
        f"learning_rate={choice.rate!r},  # where to begin: the first thing to vary",
        "bf16=bf16,",
        "fp16=cuda and not bf16,",
        "use_cpu=not accelerator,",
    ]


def _differences(adapter: Any) -> dict[str, str]:
    """What an adapter's settings say beyond PEFT's defaults, as Python."""
    plain = type(adapter)()
    values = {field.name: getattr(adapter, field.name) for field in fields(adapter) if field.init}
    return {name: _literal(value) for name, value in values.items() if value != getattr(plain, name)}


def _literal(value: Any) -> str:
    if isinstance(value, Enum):
        return repr(value.value)
    return repr(sorted(value) if isinstance(value, set) else value)


def _packing(packing: Any, devices: int) -> dict[str, str]:
    """A `BitsAndBytesConfig` as Python; FSDP moves packed weights as tensors of the dtype of the others."""
    said = {name: value for name, value in packing.to_diff_dict().items() if not name.startswith("_")}
    said = {"load_in_4bit": said["load_in_4bit"]} | said  # first what it is about
    values = {name: "dtype" if name == "bnb_4bit_compute_dtype" else repr(value) for name, value in said.items()}
    return values | ({"bnb_4bit_quant_storage": "dtype"} if devices > 1 else {})


def _call(name: str, values: dict[str, str]) -> str:
    """A call as Python, in one line where it is short enough."""
    line = f"{name}({', '.join(f'{key}={value}' for key, value in values.items())})"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {key}={value},\n" for key, value in values.items()) + ")"
