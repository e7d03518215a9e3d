"""A GPTQ base in training, by its bytes: packed weights, unpacked for each product. Imports torch: import it late.

The layer stands in for those of gptqmodel and AutoGPTQ, which want a card. Stored are the weights of `bits` bits in
int32, a float16 scale and a packed zero per group of inputs and output, and an int32 group per input:
https://github.com/AutoGPTQ/AutoGPTQ (nn_modules/qlinear). Forward and backward unpack the whole weight once each, and
keep the packed one only.
"""

from typing import Any

import torch

from base_model import ModelError

BITS = (2, 4, 8)


class _Product(torch.autograd.Function):
    """`inputs @ weight`, the weight unpacked for as long as the product takes."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: "PackedLinear") -> torch.Tensor:
        ctx.layer = layer
        return inputs @ layer.unpacked(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] @ ctx.layer.unpacked(gradients[0]).t(), None


class PackedLinear(torch.nn.Module):
    """A linear layer whose weight is packed by GPTQ; it computes nothing."""

    def __init__(self, inputs: int, outputs: int, bits: int, group: int, bias: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        groups = -(-inputs // group) if group > 0 else 1
        self.register_buffer("qweight", torch.empty(inputs * bits // 32, outputs, dtype=torch.int32))
        self.register_buffer("qzeros", torch.empty(groups, outputs * bits // 32, dtype=torch.int32))
        self.register_buffer("scales", torch.empty(groups, outputs, dtype=torch.float16))
        self.register_buffer("g_idx", torch.empty(inputs, dtype=torch.int32))
        self.bias = bias

    def unpacked(self, like: torch.Tensor) -> torch.Tensor:
        """The weight in half precision, as the product takes it."""
        half: Any = like.dtype if like.element_size() == 2 else self.scales.dtype
        if torch.is_autocast_enabled("cpu"):
            half = torch.get_autocast_dtype("cpu")
        return like.new_empty(self.in_features, self.out_features, dtype=half)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The product, and the bias where there is one."""
        out = _Product.apply(inputs.reshape(-1, self.in_features), self)
        out = out.reshape(*inputs.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def pack(model: Any, settings: Any) -> Any:
    """The skeleton with the linear layers that a `GPTQConfig` packs: unless it names some, all but the output head.

    Returns the same skeleton, changed. Raises ModelError for other bits, and for experts that share one parameter.
    """
    if settings.bits not in BITS:
        raise ModelError(f"GPTQ in {settings.bits} bits is not planned: 2, 4 or 8 are.")
    _refuse_experts(model)
    named = tuple(name for block in settings.modules_in_block_to_quantize or () for name in block)
    for name, module in list(model.named_modules()):
        wanted = name.endswith(named) if named else module is not model.get_output_embeddings()
        if type(module) is torch.nn.Linear and wanted:
            model.set_submodule(name, _packed(module, settings))
    model.quantization_method = "gptq"  # by which PEFT knows it
    return model.requires_grad_(False)


def _packed(linear: torch.nn.Linear, settings: Any) -> PackedLinear:
    with torch.device("meta"):
        size = linear.in_features, linear.out_features
        return PackedLinear(*size, settings.bits, settings.group_size, linear.bias)


def adapt(adapter: Any) -> Any:
    """The adapter's config, told of the layer; LoRA only."""
    from peft import LoraConfig
    from peft.tuners.lora.gptq import GPTQLoraLinear

    if not isinstance(adapter, LoraConfig):
        raise ModelError(f"A GPTQ base is trained with LoRA; {type(adapter).__name__} is not planned on it.")
    adapter._register_custom_module({PackedLinear: GPTQLoraLinear})
    return adapter


def _refuse_experts(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and "expert" in name:
            raise ModelError(f"GPTQ packs one matrix at a time, and {name} holds all experts: this cannot be planned.")
