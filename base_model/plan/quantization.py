"""The skeleton with its linear layers in 8 or 4 bits, made by bitsandbytes itself on the meta device."""

import logging
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from base_model import ModelError

METHODS = ("int8", "nf4")


@cache
def bitsandbytes() -> ModuleType:
    """The library, imported without its note that an optional kernel is absent; peft imports it, too."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


def quantize(skeleton: Any, method: str) -> Any:
    """Replace the linear layers of a skeleton: `method` is "int8" or "nf4", without double quantisation.

    See `quantize_by`.
    """
    from transformers import BitsAndBytesConfig

    if method not in METHODS:
        raise ModelError(f'Weights can be quantised as "int8" or "nf4", not as {method!r}.')
    if method == "int8":
        return quantize_by(skeleton, BitsAndBytesConfig(load_in_8bit=True))
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=skeleton.dtype)
    return quantize_by(skeleton, settings)


def quantize_by(skeleton: Any, settings: Any) -> Any:
    """Replace the linear layers of a skeleton as transformers would when it loads one with this `BitsAndBytesConfig`.

    8 bits take one float32 scale per row, 4 bits one per 64 weights; with double quantisation these take 8 bits, too.
    The output head, embeddings and norms keep their dtype. Returns the same skeleton, changed.
    """
    bitsandbytes()
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    dtype = skeleton.dtype  # the replaced layers are born in float32
    kept = settings.llm_int8_skip_modules or get_keys_to_not_convert(skeleton)
    skeleton = replace_with_bnb_linear(skeleton, kept, settings)
    for module in skeleton.modules():
        _pack(module, settings, dtype)
    skeleton.is_loaded_in_4bit, skeleton.is_loaded_in_8bit = settings.load_in_4bit, settings.load_in_8bit
    return skeleton


def _pack(module: Any, settings: Any, dtype: Any) -> None:
    """Quantise the weight of one replaced layer, as loading does; other modules stay as they are."""
    bnb = bitsandbytes()
    if isinstance(module, bnb.nn.Linear4bit):
        kind, double = settings.bnb_4bit_quant_type, settings.bnb_4bit_use_double_quant
        packed, state = bnb.functional.quantize_4bit(
            module.weight.data.to(dtype), quant_type=kind, compress_statistics=double,
            quant_storage=settings.bnb_4bit_quant_storage,
        )  # fmt: skip
        module.weight = bnb.nn.Params4bit(
            packed, quant_state=state, quant_type=kind, compress_statistics=double, bnb_quantized=True, module=module
        )
        module.quant_state = state
    elif isinstance(module, bnb.nn.Linear8bitLt):
        packed, scales, _ = bnb.functional.int8_vectorwise_quant(module.weight.data.to(dtype))
        module.weight = bnb.nn.Int8Params(packed, requires_grad=False, has_fp16_weights=False, CB=packed, SCB=scales)
    if hasattr(module, "source_cls") and module.bias is not None:
        module.bias.data = module.bias.data.to(dtype)


def stored_tensors(model: Any) -> Iterator[Any]:
    """Every tensor that a loaded model keeps: parameters, buffers, and what a quantisation keeps beside them."""
    yield from model.parameters()
    yield from model.buffers()
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            yield from (state.absmax, state.code)
            if state.offset is not None:
                yield state.offset
            state = state.state2
        if getattr(parameter, "SCB", None) is not None:
            yield parameter.SCB


def stored_bytes(model: Any) -> int:
    """The bytes of `stored_tensors`, each once."""
    return sum({id(tensor): tensor.nbytes for tensor in stored_tensors(model)}.values())
