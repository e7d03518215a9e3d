"""The skeleton with its linear layers in 8 or 4 bits, made by bitsandbytes itself on the meta device."""

import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from base_model import ModelError

METHODS = ("int8", "nf4")


def bitsandbytes() -> ModuleType:
    """The library, imported without its note that an optional kernel is absent; peft imports it, too."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


def quantize(skeleton: Any, method: str) -> Any:
    """Replace the linear layers of a skeleton as transformers would when it loads one with `BitsAndBytesConfig`.

    `method`: "int8" (one float32 scale per row) or "nf4" (4 bits, one float32 scale per 64 weights, without double
    quantisation). The output head, embeddings and norms keep their dtype. Returns the same skeleton, changed.
    """
    bitsandbytes()
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    if method not in METHODS:
        raise ModelError(f'Weights are quantised as "int8" or "nf4", not {method!r}.')
    settings = BitsAndBytesConfig(
        load_in_8bit=method == "int8",
        load_in_4bit=method == "nf4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=skeleton.dtype,
    )
    dtype = skeleton.dtype  # the replaced layers are born in float32
    skeleton = replace_with_bnb_linear(skeleton, get_keys_to_not_convert(skeleton), settings)
    for module in skeleton.modules():
        _pack(module, method, dtype)
    skeleton.is_loaded_in_4bit, skeleton.is_loaded_in_8bit = method == "nf4", method == "int8"
    return skeleton


def _pack(module: Any, method: str, dtype: Any) -> None:
    """Quantise the weight of one replaced layer, as loading does; other modules stay as they are."""
    bnb = bitsandbytes()
    if method == "nf4" and isinstance(module, bnb.nn.Linear4bit):
        packed, state = bnb.functional.quantize_4bit(module.weight.data.to(dtype), quant_type="nf4")
        module.weight = bnb.nn.Params4bit(
            packed, quant_state=state, quant_type="nf4", compress_statistics=False, bnb_quantized=True, module=module
        )
        module.quant_state = state
    elif method == "int8" and isinstance(module, bnb.nn.Linear8bitLt):
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
        if state is not None:
            yield from (state.absmax, state.code)
        if getattr(parameter, "SCB", None) is not None:
            yield parameter.SCB


def stored_bytes(model: Any) -> int:
    """The bytes of `stored_tensors`, each once."""
    return sum({id(tensor): tensor.nbytes for tensor in stored_tensors(model)}.values())
