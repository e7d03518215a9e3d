"""The bytes that a token needs, the bandwidth, and what both say about a run."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

import model_tools as mt
from base_model.plan import speed
from base_model.run import limits, loading
from base_model.run.limits import bytes_per_token, kv_cache_read

PROMPT = "Hello"


@pytest.fixture(autouse=True)
def known_template(monkeypatch):
    """The toy's template is tame; to try it out again at every load would take most of the time."""
    monkeypatch.setattr(loading, "require_tame_template", lambda tokenizer: None)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Bandwidth on 4 MiB: quick, and not to be believed."""
    monkeypatch.setattr(speed, "SIDE", 256)
    monkeypatch.setattr(speed, "TOTAL_BYTES", 4 << 20)


def weights(model):
    return sum(parameter.nbytes for parameter in model.parameters())


def build(kind, **settings):
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))


def test_a_tied_embedding_is_read_once_as_the_head(toy):
    model, _ = mt.load_model(toy)
    per_token = 2 * 2 * model.config.num_key_value_heads * model.config.head_dim * 4  # K and V, 2 layers, float32
    assert kv_cache_read(model, 10) == 10 * per_token
    assert bytes_per_token(model, 10) == weights(model) + 10 * per_token


def test_of_an_untied_embedding_one_row_is_read(base_toy):
    model, _ = mt.load_model(base_toy)
    embedding = model.get_input_embeddings().weight
    expected = weights(model) - embedding.nbytes + embedding[0].nbytes
    assert bytes_per_token(model, 7) - kv_cache_read(model, 7) == expected


def test_of_positions_one_row_is_read():
    model = build("gpt2", vocab_size=100, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    positions = model.transformer.wpe.weight
    assert bytes_per_token(model, 3) - kv_cache_read(model, 3) == weights(model) - positions.nbytes + 16 * 4


def test_the_cache_is_the_one_that_generate_fills(toy):
    model, tokenizer = mt.load_model(toy, dtype="bfloat16")
    ids = tokenizer("x" * 50, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        cache = model(ids).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_read(model, ids.shape[1]) == held


def test_a_window_bounds_the_cache():
    model = build(
        "mistral", vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=8, head_dim=16,
    )  # fmt: skip
    assert 0 < kv_cache_read(model, 4) < kv_cache_read(model, 50) == kv_cache_read(model, 100)


def test_a_cache_that_cannot_be_told_leaves_the_limit_open(toy, monkeypatch):
    from transformers import LlamaForCausalLM

    model, _ = mt.load_model(toy)
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *args, **kwargs: 1 / 0)
    assert math.isnan(bytes_per_token(model, 4))


def mixture(**settings):
    return build(
        "mixtral", vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, tie_word_embeddings=True, **settings,
    )  # fmt: skip


def test_of_experts_only_those_visited_are_read():
    model = mixture()
    experts = sum(parameter.nbytes for name, parameter in model.named_parameters() if ".experts." in name)
    assert experts == 2 * 8 * 3 * 32 * 64 * 4
    assert bytes_per_token(model, 1) - kv_cache_read(model, 1) == weights(model) - experts * 6 / 8


def test_where_experts_are_not_counted_there_is_no_figure():
    model = mixture()
    vars(model.config)["num_experts_per_tok"] = None  # past the check of its type
    assert math.isnan(bytes_per_token(model, 1))


def test_bandwidth_is_bytes_over_time(monkeypatch):
    monkeypatch.setattr(speed, "_rounds", lambda matrices, vector, seconds: [2.0, 0.5, 1.0])
    assert mt.memory_bandwidth("cpu", "bfloat16") == (4 << 20) / 0.5
    assert mt.memory_bandwidth("cpu", "float32") == (4 << 20) / 0.5
    assert speed.bandwidth_and_noise("cpu", "float32") == ((4 << 20) / 0.5, 1.0)  # the median took twice as long


def test_of_two_kernels_the_faster_counts(monkeypatch):
    monkeypatch.setattr(speed, "_round", lambda matrices, vector: 1.0 if torch.backends.mkldnn.enabled else 2.0)
    assert speed._rounds([], torch.ones(1), 0.0) == [1.0] * (speed.LEAST_ROUNDS - 1)
    monkeypatch.setattr(speed, "_round", lambda matrices, vector: 2.0 if torch.backends.mkldnn.enabled else 1.0)
    assert set(speed._rounds([], torch.ones(1), 0.0)) == {1.0}
    times = iter([9.0, 9.0, 1.0, 2.0, 8.0, 2.0, 8.0, 2.0])  # by turns; the faster round counts, not the steadier kernel
    monkeypatch.setattr(speed, "_round", lambda matrices, vector: next(times))
    assert speed._rounds([], torch.ones(1), 0.0) == [1.0, 8.0, 8.0]
    assert torch.backends.mkldnn.enabled


def test_bandwidth_is_measured_on_this_machine():
    found = mt.memory_bandwidth("cpu", "float32", seconds=0.05)
    assert 1e8 < found < 1e13
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "bfloat17"), ("nowhere", "float32")])
def test_what_cannot_be_measured_is_told(device, dtype):
    with pytest.raises(mt.ModelError, match=f"bandwidth of {device} in {dtype} cannot be measured"):
        mt.memory_bandwidth(device, dtype)


@pytest.fixture(scope="module")
def run(toy):
    return mt.generate_manually(*mt.load_model(toy), PROMPT, 4, runs=1)


def test_the_limit_beside_the_run(run, monkeypatch):
    asked = []
    monkeypatch.setattr(limits, "bandwidth_and_noise", lambda *place: asked.append(place) or (8 * 2.0**30, 0.02))
    run = replace(run, tokens_per_s=16.0, bytes_per_token=2.0**28, dtype="bfloat16")
    table = mt.speed_limit([run, replace(run, method="pipeline", tokens_per_s=8.0)])
    assert asked == [("cpu", "bfloat16")]
    assert list(table.columns) == list(limits.LIMIT_COLUMNS)
    assert table["limit_tokens_per_s"].tolist() == [32.0, 32.0]
    assert table["share"].tolist() == [0.5, 0.25]
    words = mt.limits_in_words(table)
    assert "the runs reach 25% to 50% of the limit that 8 GiB/s of memory bandwidth sets" in words
    small, large = (f"{8 * 2**30 / (2 * count):.2g} tokens/s" for count in (1_235_814_400, 3_212_749_824))
    assert f"that limit is {small} for Llama-3.2-1B and {large} for Llama-3.2-3B." in words
    assert "runs reach 50% of" in mt.limits_in_words(table.head(1))  # one figure is no range
    two = pd.concat([table.assign(device="xpu"), table])
    assert mt.limits_in_words(two) == f"{words.replace('cpu', 'xpu')} {words}"  # in the table's order
    labels = [text.get_text() for text in mt.plot_limits(table).texts if text.get_gid() is None]
    assert labels == ["16 of 32 tokens/s, 50.0%", "8 of 32 tokens/s, 25.0%"]
    readable = mt.readable(table)
    assert readable.loc[0, ["read_bytes", "share"]].tolist() == ["256.00 MiB", "50.0%"]


def test_a_noisy_measurement_says_so(run, toy, monkeypatch):
    for noise, told in [(0.1, False), (0.4, True)]:
        monkeypatch.setattr(limits, "bandwidth_and_noise", lambda *place, noise=noise: (2.0**30, noise))
        words = mt.limits_in_words(mt.speed_limit([run]))
        assert ("was noisy: its median round took 40% longer" in words) == told
        short = mt.takeaways(mt.list_files(toy), mt.read_tensors(toy), mt.compare_runs([run]), mt.speed_limit([run]))
        assert ("was noisy" in short) == told


def test_a_run_faster_than_its_limit_shows_that_this_was_measured_too_low(run, toy, monkeypatch):
    monkeypatch.setattr(limits, "bandwidth_and_noise", lambda *place: (2.0**30, 0.0))
    run = replace(run, tokens_per_s=5.0, bytes_per_token=2.0**28)
    table = mt.speed_limit([run])
    words = "bandwidth of cpu was measured too low, 1 GiB/s: a run was faster"
    assert words in mt.limits_in_words(table)
    assert words in mt.takeaways(mt.list_files(toy), mt.read_tensors(toy), mt.compare_runs([run]), table)
    assert "too low" in mt.plot_limits(table).get_title(loc="left")
    assert "too low" not in mt.limits_in_words(mt.speed_limit([replace(run, tokens_per_s=4.0)]))


def test_a_model_on_several_devices_has_no_limit(run, monkeypatch):
    monkeypatch.setattr(limits, "bandwidth_and_noise", lambda *place: pytest.fail("measured"))
    assert math.isnan(mt.speed_limit([replace(run, device="cpu + cuda:0")]).loc[0, "limit_tokens_per_s"])


def test_no_runs_no_limits():
    assert mt.speed_limit([]).empty
    with pytest.raises(mt.ModelError, match="No run was timed"):
        mt.plot_limits(mt.speed_limit([]))


def test_takeaways_tell_the_limit(run, toy, monkeypatch):
    monkeypatch.setattr(limits, "bandwidth_and_noise", lambda *place: (2.0**30, 0.02))
    run = replace(run, tokens_per_s=2.0, bytes_per_token=2.0**28)
    text = mt.takeaways(mt.list_files(toy), mt.read_tensors(toy), mt.compare_runs([run]), mt.speed_limit([run]))
    assert "1 GiB/s, and each token needs 256.00 MiB: at most 4 tokens/s, of which manual reaches 50%" in text
