"""The methods that people tune with: what each hands to a trainer, and the accuracy that was published for its kind."""

from dataclasses import dataclass
from typing import Any

from base_model.architecture.config import count_parameters, skeleton_of
from base_model.plan.adapters import RANK, attach, linear_modules, refused_for_lora

# Test accuracy on GSM8K after tuning Llama-3.2-3B on MetaMathQA: one model and one task, a hint and no promise.
# https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA
ACCURACY_OF = "Llama-3.2-3B on MetaMathQA, tested on GSM8K"


@dataclass(frozen=True)
class Method:
    """A way to tune: its `adapter` (see `adapter_of`), the `bits` of the base's weights, the optimizer's name."""

    name: str
    adapter: str | None
    bits: int = 16
    optim: str = "adamw_torch_fused"
    accuracy: float | None = None


METHODS = (
    Method("full fine-tuning", None, accuracy=0.472),
    Method("full fine-tuning, 8-bit Adam", None, optim="adamw_8bit"),
    Method(f"LoRA r{RANK}, attention", "attention", accuracy=0.478),
    Method(f"LoRA r{RANK}, all linear", "all linear", accuracy=0.494),
    Method(f"DoRA r{RANK}, all linear", "DoRA", accuracy=0.469),
    Method("IA-3", "IA-3", accuracy=0.311),
    Method(f"QLoRA r{RANK}, all linear", "all linear", bits=4),
)


def method_of(name: str) -> Method:
    """The method of this name; KeyError for none."""
    return {method.name: method for method in METHODS}[name]


def adapter_of(config: Any, method: Method) -> Any:
    """The `PeftConfig` of a method for this architecture, None for full fine-tuning."""
    from peft import IA3Config, LoraConfig

    if method.adapter is None:
        return None
    task: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    skeleton = skeleton_of(config)
    linear = linear_modules(skeleton)
    refused = refused_for_lora(skeleton, list(linear))
    attention, mlp = ([name for name, part in linear.items() if part == one] for one in ("attention", "mlp"))
    if method.adapter == "attention" and set(attention) - set(refused):
        attention = [name for name in attention if name not in refused]
        return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=attention, **task)
    if method.adapter == "IA-3":
        keys = [name for name in attention if name in ("k_proj", "v_proj")] or attention or list(linear)
        last = [name for name in mlp if name in ("down_proj",)] or mlp
        return IA3Config(target_modules=[*keys, *last], feedforward_modules=last, **task)
    return LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", exclude_modules=refused or None,
        use_dora=method.adapter == "DoRA", **task,
    )  # fmt: skip


def trainable_of(config: Any, method: Method) -> int:
    """How many parameters a method trains; those of an adapter are counted by PEFT. Raises ModelError."""
    skeleton, adapter = skeleton_of(config), adapter_of(config, method)
    return count_parameters(skeleton) if adapter is None else attach(skeleton, adapter).get_nb_trainable_parameters()[0]


def packing_of(method: Method) -> Any:
    """The `BitsAndBytesConfig` of a method with 4-bit weights, None for others."""
    if method.bits != 4:
        return None
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
