"""One device's share of a run that FSDP2 shards: accelerate's and torch's own code, on a group that sends nothing.

The run is the one that `fsdp=True` in the trainer's arguments gives, `fsdp_config` included. Each module of the model's
`_no_split_modules` is a unit, the embedding, and the last norm with the head; the rest is the root's. A unit is
gathered for its forward and its backward, the last ones are kept in between. With bfloat16 autocast, TRL's default,
accelerate keeps what is trained in float32 and gathers bfloat16; without it, all stays as it was loaded. 4-bit weights
are sharded if `bnb_4bit_quant_storage` is a float, and whole on every device if not; their scales always are whole.

FSDP1, DeepSpeed and offloading are not planned. FSDP1 gathers flat groups of parameters, and older trainers keep more
copies of the logits: of the runs of fms-acceleration on two A100s full fine-tuning is met, LoRA and QLoRA lie above.

Imports torch: import it late.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor._sharding_prop import ShardingPropagator

from base_model import ModelError
from base_model.plan.ledger import Ledger


@contextmanager
def group_of(devices: int) -> Iterator[None]:
    """Inside, this process is the first of a group of devices, which accelerate takes for CUDA cards."""
    if dist.is_initialized():
        raise ModelError("This process already belongs to a torch.distributed group: plan sharded training outside it.")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with _states_put_back():
        dist.init_process_group("fake", rank=0, world_size=devices, store=FakeStore())
        try:
            with _named_cuda(dist.init_device_mesh("cpu", (devices,))):
                yield
        finally:
            dist.destroy_process_group()


@contextmanager
def _states_put_back() -> Iterator[None]:
    """accelerate keeps one state per process, and transformers tells it some by the environment."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    with ExitStack() as stack:
        for state in (PartialState, AcceleratorState, GradientState):
            stack.enter_context(mock.patch.dict(state._shared_state, clear=True))
        stack.enter_context(mock.patch.dict(os.environ))
        # init_process_group puts its own there.
        stack.enter_context(mock.patch.object(sys, "excepthook", sys.excepthook))
        yield


@contextmanager
def _named_cuda(mesh: Any) -> Iterator[None]:
    """accelerate asks which devices there are, and FSDP for a mesh of them, which real numbers make."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def set_device(state: Any) -> None:
        state.device = torch.device("cpu")

    backend = "fake", DistributedType.MULTI_GPU
    with (
        mock.patch.object(PartialState, "_prepare_backend", lambda *_, **__: backend),
        mock.patch.object(PartialState, "set_device", set_device),
        mock.patch("torch.distributed.fsdp._fully_shard._fully_shard._init_default_mesh", lambda: mesh),
        mock.patch.object(FakeTensor, "data_ptr", lambda tensor: tensor.untyped_storage()._cdata, create=True),
    ):
        yield


@contextmanager
def watched(ledger: Ledger) -> Iterator[None]:
    """Inside, the ledger counts what FSDP gathers and sends as temporary, and not what DTensor only asks about."""
    with (
        mock.patch.object(FSDPParamGroup, "unshard", _gathered(FSDPParamGroup.unshard, ledger)),
        mock.patch.object(FSDPParamGroup, "wait_for_unshard", _unsharded(ledger)),
        mock.patch.object(FSDPParamGroup, "post_backward", _reduced(ledger)),
        mock.patch("accelerate.accelerator.fsdp2_prepare_model", _prepared),
        mock.patch("bitsandbytes.nn.modules.fix_4bit_weight_quant_state_from_module", _with_its_state),
        mock.patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", _unseen(ledger)),
    ):
        yield


def _gathered(function: Callable[..., Any], ledger: Ledger) -> Callable[..., Any]:
    """The function, with what it makes counted as temporary: whole weights, and buffers of what is sent."""

    @wraps(function)
    def run(group: FSDPParamGroup, *args: Any, **kwargs: Any) -> Any:
        with ledger.making("temporary"):
            return function(group, *args, **kwargs)

    return run


def _unsharded(ledger: Ledger) -> Callable[..., Any]:
    """`wait_for_unshard`, which also has the whole gradients of the gathered parameters counted."""
    gathered = _gathered(FSDPParamGroup.wait_for_unshard, ledger)

    def wait_for_unshard(group: FSDPParamGroup) -> None:
        gathered(group)
        for one in group.fsdp_params:
            parameter = getattr(one, "_unsharded_param", None)
            if parameter is not None and parameter.requires_grad and not parameter._post_accumulate_grad_hooks:
                parameter.register_post_accumulate_grad_hook(lambda one: ledger.enter(one.grad, "gradients"))

    return wait_for_unshard


def _reduced(ledger: Ledger) -> Callable[..., Any]:
    """`post_backward`, which leaves this device's part of the gradients."""
    reduced = _gathered(FSDPParamGroup.post_backward, ledger)

    def post_backward(group: FSDPParamGroup, *args: Any) -> None:
        reduced(group, *args)
        for one in group.fsdp_params:
            if one.sharded_param.grad is not None:
                ledger.enter(one.sharded_param.grad, "gradients")

    return post_backward


def _unseen(ledger: Ledger) -> Callable[..., Any]:
    """DTensor's question of what an operation gives on whole tensors, each asked once: they take no memory."""
    asked = ShardingPropagator._propagate_tensor_meta_non_cached

    def propagate(*args: Any) -> Any:
        before, ledger.blind = ledger.blind, True
        try:
            return asked(*args)
        finally:
            ledger.blind = before

    return propagate


class Params4bit(FakeTensor):
    """A fake tensor of the name by which accelerate knows bitsandbytes' parameters, which cannot be fake."""


def _prepared(accelerator: Any, model: Any) -> Any:
    """accelerate's `fsdp2_prepare_model`, on 4-bit parameters of the name that it asks for."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    for parameter in model.parameters():
        if hasattr(parameter, "quant_state"):
            parameter.__class__ = Params4bit
        elif hasattr(parameter, "SCB"):
            raise ModelError("Weights in 8 bits lose their scales when FSDP shards them: take 4 bits, or devices=1.")
    return fsdp2_prepare_model(accelerator, model)


def _with_its_state(layer: Any) -> None:
    """bitsandbytes' way of giving a gathered 4-bit weight the state that it lost; it copies nothing."""
    if getattr(layer.weight, "quant_state", None) is None:
        layer.weight.quant_state = layer.quant_state
