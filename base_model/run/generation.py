"""Run the model by two methods on one footing: same weights, prompt, device, dtype, greedy decoding, same clock."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from base_model import ModelError, brief, is_fault, visible_text
from base_model.plan.speed import use_onednn
from base_model.run.faults import memory_error, out_of_memory, require_whole_files
from base_model.run.limits import bytes_per_token
from base_model.run.loading import load_model, release_memory
from base_model.run.timing import Clock, Generation, Pass, require_some, summary
from base_model.text.tokenizer import render_prompt


def load_and_run(folder: Path, device: str, prompt: str, max_new_tokens: int) -> list[Generation]:
    """Both methods on one loaded model, which is freed at the end; the answers are printed as they come.

    An interrupt stops the method that runs and leaves out the next.
    """
    start = time.perf_counter()
    loaded = load_model(folder, device)
    load_s = time.perf_counter() - start
    runs: list[Generation] = []
    for method, generate in (("pipeline", generate_with_pipeline), ("manual", generate_manually)):
        print(f"{method}, {_facts(loaded[0])['device']}: ", end="", flush=True)
        runs.append(generate(*loaded, prompt, max_new_tokens, stream=True))
        if runs[-1].stopped:
            print(f"Stopped; {runs[-1].new_tokens} tokens are kept.")
            break
    runs[0] = replace(runs[0], load_first_token_s=load_s + runs[0].warmup_first_token_s)
    del loaded
    release_memory()
    return runs


def generate_with_pipeline(
    model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 50, runs: int = 3, stream: bool = False
) -> Generation:
    """Method 1: `transformers.pipeline`, which does tokenising, generation and decoding in one call.

    Greedy; the medians of `runs` timed runs after a short warm-up; with `stream` the text of the first of them is
    printed as it comes. An instruct model gets the prompt through its chat template, a base model as it is.
    An interrupt ends it at once and keeps the text so far (`stopped`).
    Raises ModelError for fewer than 1 token or run, a full memory, or a device that cannot run the model.
    """
    from transformers import pipeline

    # Without `device`, pipeline() would move the model to an accelerator by itself; what accelerate spread, it may not.
    device = None if hasattr(model, "hf_device_map") else model.device
    pipe: Any = pipeline("text-generation", model=model, tokenizer=tokenizer, device=device)
    text_inputs = _conversation(prompt) if tokenizer.chat_template else prompt

    def run(clock: Clock, limit: int) -> str:
        """Text to text, `limit` new tokens at most."""
        options = {"do_sample": False, "max_new_tokens": limit, "return_full_text": False, "streamer": clock}
        return pipe(text_inputs, **options)[0]["generated_text"]

    return _measure("pipeline", model, tokenizer, prompt, run, max_new_tokens, runs, stream)


def generate_manually(
    model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 50, runs: int = 3, stream: bool = False
) -> Generation:
    """Method 2: the three steps by hand: text to token ids, `model.generate`, token ids to text.

    Everything else, timing included, is as in `generate_with_pipeline`.
    """

    def run(clock: Clock, limit: int) -> str:
        """Text to text, `limit` new tokens at most."""
        inputs = _encode(tokenizer, prompt).to(model.device)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=limit, streamer=clock)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return _measure("manual", model, tokenizer, prompt, run, max_new_tokens, runs, stream)


def _conversation(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _encode(tokenizer: Any, prompt: str) -> Any:
    """Token ids and attention mask, each of shape (1, prompt tokens)."""
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(
            _conversation(prompt), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    return tokenizer(prompt, return_tensors="pt")


Run = Callable[[Clock, int], str]  # text to text, reporting to a clock, with so many new tokens at most


def _measure(
    method: str, model: Any, tokenizer: Any, prompt: str, run: Run, max_new_tokens: int, runs: int, stream: bool
) -> Generation:
    """Time `runs` runs after a short warm-up: the first call pays for kernels and buffers that later ones reuse."""
    require_some(max_new_tokens, runs)
    render_prompt(tokenizer, prompt)  # first where it can do no harm
    try:
        _reset_peak(model.device)
        passes, stopped = _passes(model, tokenizer, run, max_new_tokens, runs, stream)
        facts = {"peak_bytes": _peak_bytes(model.device), **_facts(model)}
        if not stopped:
            facts |= _untimed(model, passes[1])
    except BaseException as error:  # torch, generate(), a template and a tokenizer each fail in ways of their own
        if isinstance(error, ModelError) or not is_fault(error):
            raise
        raise _told(error, str(model.device)) from error
    return summary(passes, method=method, stopped=stopped, **facts)


def _told(error: BaseException, device: str) -> ModelError:
    """Why a run failed, and the next step."""
    if out_of_memory(error):
        return memory_error(error, "generate", device)
    # tokenizers, in Rust, raises no other class than these two
    if type(error) is Exception or not isinstance(error, Exception):
        return ModelError(f"The tokenizer fails: {brief(error)}. Give another prompt, or download its files again.")
    return ModelError(f"The model cannot generate on {device}: {brief(error)}. Try the CPU, or fewer tokens.")


def _passes(
    model: Any, tokenizer: Any, run: Run, max_new_tokens: int, runs: int, stream: bool
) -> tuple[list[Pass], bool]:
    """A short warm-up and the timed runs; and whether an interrupt came, which is raised if nothing had been said."""
    passes: list[Pass] = []
    for number in range(runs + 1):
        printer = _printer(tokenizer) if stream and number == 1 else None
        clock = Clock(lambda: _synchronize(model.device), printer)
        require_whole_files(model)
        try:
            clock.start()
            text = run(clock, max_new_tokens if number else min(max_new_tokens, 2))
            passes.append(clock.stop(text))
        except KeyboardInterrupt:
            clock.end()
            if len(passes) == 1 and clock.token_ids:  # no run is whole: the beginning of the first is the answer
                passes.append(clock.stop(tokenizer.decode(clock.token_ids, skip_special_tokens=True)))
            if len(passes) < 2:
                raise
            return passes, True
        finally:
            if getattr(model, "one_token_kernel", "") == "torch":
                use_onednn(True)  # an interrupt passes by the hook that would do this
    return passes, False


def _printer(tokenizer: Any) -> Any:
    """transformers' own streamer prints each word as soon as it is whole; control characters as escapes."""
    from transformers import TextStreamer

    class Printer(TextStreamer):
        """Safe to print: a model may have learnt what moves a terminal's cursor."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            """Called with some whole words, or with nothing."""
            super().on_finalized_text(visible_text(text), stream_end)

    return Printer(tokenizer, True, skip_special_tokens=True)


def _facts(model: Any) -> dict[str, Any]:
    """Where and how the model runs."""
    import torch

    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    return {
        "device": str(model.device) if len(devices) == 1 else " + ".join(devices),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "attention": str(getattr(model.config, "_attn_implementation", "")),
        "kernel": getattr(model, "one_token_kernel", "default"),
    }


def _untimed(model: Any, run: Pass) -> dict[str, Any]:
    """What is looked up after the clock has stopped: the bytes that a token needs half-way, and the first scores."""
    context = len(run.prompt_ids) + len(run.token_ids) // 2
    return {"bytes_per_token": bytes_per_token(model, context), "first_logits": _first_logits(model, run)}


def _first_logits(model: Any, run: Pass, tokens: int = 8) -> tuple[float, ...]:
    """The scores of the first new tokens, all by one pass over prompt and answer."""
    import torch

    chosen = run.token_ids[:tokens]
    # where the head can be kept to these positions, it is: the prompt's logits may be gigabytes
    options = {"logits_to_keep": len(chosen)} if "logits_to_keep" in signature(model.forward).parameters else {}
    with torch.inference_mode():
        ids = torch.tensor([[*run.prompt_ids, *chosen[:-1]]], device=model.device)
        scores = model(input_ids=ids, use_cache=False, **options).logits[0, -len(chosen) :].float().cpu()
    return tuple(scores[range(len(chosen)), list(chosen)].tolist())


def _synchronize(device: Any) -> None:
    """Accelerators work behind the program's back: wait for them before a clock is read."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _reset_peak(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: Any) -> float:
    """Only CUDA counts; what a process holds of the CPU's memory is mostly libraries and file pages."""
    import torch

    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else math.nan
