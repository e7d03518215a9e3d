"""Decoding, side by side: ours, a bare `model.generate`, the memory's limit, and llama.cpp where it is installed.

`make benchmark`, or `python -m tests.benchmark_generation`; two to three minutes on two cores. The demo model, and
one of the size of Llama-3.2-1B whose weights are made up: speed does not depend on their values. llama.cpp runs the
same shapes in the same 16 bits, from a file made for the purpose (`pip install llama-cpp-python`, which compiles C++).
"""

import ctypes
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd

import model_tools as mt
from base_model.run.kernels import choose_kernel
from base_model.run.limits import bytes_per_token
from tests.conftest import DEMO
from tests.folders import LLAMA_3B

LLAMA_1B = LLAMA_3B | {
    "head_dim": 64, "hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 16,
}  # fmt: skip
PROMPT = "Hello, who or what are you?"
ROUNDS = 3


def made_up(settings):
    """A model of these settings in bfloat16, its weights small random numbers, straight in memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        config = AutoConfig.for_model(**settings)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def bare(model, inputs, tokens):
    """Seconds of the plainest call: no streamer, no clock inside; after the same warm-up as ours."""
    model.generate(**inputs, do_sample=False, max_new_tokens=2)
    start = time.perf_counter()
    model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    return time.perf_counter() - start


def without_choice(model, work):
    """`work()` as transformers alone would do it: without the hooks of kernels.py."""
    kept = dict(model._forward_pre_hooks)
    model._forward_pre_hooks.clear()
    try:
        return work()
    finally:
        model._forward_pre_hooks.update(kept)


def compare(model, tokenizer, tokens):
    """Medians over rounds that take turns, so that a busy time hits all: seconds, and decoded tokens per second."""
    conversation = [{"role": "user", "content": PROMPT}]
    inputs = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    bandwidth = mt.memory_bandwidth()
    ways = {"bare generate": [], "bare generate, our kernel": [], "ours": []}
    for _ in range(ROUNDS):
        for way, run in (
            ("bare generate", lambda f: without_choice(model, f)),
            ("bare generate, our kernel", lambda f: f()),
        ):
            whole, one = (run(lambda count=count: bare(model, inputs, count)) for count in (tokens, 1))
            ways[way].append((whole, (tokens - 1) / (whole - one)))
        mine = mt.generate_manually(model, tokenizer, PROMPT, tokens, runs=1)
        ways["ours"].append((mine.total_s, mine.tokens_per_s))
    context = inputs["input_ids"].shape[1] + tokens // 2
    bandwidth = max(bandwidth, mt.memory_bandwidth())
    limit = bandwidth / bytes_per_token(model, context)
    table = {way: [statistics.median(column) for column in zip(*runs, strict=True)] for way, runs in ways.items()}
    return table | {"limit": [float("nan"), limit]}


# --- llama.cpp ---------------------------------------------------------------------------------------------------


def write_gguf(model, path):
    """The model's shapes as llama.cpp reads them, in bfloat16. Nobody reads its answer: heads stay unpermuted."""
    import gguf
    import torch

    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        found = names.get_name(name, try_suffixes=(".weight",))
        if weight.ndim == 1:  # llama.cpp wants norms in float32
            writer.add_tensor(found, weight.detach().float().numpy())
        else:
            raw = weight.detach().contiguous().view(torch.uint8).numpy()
            writer.add_tensor(found, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp_speed(path, tokens, threads):
    """Decoded tokens per second of llama.cpp, by its own C interface; the median of `ROUNDS`."""
    import llama_cpp as lc

    quiet = lc.llama_log_callback(lambda *_: None)
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
    options = lc.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch = 256, threads, threads
    context = lc.llama_init_from_model(model, options)
    speeds = []
    for number in range(ROUNDS + 1):
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        prompt = (lc.llama_token * 38)(*range(1, 39))
        lc.llama_decode(context, lc.llama_batch_get_one(prompt, 38))
        one = (lc.llama_token * 1)(7)
        start = time.perf_counter()
        for _ in range(tokens - 1):
            assert lc.llama_decode(context, lc.llama_batch_get_one(one, 1)) == 0
            lc.llama_synchronize(context)
        if number:
            speeds.append((tokens - 1) / (time.perf_counter() - start))
    lc.llama_free(context)
    lc.llama_model_free(model)
    return statistics.median(speeds)


def report(name, model, tokenizer, tokens):
    """Print one model's table: the ratios are to ours, so that above 1 is faster than ours."""
    import torch

    rows = compare(model, tokenizer, tokens)
    if importlib.util.find_spec("llama_cpp"):
        with tempfile.TemporaryDirectory() as scratch:
            write_gguf(model, path := Path(scratch) / "model.gguf")
            rows["llama.cpp"] = [float("nan"), llama_cpp_speed(path, tokens, torch.get_num_threads())]
    table = pd.DataFrame(rows, index=["total_s", "tokens_per_s"]).T
    table["decoding / ours"] = table["tokens_per_s"] / table.loc["ours", "tokens_per_s"]
    table["time / ours"] = table["total_s"] / table.loc["ours", "total_s"]
    print(f"\n{name}, bfloat16, {tokens} tokens, kernel {model.one_token_kernel}:")
    print(mt.readable(table).to_string())


def main():
    """Both models, and what they ran on."""
    model, tokenizer = mt.load_model(DEMO)
    report("SmolLM2-135M", model, tokenizer, 32)
    large = made_up(LLAMA_1B)
    large.one_token_kernel = choose_kernel(large)
    report("1B, made-up weights", large, tokenizer, 12)
    print()
    print(mt.readable(mt.run_conditions([mt.generate_manually(model, tokenizer, PROMPT, 2, runs=1)])).to_string())
    if not importlib.util.find_spec("llama_cpp"):
        print("llama.cpp is not installed (llama-cpp-python): no comparison with it.")


if __name__ == "__main__":
    main()
