"""Tensors without values: what model code may ask of them, and the answers. Imports torch: import it late."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

FAULTS = (torch.isinf, torch.isnan, torch.Tensor.isinf, torch.Tensor.isnan)


class Finite(TorchFunctionMode):
    """Asked whether a tensor on the meta device holds an infinity or a NaN, torch answers no."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FAULTS and args and args[0].device.type == "meta":
            return torch.zeros((), dtype=torch.bool, device="cpu")
        return func(*args, **(kwargs or {}))


class First(TorchDispatchMode):
    """Asked for a whole number in a tensor on the meta device, such as an expert's, torch answers 0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        number = func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta"
        if number and args[0].dtype in (torch.int64, torch.int32):
            return 0
        return func(*args, **(kwargs or {}))
