"""Attention as a GPU's kernel allocates it, with nothing computed. Imports torch: import it late."""

from typing import Any

import torch

ATTENTION = "base_model_efficient"  # the name under which transformers finds `efficient_attention`


@torch.library.custom_op("base_model::attention", mutates_args=())
def attention_of(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and the log-sum-exp of each row, of shapes alone."""
    raise NotImplementedError("for tensors without values only")


@attention_of.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, tokens, _ = query.shape
    output = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
    return output, query.new_empty(query.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("base_model::attention_backward", mutates_args=())
def gradients_of_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, of shapes alone."""
    raise NotImplementedError("for tensors without values only")


@gradients_of_attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class Kernel(torch.autograd.Function):
    """The memory of FlashAttention and its like, which never hold the matrix of tokens by tokens.

    Kept for backward: query, key, value, output, one float32 log-sum-exp per row, and a mask as numbers. In backward,
    besides the three gradients: the query's in float32, one sum per row, and for shared keys and values a gradient per
    query head.
    https://github.com/Dao-AILab/flash-attention (csrc/flash_attn/flash_api.cpp, mha_bwd)
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: Any = None
    ) -> torch.Tensor:
        """Shapes (batch, heads, tokens, size of a head); the output lies in memory as (batch, tokens, heads, size)."""
        output, sums = attention_of(query, key, value)
        ctx.save_for_backward(query, key, value, output, sums, bias)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """One gradient for each input but the mask, laid out as the input is."""
        query, key, value, output, *_kept = ctx.saved_tensors
        shared = key.shape[1] != query.shape[1]
        sums = [query.new_empty(shape, dtype=torch.float32) for shape in (query.shape, query.shape[:-1])]
        per_head = [one.new_empty(*query.shape[:2], *one.shape[2:]) for one in (key, value) if shared]
        gradients = gradients_of_attention(query, key, value, output, gradient)
        del sums, per_head  # alive until the gradients are complete
        return *gradients, None


def efficient_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **_: Any
) -> tuple[torch.Tensor, None]:
    """An attention function for transformers that allocates what a GPU's kernel does, and computes nothing.

    Shared keys and values are repeated for each query head first, as transformers does for padded batches.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return Kernel.apply(query, key, value).transpose(1, 2).contiguous(), None


def use_efficient_attention(model: Any) -> None:
    """Make a transformers model call `efficient_attention`; an architecture that cannot be told so keeps its own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if not model._supports_sdpa:  # attention sinks and the like: transformers runs the quadratic one
        return
    AttentionInterface.register(ATTENTION, efficient_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
