"""A training script, run as it is and watched: `python -m base_model.train.watch RECORD train.py --steps 20`.

It writes a line of JSON into RECORD for each step: `batch`, `tokens` (with padding), `seconds`, and `peak_bytes`
where that is known: of each step on an accelerator, of the last one on a CPU. Imports torch: run it as a process of
its own.
"""

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback, trainer

from base_model.plan.quantization import stored_tensors


class Watch(TrainerCallback):
    """Told by the trainer when a step begins and ends."""

    record: Path
    shape: tuple[int, int]

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """The clock starts; on a CPU, the last step's allocations are listened to instead."""
        self.profile = None
        if args.device.type == "cpu" and state.global_step == state.max_steps - 1:
            self.held = _held(parts["model"], parts["optimizer"])
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.__enter__()
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.start = _now(args.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """One line of the record."""
        seconds: float | None = _now(args.device) - self.start
        peak = None
        if self.profile is not None:
            self.profile.__exit__(None, None, None)
            peak, seconds = self.held + _most_added(self.profile), None  # a step that is listened to is slower
        elif args.device.type != "cpu":
            peak = _peak(args.device.type)
        step = {"batch": self.shape[0], "tokens": self.shape[1], "seconds": seconds, "peak_bytes": peak}
        with self.record.open("a") as file:
            file.write(f"{json.dumps(step)}\n")


def _now(device: torch.device) -> float:
    """The clock, once the accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _peak(kind: str) -> int | None:
    """The most bytes that tensors took on an accelerator; of MPS what the driver holds, which it does not give back."""
    if kind == "cuda":
        return torch.cuda.max_memory_allocated()
    return torch.mps.driver_allocated_memory() if kind == "mps" else None


def _held(model: Any, optimizer: Any) -> int:
    """The bytes of weights and optimizer states between two steps."""
    states = (value for state in optimizer.state.values() for value in state.values())
    tensors = [*stored_tensors(model), *(value for value in states if isinstance(value, torch.Tensor))]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def _most_added(listened: Any) -> int:
    """The highest sum of what torch's allocator on the CPU gave and took back."""
    events = [event for event in listened.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def main() -> None:
    """Run the script that the arguments name, with its own arguments, and watch its steps."""
    Watch.record, script, sys.argv = Path(sys.argv[1]), sys.argv[2], sys.argv[2:]
    trainer.DEFAULT_CALLBACKS.append(Watch)  # type: ignore[arg-type]
    step = Trainer.training_step

    def seen(self: Any, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        Watch.shape = tuple(inputs["input_ids"].shape)
        return step(self, model, inputs, *more, **named)

    Trainer.training_step = seen  # type: ignore[method-assign]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
