"""The plan of a trainer's step; real runs on the CPU, and torch's own tracker of memory, are the judges."""

import shutil

import pytest

import model_tools as mt
from tests.train.real_run import added_by_a_step

MIB = 2**20


@pytest.fixture(scope="module")
def toy_copy(toy, tmp_path_factory):
    """A toy of our own: a trainer makes its output folder beside the model."""
    return shutil.copytree(toy, tmp_path_factory.mktemp("trained") / "toy")


def lora(**more):
    import peft

    return peft.LoraConfig(**{"r": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | more)


def ia3():
    import peft

    return peft.IA3Config(task_type="CAUSAL_LM")


def nothing():
    return None


def planned_ledger(folder, arguments, adapter=None, tokens=64, trainer="trl", quantization=None):
    """What the planned step does on the CPU, as a ledger."""
    import tempfile

    from transformers import TrainingArguments

    from base_model.architecture.config import read_architecture
    from base_model.train.arguments import planned_run
    from base_model.train.trainer import measure

    args, load = {"use_cpu": True} | arguments, None
    with tempfile.TemporaryDirectory() as out:
        if trainer == "hf":
            load = args.pop("model_init_kwargs", None)
            args = TrainingArguments(output_dir=out, **args)
        run = planned_run(args, tokens, load, out)
        return measure(read_architecture(folder), run, adapter, quantization)[0]


def both(folder, arguments, adapter, tokens, trainer="trl"):
    """What a step adds at most to what was there when it began: planned, and of a real run."""
    ledger = planned_ledger(folder, arguments, adapter(), tokens, trainer)
    return ledger.peak - ledger.start_total, added_by_a_step(folder, arguments, adapter(), tokens, trainer)


FOUR = {"per_device_train_batch_size": 4}
EAGER = {"model_init_kwargs": {"attn_implementation": "eager"}}
REENTRANT = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
RUNS = [
    *((adapter, {"gradient_checkpointing": kept}, "trl") for adapter in (lora, ia3, nothing) for kept in (True, False)),
    (lora, {"gradient_accumulation_steps": 2}, "trl"),
    (nothing, {"gradient_accumulation_steps": 2}, "trl"),
    (nothing, {"optim": "adamw_torch"}, "trl"),
    (nothing, {"optim": "adafactor"}, "trl"),
    (nothing, {"optim": "sgd"}, "trl"),
    (lora, {"bf16": False}, "trl"),
    (lora, EAGER, "trl"),
    (nothing, REENTRANT, "trl"),
    (nothing, {"loss_type": "nll"}, "trl"),
    (lora, {"gradient_checkpointing": False}, "hf"),
    (nothing, {"gradient_checkpointing": True, "bf16": True, "label_smoothing_factor": 0.1}, "hf"),
]


@pytest.mark.parametrize(("adapter", "arguments", "trainer"), RUNS, ids=lambda one: getattr(one, "__name__", str(one)))
def test_the_plan_is_what_a_real_run_takes(adapter, arguments, trainer, toy_copy):
    planned, real = both(toy_copy, FOUR | arguments, adapter, 64, trainer)
    assert planned == pytest.approx(real, rel=1e-3)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_plan_is_what_the_demo_model_takes(checkpointing, demo, tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    for file in demo.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    arguments = {"per_device_train_batch_size": 2, "gradient_checkpointing": checkpointing}
    planned, real = both(folder, arguments, lora, 256)
    assert planned == pytest.approx(real, rel=1e-3)
    assert planned > 300 * MIB


def tracked(folder, arguments, adapter=None):
    """The peak of the planned step by our ledger, and by torch's own tracker, which sees each operation first."""
    from unittest import mock

    import torch
    from torch.distributed._tools.mem_tracker import MemTracker

    from base_model.plan import ledger as room

    tracker = MemTracker()
    tracker._mod_tracker = mock.MagicMock(
        is_bw=False
    )  # by module is not asked, and its hooks want gradients everywhere

    class Both(room.Ledger):
        def start(self):
            super().start()
            now = tracker.get_tracker_snapshot()
            tracker._peak_mem = {device: kinds["Total"] for device, kinds in now.items()}

        def __enter__(self):
            super().__enter__()
            tracker.__enter__()
            return self

        def __exit__(self, *error):
            tracker.__exit__(*error)
            super().__exit__(*error)

    with mock.patch.object(room, "Ledger", Both):
        ledger = planned_ledger(folder, arguments, adapter)
    return ledger.peak, tracker._peak_mem[torch.device("cpu")]


@pytest.mark.parametrize("adapter", [lora, nothing], ids=["lora", "full"])
@pytest.mark.parametrize("arguments", [{}, {"optim": "adafactor"}, {"gradient_accumulation_steps": 2}], ids=str)
def test_torch_s_own_tracker_counts_the_same_bytes(adapter, arguments, toy):
    ours, torchs = tracked(toy, FOUR | {"gradient_checkpointing": False} | arguments, adapter())
    assert ours == torchs
