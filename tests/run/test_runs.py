"""How runs are measured, streamed, stopped and refused; which kernel and dtype are chosen."""

import copy
import math
import time
import weakref
from dataclasses import replace

import pytest
import torch

import model_tools as mt
from base_model.run import generation, kernels, loading
from base_model.run.timing import Clock, Pass, summary

METHODS = [mt.generate_with_pipeline, mt.generate_manually]
PROMPT = "Hello, who or what are you?"


@pytest.fixture(autouse=True)
def known_template(monkeypatch):
    """The toy's template is tame; to try it out again at every load would take most of the time."""
    monkeypatch.setattr(loading, "require_tame_template", lambda tokenizer: None)


@pytest.fixture(scope="module")
def loaded(toy):
    return mt.load_model(toy)


def interrupt_at(monkeypatch, arrival, run=1):
    """Ctrl-C when the streamer of timed run `run` (0 is the warm-up) gets its `arrival`-th token; 0 is the prompt."""
    put, clocks = Clock.put, []

    def interrupted(clock, tokens):
        put(clock, tokens)
        if clock not in clocks:
            clocks.append(clock)
        if clocks.index(clock) == run and len(clock.arrivals) > arrival:
            raise KeyboardInterrupt

    monkeypatch.setattr(Clock, "put", interrupted)


# --- measured like an expert -------------------------------------------------------------------------------------


def test_medians_and_spread_of_the_timed_runs_alone():
    def one(first, total, speed):
        return Pass("text", 10, 5, first, total, speed, (1,), (2, 3))

    run = summary(
        [one(9.0, 9.0, 0.1), one(0.2, 1.0, 10.0), one(0.4, 3.0, 8.0), one(0.3, 2.0, 7.0)],
        method="m",
        device="cpu",
        dtype="float32",
    )
    assert (run.first_token_s, run.total_s, run.tokens_per_s, run.runs) == (0.3, 2.0, 8.0, 3)
    assert run.spread == pytest.approx(3 / 8)
    assert run.prefill_tokens_per_s == pytest.approx(10 / 0.3)
    assert run.warmup_first_token_s == 9.0


@pytest.mark.parametrize("method", METHODS)
def test_three_runs_and_their_conditions(loaded, method):
    run = method(*loaded, PROMPT, 6)
    assert (run.runs, run.threads, run.attention, run.stopped) == (3, torch.get_num_threads(), "sdpa", False)
    assert run.spread >= 0
    assert run.prefill_tokens_per_s == pytest.approx(run.prompt_tokens / run.first_token_s)
    assert math.isnan(run.peak_bytes)  # a CPU does not tell
    assert len(run.first_logits) == 6
    table = mt.run_conditions([run])
    assert table.loc[0, ["device", "dtype", "torch"]].tolist() == ["cpu", "float32", torch.__version__]


def test_load_and_first_token_are_one_figure(toy, capsys):
    first, second = mt.run_both(toy, PROMPT, 2)
    assert first.load_first_token_s > first.warmup_first_token_s > 0
    assert math.isnan(second.load_first_token_s)


def test_a_token_costs_the_clock_next_to_nothing():
    clock, token = Clock(lambda: None), torch.tensor([7])
    start = time.process_time()
    for _ in range(10_000):
        clock.put(token)
    assert (time.process_time() - start) / 10_000 < 100e-6  # a token of the demo model takes 20 ms or more


def test_first_logits_are_the_models_own_scores(loaded):
    model, tokenizer = loaded
    run = mt.generate_manually(model, tokenizer, PROMPT, 3)
    ids = tokenizer(f"user: {PROMPT}\nassistant:", return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        best = model(ids).logits[0, -1].max().item()
    assert run.first_logits[0] == pytest.approx(best, rel=1e-4)


# --- streaming and stopping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_text_is_printed_while_it_is_made(loaded, method, monkeypatch, capsys):
    put, printed = Clock.put, []

    def noted(clock, tokens):
        put(clock, tokens)
        if clock.printer:
            printed.append(capsys.readouterr().out)

    monkeypatch.setattr(Clock, "put", noted)
    monkeypatch.setattr(loaded[1], "decode", lambda ids, **_: "".join(f"w{token_id} " for token_id in ids))
    run = method(*loaded, PROMPT, 6, stream=True)
    assert len(printed) == 7  # one streamed run; its prompt, then every token
    assert printed[:2] == ["", f"w{run.token_ids[0]} "]
    assert printed[6] == f"w{run.token_ids[5]} "


@pytest.mark.parametrize("method", METHODS)
def test_streamed_text_moves_no_cursor_and_cuts_no_word(loaded, method, monkeypatch, capsys):
    """Two bytes of "é" and three of "🙂" come one by one; a joiner holds a family together, an escape clears a screen."""
    said = "caf\xe9 \x1b[2J🙂\u200d👧 a\rb\ttab\n".encode()
    monkeypatch.setattr(loaded[1], "decode", lambda ids, **_: said[: len(ids)].decode(errors="replace"))
    method(*loaded, PROMPT, len(said), runs=1, stream=True)
    assert capsys.readouterr().out == "café \\x1b[2J🙂\u200d👧 a\\rb\ttab\n\n"


class PanicException(BaseException):
    """As pyo3 names it: no Exception."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", ["apply_chat_template", "decode"])
@pytest.mark.parametrize("fault", [PanicException("byte index 1"), Exception("WordLevel error"), KeyError("roles")])
def test_whatever_a_tokenizer_raises_is_told(loaded, method, place, fault, monkeypatch):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(loaded[1], place, fail)
    words = "The model cannot generate" if isinstance(fault, KeyError) else "The tokenizer fails"
    with pytest.raises(mt.ModelError, match=rf"{words}.*(byte index 1|WordLevel error|roles)"):
        method(*loaded, PROMPT, 2, runs=1)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_keeps_what_was_said(loaded, method, monkeypatch):
    whole = method(*loaded, PROMPT, 8, runs=1)
    interrupt_at(monkeypatch, arrival=3)
    run = method(*loaded, PROMPT, 8)
    assert run.stopped
    assert run.token_ids == whole.token_ids[:3]
    assert run.text == loaded[1].decode(run.token_ids, skip_special_tokens=True)
    assert run.new_tokens == 3
    assert run.tokens_per_s > 0


def test_an_interrupt_of_a_later_run_keeps_the_whole_answer(loaded, monkeypatch):
    interrupt_at(monkeypatch, arrival=1, run=3)
    run = mt.generate_manually(*loaded, PROMPT, 8)
    assert (run.stopped, run.runs, run.new_tokens) == (True, 2, 8)


@pytest.mark.parametrize(("arrival", "run"), [(0, 0), (1, 0), (0, 1)])
def test_an_interrupt_before_anything_was_said_is_one(loaded, monkeypatch, arrival, run):
    interrupt_at(monkeypatch, arrival, run)
    with pytest.raises(KeyboardInterrupt):
        mt.generate_manually(*loaded, PROMPT, 8)


def test_after_an_interrupt_no_other_method_runs(toy, monkeypatch, capsys):
    interrupt_at(monkeypatch, arrival=3)
    runs = mt.run_both(toy, PROMPT, 8)
    assert [(run.method, run.new_tokens) for run in runs] == [("pipeline", 3)]
    assert capsys.readouterr().out.splitlines()[-1] == "Stopped; 3 tokens are kept."
    assert mt.check_runs(runs).empty
    assert "pipeline" in mt.takeaways(mt.list_files(toy), mt.read_tensors(toy), mt.compare_runs(runs))


# --- memory ------------------------------------------------------------------------------------------------------

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.30 GB, max allowed: 5.67 GB)."),
    RuntimeError("Invalid buffer size: 12.21 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    MemoryError(),
]


@pytest.mark.parametrize("fault", FULL)
@pytest.mark.parametrize("method", METHODS)
def test_a_full_memory_while_generating(loaded, method, fault, monkeypatch):
    def full(*args, **kwargs):
        raise fault

    monkeypatch.setattr(loaded[0], "generate", full)
    with pytest.raises(mt.ModelError, match=r"memory of cpu is too small to generate.*fewer new tokens") as caught:
        method(*loaded, PROMPT, 4)
    assert caught.value.__cause__ is fault


@pytest.mark.parametrize("fault", FULL)
@pytest.mark.parametrize("place", ["from_pretrained", "to"])
def test_a_full_memory_while_loading(toy, place, fault, monkeypatch):
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    def full(*args, **kwargs):
        raise fault

    monkeypatch.setattr(AutoModelForCausalLM if place == "from_pretrained" else LlamaForCausalLM, place, full)
    with pytest.raises(mt.ModelError, match=r'too small to load the model.*"bfloat16".*smaller model'):
        mt.load_model(toy)


def test_another_fault_is_not_called_a_full_memory(loaded, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the kernel is not implemented")

    monkeypatch.setattr(loaded[0], "generate", broken)
    with pytest.raises(mt.ModelError, match=r"cannot generate on cpu: the kernel is not implemented"):
        mt.generate_manually(*loaded, PROMPT, 4)


def test_run_both_keeps_no_model(toy, monkeypatch, capsys):
    seen = []

    def noted(*args):
        model, tokenizer = mt.load_model(*args)
        seen.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(generation, "load_model", noted)
    mt.run_both(toy, PROMPT, 2)
    mt.run_both(toy, PROMPT, 2)
    assert [model() for model in seen] == [None, None]


# --- choices -----------------------------------------------------------------------------------------------------


def kernel_seen(model, tokens):
    """Whether oneDNN was on inside a forward pass over so many tokens."""
    seen = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: seen.append(torch.backends.mkldnn.enabled))
    with torch.no_grad():
        model(input_ids=torch.ones(1, tokens, dtype=torch.long))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(("own", "name"), [(1.0, "torch"), (3.0, "oneDNN")])
def test_the_faster_kernel_makes_single_tokens(toy, own, name, monkeypatch):
    monkeypatch.setattr(kernels, "_seconds", lambda matrices, onednn: 2.0 if onednn else own)
    model, tokenizer = mt.load_model(toy, dtype="bfloat16", kernel="measured")
    for each in (model, copy.deepcopy(model)):
        assert kernel_seen(each, 5)
        assert kernel_seen(each, 1) is (name == "oneDNN")
        assert torch.backends.mkldnn.enabled
    assert mt.generate_manually(model, tokenizer, PROMPT, 2).kernel == name


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "torch"), ("arm64", "oneDNN")])
def test_the_kernel_depends_on_the_machine_and_on_no_timing(toy, machine, name, monkeypatch):
    monkeypatch.setattr(kernels, "_seconds", None)
    monkeypatch.setattr(kernels.platform, "machine", lambda: machine)
    assert mt.load_model(toy, dtype="bfloat16")[0].one_token_kernel == name
    assert mt.load_model(toy, dtype="bfloat16", kernel="oneDNN")[0].one_token_kernel == "oneDNN"
    with pytest.raises(mt.ModelError, match="`kernel` is"):
        mt.load_model(toy, dtype="bfloat16", kernel="fast")


def test_a_fault_in_a_pass_leaves_onednn_on(toy):
    model, _ = mt.load_model(toy, dtype="bfloat16", kernel="torch")
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[10_000]]))
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_kernels_are_tried_on_some_rows_of_the_16_bit_matrices(dtype):
    from base_model.run.kernels import LARGEST_BYTES, SAMPLE_BYTES, _sample

    layers = [torch.nn.Linear(1024, 8192, dtype=getattr(torch, dtype)) for _ in range(9)]  # 16 MiB each in 16 bits
    sizes = [matrix.nbytes for matrix in _sample(torch.nn.Sequential(*layers))]
    assert sizes == ([LARGEST_BYTES] * (SAMPLE_BYTES // LARGEST_BYTES) if dtype == "bfloat16" else [])


def test_an_interrupt_in_a_pass_leaves_onednn_on(toy):
    model, tokenizer = mt.load_model(toy, dtype="bfloat16", kernel="torch")
    calls = []

    def interrupt(*_):
        calls.append(torch.backends.mkldnn.enabled)
        if len(calls) == 6:
            raise KeyboardInterrupt

    model.model.norm.register_forward_hook(interrupt)
    assert mt.generate_manually(model, tokenizer, PROMPT, 8).stopped
    assert calls == [True, False, True, False, False, False]  # the warm-up's two passes, then four
    assert torch.backends.mkldnn.enabled


def test_float32_has_no_choice_of_kernel(loaded):
    assert loaded[0].one_token_kernel == "default"
    assert not loaded[0]._forward_pre_hooks


@pytest.mark.parametrize(
    ("device", "stated", "bfloat16", "chosen"),
    [
        ("cpu", "bfloat16", True, "auto"),
        ("cpu", "bfloat16", False, "auto"),  # slower for the prompt, but float32 would halve the decoding
        ("cpu", "float16", True, "bfloat16"),
        ("cpu", "float16", False, "auto"),
        ("cpu", "float32", True, "auto"),
        ("mps", "bfloat16", True, "float16"),
        ("mps", "float16", True, "auto"),
        ("auto", "bfloat16", True, "auto"),
    ],
)
def test_the_dtype_that_a_device_runs_well(device, stated, bfloat16, chosen, monkeypatch):
    abilities = {"avx512_bf16": bfloat16, "avx512_fp16": False, "f16c": True, "cpu_name": "bf16"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    config = type("Config", (), {"dtype": getattr(torch, stated)})
    assert loading._default_dtype(device, config) == chosen


@pytest.mark.parametrize(("emulated", "chosen"), [(True, "float16"), (False, "auto")])
def test_an_old_gpu_gets_float16(emulated, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not emulated)
    config = type("Config", (), {"dtype": torch.bfloat16})
    assert loading._default_dtype("cuda:0", config) == chosen


def test_auto_spreads_the_model_and_both_methods_run(toy):
    expected = mt.generate_manually(*mt.load_model(toy), PROMPT, 4, runs=1).token_ids
    model, tokenizer = mt.load_model(toy, device="auto")
    assert str(model.device) == "cpu"
    model.hf_device_map = {"": "cpu"}  # as accelerate marks what it spread; pipeline() then refuses a device
    for method in METHODS:
        assert method(model, tokenizer, PROMPT, 4, runs=1).token_ids == expected


# --- trust -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_cpu(loaded):
    return mt.generate_manually(*loaded, PROMPT, 12)


def test_equal_runs_match(on_cpu):
    runs = [on_cpu, replace(on_cpu, method="pipeline"), replace(on_cpu, device="mps")]
    checks = mt.check_runs(runs)
    assert list(checks["check"]) == [
        "cpu: token ids, pipeline as manual",
        "mps: first 8 tokens, as cpu",
        "mps: scores of these tokens, as cpu",
    ]
    assert checks["match"].all()
    assert mt.agreement(checks) == "The runs agree in 3 of 3 comparisons."


def test_methods_that_disagree_are_told(on_cpu):
    other = replace(on_cpu, method="pipeline", token_ids=(*on_cpu.token_ids[:-1], 1))
    checks = mt.check_runs([on_cpu, other])
    assert not checks["match"].any()
    assert "methods disagree on cpu" in mt.agreement(checks)


@pytest.mark.parametrize("wrong", [lambda score: score * 1.2, lambda score: math.nan, lambda score: math.inf])
def test_wrong_scores_are_a_disagreement(on_cpu, wrong):
    broken = replace(on_cpu, device="mps", first_logits=tuple(map(wrong, on_cpu.first_logits)))
    assert "mps disagrees with the CPU" in mt.agreement(mt.check_runs([on_cpu, broken]))


def test_a_broken_device_is_found_by_a_real_run(toy, on_cpu):
    model, tokenizer = mt.load_model(toy)
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output * 0 + 1)
    broken = replace(mt.generate_manually(model, tokenizer, PROMPT, 12), device="mps")
    assert "mps disagrees with the CPU" in mt.agreement(mt.check_runs([on_cpu, broken]))


def test_near_ties_are_rounding_and_no_fault(on_cpu):
    parted = replace(
        on_cpu,
        device="mps",
        token_ids=(*on_cpu.token_ids[:2], 1, *on_cpu.token_ids[3:]),
        first_logits=(*on_cpu.first_logits[:3], *(99.0 for _ in range(5))),  # after they parted, all may differ
    )
    checks = mt.check_runs([on_cpu, parted])
    assert list(checks["match"]) == [False, True]
    assert "rounding, not a fault" in mt.agreement(checks)


def test_nothing_to_compare_is_said(on_cpu):
    assert "nothing to compare" in mt.agreement(mt.check_runs([on_cpu]))
    assert mt.check_runs([]).empty


# --- takeaways ---------------------------------------------------------------------------------------------------


def test_takeaways_name_the_winner_only_when_there_is_one(toy, on_cpu):
    files, tensors = mt.list_files(toy), mt.read_tensors(toy)
    fast = replace(on_cpu, tokens_per_s=100.0, spread=0.05)
    near, far = (replace(on_cpu, method="pipeline", tokens_per_s=speed, spread=0.01) for speed in (97.0, 80.0))
    words = "; pipeline on cpu came within the spread of the runs, so there is no winner"
    assert words in mt.takeaways(files, tensors, mt.compare_runs([near, fast]))
    text = mt.takeaways(files, tensors, mt.compare_runs([far, fast]))
    assert "**Fastest.** manual on cpu in float32, 100 tokens/s." in text
