"""The cost of each operation, and the time that a card takes for a step of them."""

from collections import Counter

import pandas as pd
import pytest

import model_tools as mt
from base_model.architecture.config import read_architecture
from base_model.train import time
from base_model.train.gpus import CPU
from base_model.train.methods import METHODS, packing_of
from base_model.train.operations import Cost, Tape
from base_model.train.runs import LLAMA_3_2_3B
from base_model.train.time import COLUMNS, step_costs, time_on
from tests.folders import write_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("models") / "toy")


CARD = {
    "gpu": "a card", "memory_bytes": 2**34, "bandwidth": 1e12, "bf16_flops": 1e14, "fp16_flops": 1e14,
    "fp32_flops": 1e13, "source": "made up",
}  # fmt: skip


def costs_of(toy, adapter=None, **arguments):
    arguments = {"per_device_train_batch_size": 2, "gradient_checkpointing": False} | arguments
    return step_costs(read_architecture(toy), arguments, adapter, None, 64, "trl", None)


def test_flops_are_those_that_torch_counts_in_a_real_step(toy):
    """On the CPU, in float32, without checkpointing: the same operations, so the same sum."""
    import datasets
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, TrainingArguments
    from transformers import Trainer as HFTrainer

    row = {"input_ids": [5] * 64, "labels": [5] * 64, "attention_mask": [1] * 64}
    args = TrainingArguments(
        output_dir=str(toy / "out"), use_cpu=True, max_steps=1, per_device_train_batch_size=2, report_to=[],
        disable_tqdm=True, save_strategy="no", optim="sgd",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(toy, dtype="float32")
    trainer = HFTrainer(model, args, train_dataset=datasets.Dataset.from_list([row] * 2))
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    costs, tokens, _ = step_costs(read_architecture(toy), args, None, None, 64, "trl", None)
    assert tokens == 128
    assert sum(cost.flops * count for cost, count in costs.items()) == counter.get_total_flops()


def test_attention_multiplies_each_token_with_half_of_the_others():
    """Queries by keys, then scores by values; the backward pass has five such products for these two."""
    import torch

    from base_model.train.operations import _attention_backward_flops, _attention_flops

    query, key, value = (torch.empty(2, 4, tokens, size) for tokens, size in ((64, 16), (32, 16), (32, 8)))
    products = 2 * 4 * 64 * 32 * (16 + 8)  # 2 FLOPs for a multiply and an add, and half of the matrix
    assert _attention_flops(query, key, value) == products
    assert _attention_backward_flops(query, key, value, query) == products * 5 // 2


def test_a_step_is_one_step(toy):
    """Six FLOPs per parameter and token (Kaplan et al., 2020, section 2.1), attention and embedding aside."""
    costs, tokens, _ = costs_of(toy, loss_type="nll")
    parameters = 26_912 - 260 * 32  # without the embedding; as the head it is among them once
    assert 6 <= sum(cost.flops * count for cost, count in costs.items()) / (parameters + 260 * 32) / tokens <= 8


def test_a_list_that_is_changed_in_place_is_read_and_written():
    import torch

    tensors = [torch.empty(1000, device="meta") for _ in range(3)]
    tape = Tape()
    tape(torch.ops.aten._foreach_mul_.Scalar, (tensors, 2.0), {}, None)
    (cost,) = tape.costs
    assert cost.moved == 2 * 3 * 4000


def test_views_and_allocations_cost_nothing():
    import torch

    tape, one = Tape(), torch.empty(4, 4, device="meta")
    tape(torch.ops.aten.view.default, (one, [16]), {}, one.view(16))
    tape(torch.ops.aten.empty_like.default, (one,), {}, torch.empty_like(one))
    assert not tape.costs
    tape(torch.ops.aten.mul.Tensor, (one, one), {}, one * one)
    assert next(iter(tape.costs)).moved == 3 * 64


def test_the_embedding_reads_only_the_rows_it_gives():
    import torch

    table, ids = torch.empty(1000, 8, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
    tape = Tape()
    tape(torch.ops.aten.embedding.default, (table, ids), {}, table[ids])
    assert next(iter(tape.costs)).moved == 2 * 3 * 8 * 4


def test_a_faster_card_is_faster_and_the_parts_add_up(toy):
    costs, tokens, half = costs_of(toy)
    twice = {"bandwidth": 2e12, "bf16_flops": 2e14, "fp32_flops": 2e13}
    slow = time_on(costs, tokens, pd.Series(CARD), half).iloc[0]
    fast = time_on(costs, tokens, pd.Series(CARD | twice), half).iloc[0]
    for row in (slow, fast):
        assert row["compute_s"] + row["memory_s"] + row["launch_s"] == pytest.approx(row["step_s"])
        assert row["low_s"] < row["step_s"] < row["high_s"]
        assert row["tokens_per_s"] == pytest.approx(tokens / row["step_s"])
    assert fast["memory_s"] + fast["compute_s"] == pytest.approx((slow["memory_s"] + slow["compute_s"]) / 2)


def test_a_card_without_bfloat16_computes_it_in_float32_unless_float16_is_asked_for(toy):
    old = pd.Series(CARD | {"bf16_flops": pd.NA})
    slow = time_on(*costs_of(toy)[:2], old).iloc[0]["compute_s"]
    costs, tokens, half = costs_of(toy, fp16=True)
    assert half
    assert time_on(costs, tokens, old, half).iloc[0]["compute_s"] < slow


def test_a_plain_loop_has_one_batch_a_step(toy):
    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    assert step_costs(read_architecture(toy), arguments, None, None, 64, "plain", None)[1] == 2 * 64


def test_accumulation_adds_micro_batches(toy):
    one, two = costs_of(toy), costs_of(toy, gradient_accumulation_steps=2)
    assert two[1] == 2 * one[1]
    flops = [sum(cost.flops * count for cost, count in costs.items()) for costs, *_ in (one, two)]
    assert flops[1] == 2 * flops[0]


@pytest.mark.parametrize(("rank", "published", "within"), [(32, 4 * 210 / 7174, 0.10), (None, 4 * 210 / 2316, 0.20)])
def test_published_steps_of_llama_3b_on_an_l40s(rank, published, within):
    """PEFT's method comparison: a plain loop, 4 texts of 210 tokens on average."""
    import peft
    from transformers import LlamaConfig

    from base_model.train.time import plan_time

    adapter = peft.LoraConfig(r=rank, task_type="CAUSAL_LM") if rank else None
    args = {"per_device_train_batch_size": 4, "gradient_checkpointing": False}
    row = plan_time(LlamaConfig(**LLAMA_3_2_3B), args, adapter, None, 210, "L40S", "plain").iloc[0]
    assert tuple(row.index) == COLUMNS
    assert row["step_s"] == pytest.approx(published, rel=within)
    assert row["low_s"] < published < row["high_s"]


def test_the_product_of_trls_loss_is_of_its_factors_dtype():
    """It is added up in float32, but computed in bfloat16: on an A100, sixteen times as fast."""
    import torch

    from base_model.train.device import add_product

    tape, sum_of = Tape(), torch.empty(4, 8, device="meta")
    factors = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((4, 16), (16, 8))]
    tape(add_product._opoverload, (sum_of, *factors), {}, None)
    cost = next(iter(tape.costs))
    assert (cost.dtype, cost.flops) == ("bfloat16", 2 * 4 * 16 * 8)
    assert cost.moved == 2 * sum_of.nbytes + sum(one.nbytes for one in factors)


def test_bitsandbytes_launches_take_the_host_longer(toy):
    import peft

    adapter, packing = peft.LoraConfig(task_type="CAUSAL_LM"), packing_of(METHODS[-1])
    args = {"per_device_train_batch_size": 1, "gradient_checkpointing": False}
    costs, *_ = step_costs(read_architecture(toy), args, adapter, packing, 64, "trl", None)
    assert {cost.launches for cost in costs} == {1, 7, 8}  # a product on 4 bits: seven to unpack, one to multiply
    assert all(cost.launches == 1 for cost in costs_of(toy, adapter)[0])


def test_a_weight_of_4_bits_is_unpacked_before_it_is_multiplied():
    """By hand, 8 x 64 values by a weight of 32 x 64: packed, half a byte each, and as bfloat16."""
    import torch

    tape, meta = Tape(), {"device": "meta"}
    x, packed = torch.empty(8, 64, dtype=torch.bfloat16, **meta), torch.empty(1024, 1, dtype=torch.uint8, **meta)
    absmax, out = torch.empty(32, **meta), torch.empty(8, 32, dtype=torch.bfloat16, **meta)
    tape(torch.ops.bitsandbytes.gemm_4bit.default, (x, packed, [32, 64], absmax, 64, "nf4"), {}, out)
    unpack, product = tape.costs
    assert (unpack.flops, unpack.moved, unpack.launches) == (0, 1024 + 32 * 4 + 32 * 64 * 2, 7)
    assert (product.flops, product.moved) == (2 * 8 * 64 * 32, (8 * 64 + 32 * 64 + 8 * 32) * 2)
    assert product.launches == 1 and product.dtype == unpack.dtype == "bfloat16"


def test_a_short_step_waits_for_its_host_which_may_take_half_or_twice_the_time():
    launched = Counter({Cost(0, "float32", 8, launches=8): 1000})
    computed = Counter({Cost(10**12, "bfloat16", 8): 1000})
    host, gpu = (time_on(costs, 64, pd.Series(CARD)).iloc[0] for costs in (launched, computed))
    assert host["step_s"] == pytest.approx(8 * 1000 * time.LAUNCH_S)
    assert (host["low_s"], host["high_s"]) == pytest.approx((host["step_s"] / 2, host["step_s"] * 2))
    assert (gpu["low_s"], gpu["high_s"]) == pytest.approx((gpu["step_s"] * 0.75, gpu["step_s"] * 1.25))
    assert time_on(launched, 64, pd.Series(CARD | {"gpu": CPU})).iloc[0]["step_s"] < host["step_s"] / 2


@pytest.mark.parametrize("arguments", [{"activation_offloading": True}, {"optim": "paged_adamw_8bit"}])
def test_copies_to_the_machines_memory_are_not_timed_and_a_warning_says_so(toy, arguments):
    with pytest.warns(mt.ModelWarning, match="copies between the card and the machine's memory"):
        costs_of(toy, **arguments)


def test_what_makes_no_sense_is_refused(toy):
    with pytest.raises(mt.ModelError, match="L40S"):
        mt.plan_time(toy, tokens=64, gpu="L40X")
    with pytest.raises(mt.ModelError, match="plain"):
        mt.plan_time(toy, tokens=64, trainer="axolotl")
