"""A model as `from_pretrained` would give it to a trainer: attention, quantisation, and tensors without memory."""

from typing import Any

from base_model import ModelError, brief, format_bytes, warn
from base_model.plan.quantization import bitsandbytes

FLASH = "base_model_varlen"  # the name under which transformers finds `flash_attention`


def with_attention(model: Any, wanted: str | None) -> Any:
    """The model with the attention that was asked for; a kernel that is not installed is stood in for."""
    if wanted is None:
        return model
    if wanted == "flex_attention":
        raise ModelError("flex_attention is compiled for the card, which cannot be planned: use sdpa.")
    if "flash" in wanted:
        _register_flash()
        wanted = FLASH
    try:
        model.set_attn_implementation(wanted)
    except (ValueError, ImportError) as error:
        raise ModelError(f"This model has no attention {wanted!r}: {brief(error)}") from error
    return model


def _register_flash() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(FLASH, flash_attention)
    AttentionMaskInterface.register(FLASH, flash_attention_mask)


def flash_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **_: Any) -> tuple[Any, None]:
    """FlashAttention's memory: shared keys and values are not repeated, and what autocast left in float32 is cast."""
    import torch

    from base_model.plan.attention import Kernel

    if query.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        query, key, value = (one.to(torch.get_autocast_dtype("cpu")) for one in (query, key, value))
    return Kernel.apply(query, key, value).transpose(1, 2).contiguous(), None


def quantized(model: Any, settings: Any) -> Any:
    """The model with its linear layers packed as a `BitsAndBytesConfig` or a `GPTQConfig` says."""
    from transformers import BitsAndBytesConfig, GPTQConfig

    from base_model.plan.quantization import quantize_by
    from base_model.train import gptq

    if isinstance(settings, GPTQConfig):
        return gptq.pack(model, settings)
    if not isinstance(settings, BitsAndBytesConfig):
        raise ModelError(
            f"quantization_config must be a BitsAndBytesConfig or a GPTQConfig, not {type(settings).__name__}."
        )
    return quantize_by(model, settings)


def warn_of_experts(model: Any) -> None:
    """bitsandbytes packs linear layers; transformers 5 keeps all experts of a layer in one parameter, which is not."""
    left = sum(one.nbytes for name, one in model.named_parameters() if one.ndim == 3 and "expert" in name)
    if left:
        warn(
            f"The experts, {format_bytes(left)}, stay unpacked: bitsandbytes packs linear layers, and transformers 5 "
            "keeps all experts of a layer in one parameter. Before version 5, each was a linear layer, and was packed."
        )


def fake_twin(tensor: Any, twins: dict[int, Any]) -> Any:
    """A tensor like this one on the planned device, the same one whenever it is asked for; call it in the fake mode.

    bitsandbytes' own classes of parameters cannot hold a fake tensor: a plain one with their attributes serves.
    """
    import torch

    if id(tensor) not in twins:
        twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        if isinstance(tensor, torch.nn.Parameter):
            twin = torch.nn.Parameter(twin, requires_grad=tensor.requires_grad)
        twins[id(tensor)] = twin
        _copy_quantisation(tensor, twin, twins)
    return twins[id(tensor)]


def _copy_quantisation(tensor: Any, twin: Any, twins: dict[int, Any]) -> None:
    bnb = bitsandbytes()
    if isinstance(tensor, bnb.nn.Params4bit):
        # The layer keeps it, too: FSDP replaces the parameter, and the layer gives it back.
        twin.quant_state = tensor.module.quant_state = _fake_state(tensor.quant_state, twins)
        twin.bnb_quantized, twin.quant_type, twin.quant_storage = True, tensor.quant_type, tensor.quant_storage
        twin.blocksize, twin.compress_statistics = tensor.blocksize, tensor.compress_statistics
    elif isinstance(tensor, bnb.nn.Int8Params):
        twin.CB, twin.SCB, twin.has_fp16_weights = twin.data, fake_twin(tensor.SCB, twins), False


def _fake_state(state: Any, twins: dict[int, Any]) -> Any:
    """A bitsandbytes `QuantState`, its tensors replaced; that of its scales, too, where these are packed again."""
    if state is None:
        return None
    tensors = {name: fake_twin(getattr(state, name), twins) for name in ("absmax", "code")}
    offset = fake_twin(state.offset, twins) if state.offset is not None else None
    return type(state)(
        **tensors, shape=state.shape, blocksize=state.blocksize, quant_type=state.quant_type, dtype=state.dtype,
        offset=offset, state2=_fake_state(state.state2, twins),
    )  # fmt: skip
