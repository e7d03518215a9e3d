"""What an efficient kernel of attention keeps and how it lies in memory, on tensors without values."""

import pytest
import torch

from base_model.plan.attention import Kernel, efficient_attention
from base_model.train.device import attention


def heads(count, size=8):
    return torch.empty(2, count, 5, size, device="meta", requires_grad=True)


def test_the_output_lies_by_tokens_and_has_the_values_size():
    output = Kernel.apply(heads(4), heads(4), heads(4, size=16))
    assert output.shape == (2, 4, 5, 16)
    assert output.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_keys_are_repeated_only_where_heads_share_them(shared):
    query, key, value = heads(4), heads(shared), heads(shared)
    output, _ = efficient_attention(None, query, key, value, None)
    kept = output.grad_fn.next_functions[0][0].saved_tensors[:3]
    assert output.shape == (2, 5, 4, 8) and output.is_contiguous()
    assert [one.shape for one in kept] == [query.shape] * 3
    assert all((one is given) == (shared == 4) for one, given in zip(kept[1:], (key, value), strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_a_mask_is_kept_for_backward_in_the_querys_dtype(masked):
    mask = torch.empty(2, 1, 5, 5, dtype=torch.bool, device="meta") if masked else None
    output = attention(heads(4), heads(4), heads(4), mask)
    bias = getattr(output.grad_fn, "bias", None)
    assert (bias is not None) == masked
    assert not masked or (bias.dtype, bias.shape) == (torch.float32, mask.shape)
    assert attention(*(one.detach() for one in (heads(4), heads(4), heads(4))), mask).grad_fn is None
