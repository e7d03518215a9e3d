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
    *_, bias = output.grad_fn.saved_tensors
    assert (bias is not None) == masked
    assert not masked or (bias.dtype, bias.shape) == (torch.float32, mask.shape)
    assert attention(*(one.detach() for one in (heads(4), heads(4), heads(4))), mask).grad_fn is None


def test_checkpointing_lets_go_of_masks():
    """A window shorter than the text gives each layer a mask of tokens by tokens, of which one is there at a time."""
    from transformers import MistralConfig

    from base_model.train.trainer import plan_trainer

    tokens, truths = 512, 512 * 512

    def peak(layers, window):
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = MistralConfig(num_hidden_layers=layers, vocab_size=64, sliding_window=window, dtype="float32", **sizes)
        arguments = {"per_device_train_batch_size": 1, "max_length": tokens, "bf16": False}
        return plan_trainer(config, arguments)["peak_bytes"][0]

    more = [peak(6, window) - peak(2, window) for window in (64, None)]
    assert more[0] == more[1]
    assert peak(2, 64) - peak(2, None) >= truths
