"""Where libraries ask for the device: each place that is answered is still there, and no other has come."""

import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from base_model.train.device import BRANCHES, BRANCHES_ON_CPU, BRANCHES_ON_FAKE, IN_FLOAT32

ANSWERED = [*BRANCHES, *BRANCHES_ON_CPU, *BRANCHES_ON_FAKE]


def named(branch):
    """What the library has under the name; None where it is imported only beside Triton."""
    owner = import_module(branch.module)
    for name in branch.name.split("."):
        owner = getattr(owner, name, None) if name == "triton" else getattr(owner, name)
    return owner


def source_of(branch):
    """The source in which a library asks; of a value that is no function, its module's."""
    try:
        return inspect.getsource(inspect.unwrap(named(branch)))
    except (TypeError, OSError):
        return inspect.getsource(import_module(branch.module))


@pytest.mark.parametrize("branch", ANSWERED, ids=lambda one: f"{one.module}.{one.name}")
def test_the_library_still_asks_there(branch):
    assert branch.asks in source_of(branch)
    assert branch.name.split(".")[-1] in inspect.getsource(import_module(branch.module))


# How often each file asks for the device, or whether a tensor is fake or traced, and which of it matters to a step.
ASKS = {
    "trl/trainer/utils.py": (3, "the entropy's kernel is not in a step; where to load; autocast by its own name"),
    "trl/trainer/sft_trainer.py": (0, ""),
    "trl/kernels/chunked_logprob.py": (3, "steered: _use_triton, _addmm_fp32; autocast by its own name"),
    "bitsandbytes/autograd/_functions.py": (5, "steered: matmul in 8 bits; the other packs for inference on the CPU; warnings"),
    "bitsandbytes/nn/modules.py": (4, "when a weight is packed or moved, which is done on the meta device; inference on the CPU"),
    "bitsandbytes/optim/optimizer.py": (2, "steered: get_state_buffer; the other moves a loaded state"),
    "bitsandbytes/functional.py": (3, "whose stream and whether devices agree: allocates nothing"),
    "peft/tuners/lora/layer.py": (7, "steered where a weight is unpacked; the others merge, initialise, or are of autocast"),
    "peft/tuners/lora/bnb.py": (0, ""),
    "peft/tuners/lora/dora.py": (0, ""),
    "peft/utils/integrations.py": (1, "steered with the function around it: dequantize_module_weight"),
    "transformers/integrations/moe.py": (7, "the CPU of torch from 2.11 on multiplies in groups, as CUDA does; counts of the same size"),
    "transformers/integrations/sdpa_attention.py": (3, "of compiling, and of one token at a time"),
    "transformers/masking_utils.py": (8, "steered: is_tracing asks is_fake_tensor"),
    "transformers/modeling_layers.py": (0, ""),
    "transformers/loss/loss_utils.py": (0, ""),
    "transformers/trainer.py": (1, "where the state of a random generator is loaded to"),
    "transformers/trainer_optimizer.py": (0, ""),
    "accelerate/optimizer.py": (0, ""),
    "torch/optim/optimizer.py": (11, "steered: _get_foreach_kernels_supported_devices, _foreach_supported_types; the rest is of compiling"),
    "torch/optim/adam.py": (8, "of capturing and compiling"),
    "torch/optim/adamw.py": (0, ""),
    "torch/utils/_foreach_utils.py": (1, "steered: _foreach_supported_types"),
    "torch/nn/utils/clip_grad.py": (3, "only to say which device cannot"),
}  # fmt: skip
QUESTION = re.compile(r"device\.type|\.is_cuda\b|is_fake_tensor|FakeTensor|is_tracing|is_compiling|torchdynamo_")


@pytest.mark.parametrize("file", ASKS)
def test_no_library_asks_more_than_was_looked_at(file):
    """A count that differs is a question that came or went: read it, steer it in `device` if it matters, count anew."""
    package, _, rest = file.partition("/")
    source = (Path(find_spec(package).submodule_search_locations[0]) / rest).read_text()
    lines = [line for line in source.splitlines() if QUESTION.search(line)]
    count, why = ASKS[file]
    assert len(lines) == count, lines
    assert bool(why) == bool(count)


def test_functions_in_float32_are_torch_s_own():
    import torch

    owners = (torch, torch.nn.functional, torch.Tensor)
    assert [name for name in IN_FLOAT32 if not any(hasattr(owner, name) for owner in owners)] == []
