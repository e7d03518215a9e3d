"""The size of the file that PEFT would save, from tensors without values. Imports torch: import it late."""

import json
import warnings
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "uint8": "U8"}


class Unmoved(TorchDispatchMode):
    """What PEFT moves to the CPU in order to save it stays on the meta device: it has a shape, and no values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "meta":
            kwargs.pop("device", None)
        return func(*args, **kwargs)


def file_bytes(model: Any) -> int:
    """The size of adapter_model.safetensors: its tensors, and the header that safetensors would write for them.

    Format: https://github.com/huggingface/safetensors#format; tensors lie by falling element size, then by name.
    """
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings(), torch.no_grad(), Unmoved():
        warnings.simplefilter("ignore")  # its remarks on what it saves: a size is all that is asked
        tensors = get_peft_model_state_dict(model)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + tensor.nbytes
        dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + text + -text % 8 + end
