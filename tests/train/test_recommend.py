"""The answer: what fits, the largest batch of it, in an order that is stated."""

import re
import warnings
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

import model_tools as mt
from base_model.architecture.config import read_architecture
from base_model.train import places
from base_model.train import recommend as room
from base_model.train import search as searching
from base_model.train.methods import METHODS, method_of
from base_model.train.runs import LLAMA_3_2_3B
from tests.cards import with_card
from tests.folders import write_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("models") / "toy")


def search_in(toy, usable, name="LoRA r16, all linear", tokens=64):
    place = places.Place("a card", usable, None)
    return searching.Search(read_architecture(toy), place, method_of(name), False, tokens, 1)


def test_the_batch_fits_and_the_next_does_not(toy):
    search = search_in(toy, 200 << 20)
    found = room.largest(search)
    batch, step, planned = found.batch, found.step, found.exact
    assert planned and batch > 1
    assert places.needed(step.peak) <= search.place.usable
    assert places.needed(search.plan(batch + 1).peak) > search.place.usable


@pytest.mark.parametrize(("sure", "words"), [(searching.SURE, "needs at least "), (float("inf"), "needs ")])
def test_what_does_not_fit_says_what_is_missing(toy, monkeypatch, sure, words):
    """A few layers propose a lower bound; a plan of the whole tells what is missing."""
    monkeypatch.setattr(searching, "SURE", sure)
    row = dict(
        zip(room.COLUMNS, room.row_of(search := search_in(toy, 1 << 20), room.largest(search), None), strict=True)
    )
    assert row["verdict"] == "does not fit"
    assert re.search(rf"{words}[\d.]+ MiB more than there is\.$", row["why"])


def test_a_few_layers_propose_what_the_whole_takes():
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=7,
        num_attention_heads=4,
        dtype="float32",
    )
    search = searching.Search(config, places.Place("a card", 2**30, None), METHODS[0], True, 64, 1)
    whole = search.plan(2).peak
    assert search.proposed(2) == pytest.approx(whole, rel=1e-3)


def test_a_shallow_model_keeps_its_kinds_of_layers():
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(num_hidden_layers=12)
    small = searching.shallow(config, 4)
    assert small.num_hidden_layers == 4 and small.layer_types == config.layer_types[:4]
    assert config.num_hidden_layers == 12 and len(config.layer_types) == 12


def test_every_method_is_tried_and_the_best_stands_first(toy, monkeypatch):
    monkeypatch.setattr(room, "MOST_BATCH", 1)
    monkeypatch.setattr(room, "METHODS", METHODS[2:3] + METHODS[5:])
    table = mt.recommend(toy, gpu="4090", tokens=32)
    assert list(table.columns) == list(room.COLUMNS)
    assert len(table) == 2 * 3
    assert (table["verdict"] == "fits").all()
    assert table["accuracy"][0] >= table["accuracy"].max() - room.ALIKE
    assert table["hours_low"].isna().all()
    assert (table["tokens_per_s"] > 0).all()


def test_the_order_is_the_one_that_is_stated():
    table = pd.DataFrame({
        "verdict": ["does not fit", "fits", "fits", "fits", "tight"], "accuracy": [0.5, 0.3, 0.48, 0.49, 0.5],
        "tokens_per_s": [9.0, 8.0, 2.0, 3.0, 9.0], "peak_bytes": [1, 1, 1, 1, 1],
    }).astype({"accuracy": "Float64"})  # fmt: skip
    ranked = room.ranked(table)
    assert list(ranked["accuracy"]) == [0.49, 0.48, 0.3, 0.5, 0.5]
    assert list(ranked["verdict"]) == ["fits", "fits", "fits", "tight", "does not fit"]


def test_an_interrupt_keeps_what_was_found(toy, monkeypatch):
    rows = iter([["LoRA"] * 2 + [1, 2, 3, 0.5, "fits", 1.0, 2.0, 0.5, "", 64, 1.0, 1, 2, 3]])

    def row_of(*_):
        try:
            return next(rows)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(room, "row_of", row_of)
    with pytest.warns(mt.ModelWarning, match="1 of 14"):
        assert len(mt.recommend(toy, gpu="4090")) == 1


def test_where_nothing_fits_the_nearest_thing_is_named(toy, monkeypatch):
    monkeypatch.setattr(room, "METHODS", METHODS[5:6])
    nothing = room.recommend(read_architecture(toy), places.Place("a card", 10 << 20, None), 512)
    assert (nothing["verdict"] == "does not fit").all()
    assert "such cards" in nothing["why"][0] and "smaller model" in nothing["why"][0]
    shorter = room.recommend(read_architecture(toy), places.Place("a card", 48 << 20, None), 512)
    assert "tokens it would fit" in shorter["why"][0], shorter[["peak_bytes", "why"]].to_string()


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (128, "With texts of 64 tokens it would fit."),
        (127, "among about 12 such cards (devices=12), or take a smaller model of the family, of about 1.3 b"),
    ],
)
def test_the_nearest_thing_is_counted(tokens, words, monkeypatch):
    """Four cards of 11 GiB for a peak of 25 GiB on each, 2.5 times as much with what is reserved."""
    from transformers import LlamaConfig

    monkeypatch.setattr(searching.Search, "proposed", lambda *_: 0.0)
    row = {"method": METHODS[5].name, "checkpointing": True, "tokens": tokens, "devices": 4, "peak_bytes": 25 * 2**30}
    place = places.Place("a card", 11 * 2**30, None)
    assert words in room._nearest(LlamaConfig(**LLAMA_3_2_3B), place, pd.Series(row))


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24 GB", 24 * 10**9),
        (2**20, 2**20),
        ("1024 TiB", 2**50),
        ("3 MB", 3 * 10**6),
        ("0.5 tb", 5 * 10**11),
        ("900MiB", 900 * 2**20),
        ("2000 KiB", 2000 * 2**10),
        ("30000000 b", 30_000_000),
    ],
)
def test_a_memory_is_read(memory, size):
    assert places.bytes_of(memory) == size


@pytest.mark.parametrize(
    "memory", [0, -1, 2**20 - 1, "1025 TiB", "much", "24 parsecs", True, "1e400GB", None, "nan GiB"]
)
def test_what_is_no_memory_is_refused(memory):
    with pytest.raises(mt.ModelError, match="24GiB"):
        places.bytes_of(memory)


@pytest.mark.parametrize(
    ("usable", "verdict"), [(1039, "does not fit"), (1040, "tight"), (1099, "tight"), (1100, "fits")]
)
def test_a_verdict_leaves_what_the_allocator_reserves(usable, verdict):
    assert places.verdict_of(1000, usable) == verdict


@pytest.mark.parametrize(("room_for", "longest"), [(63, None), (64, 64), (200, 192), (600, 512)])
def test_the_longest_text_is_in_whole_steps_and_within_the_positions(toy, room_for, longest, monkeypatch):
    """Four texts of 64 tokens are there, and each token takes a KiB; the toy has 512 positions."""
    search = search_in(toy, int((2**30 + 1 + (room_for - 4 * 64) * 1024) * places.RESERVED))
    monkeypatch.setattr(searching.Search, "proposed", lambda *_: 0.0)
    assert searching.longest_text(search, 4, 2**30, 64 * 1024.0) == longest


@pytest.mark.parametrize(("name", "slope"), [(METHODS[0].name, 1.0), (METHODS[3].name, 1e5), (METHODS[3].name, 1.0)])
def test_the_longest_text_is_planned_however_wrong_its_first_proposal(toy, name, slope):
    """A slope that is far too small proposes all positions; what is said fits, and is not far below."""
    one = search_in(toy, 2**40, name)
    room = int(replace(one, tokens=256).plan(1).peak * places.RESERVED) + 2
    search = search_in(toy, room, name)
    found = searching.longest_text(search, 1, search.plan(1).peak, slope)
    assert replace(search, tokens=found).plan(1).peak * places.RESERVED <= room
    assert slope > 1 or found >= 192


def test_what_error_correction_and_the_driver_hold_is_not_usable():
    t4, big = places.place_of("T4", None), places.place_of("4090", None)
    assert t4.usable == pytest.approx(14.56 * 2**30 - places.CONTEXT_BYTES, rel=0.005)
    assert big.usable == pytest.approx(23.52 * 2**30 - places.CONTEXT_BYTES, rel=0.005)
    assert t4.half and not big.half
    assert places.place_of(None, "8GiB").on is None


@pytest.mark.parametrize(
    ("sold", "gpu", "seen"),
    [
        (12, "NVIDIA GeForce RTX 3060 12GB", 11.66), (48, "NVIDIA L40S", 44.42), (80, "NVIDIA A100 SXM 80GB", 79.2),
        (80, "NVIDIA H100 SXM 80GB", 79.18), (141, "NVIDIA H200 SXM 141GB", 139.8), (24, "", 23.52),
    ],
)  # fmt: skip
def test_what_is_usable_is_what_torch_sees_less_what_a_process_holds(sold, gpu, seen):
    assert places.usable_of(sold << 30, gpu) + places.CONTEXT_BYTES == pytest.approx(seen * 2**30, rel=0.005)


def test_macos_keeps_a_part_of_its_memory_from_the_gpu():
    m1 = places.place_of("Apple M1", "8GiB")
    assert m1.usable == pytest.approx(5.33 * 2**30, rel=0.001)
    assert places.place_of("Apple M1 Max", None).usable == 48 * 2**30


def test_the_card_of_this_machine_has_the_speed_of_its_sheet(monkeypatch):
    with_card(monkeypatch, "Tesla T4", 15 * 2**30, 16 * 2**30)
    here = places.place_of(None, None)
    assert (here.name, here.usable, here.on["gpu"]) == ("this machine's cuda:0", 15 * 2**30, "NVIDIA Tesla T4")
    assert here.half and not here.cpu
    assert places.place_of("cpu", None).cpu


def test_a_card_without_a_sheet_has_no_speed_and_says_so(monkeypatch, toy):
    with_card(monkeypatch, "NVIDIA GeForce RTX 4090 Laptop GPU", 15 * 2**30, 16 * 2**30)
    with pytest.warns(mt.ModelWarning, match="Times are not planned.*4090"):
        here = places.place_of(None, None)
    assert here.on is None and here.usable == 15 * 2**30
    with pytest.warns(mt.ModelWarning, match="Times are not planned"):
        assert list(mt.compare_gpus(toy, [None, "T4"], 64, 1)["gpu"]) == ["NVIDIA Tesla T4"]
    with pytest.warns(mt.ModelWarning), pytest.raises(mt.ModelError, match="Name a card"):
        mt.compare_gpus(toy, [None], 64, 1)


def test_this_machine_among_other_cards(monkeypatch, toy):
    with_card(monkeypatch, "Tesla T4", 15 * 2**30, 16 * 2**30)
    table = mt.compare_gpus(toy, [None, "RTX 4090", "T4"], 64, 1)
    assert list(table["gpu"]) == ["NVIDIA Tesla T4", "NVIDIA GeForce RTX 4090"]


@pytest.mark.parametrize(("gpu", "dtype"), [("Apple M1", "bfloat16"), ("T4", "float32"), ("RTX 4090", "bfloat16")])
def test_weights_that_are_trained_themselves_are_planned_as_the_script_loads_them(toy, gpu, dtype):
    full = searching.Search(read_architecture(toy), places.place_of(gpu, None), METHODS[0], False, 64, 1)
    assert METHODS[0].adapter is None
    assert full.arguments(1)["model_init_kwargs"] == {"dtype": dtype}


def test_a_card_that_is_not_known_names_the_nearest(toy):
    with pytest.raises(mt.ModelError, match="4090"):
        mt.recommend(toy, gpu="RTX 4091")


@pytest.mark.parametrize(
    ("where", "words"),
    [({"gpu": 4090}, "given by its name"), ({"memory": "900MiB"}, "its driver"), ({"memory": "2MiB"}, "its driver")],
)
def test_what_is_no_card(toy, where, words):
    with pytest.raises(mt.ModelError, match=words):
        mt.recommend(toy, **where)


def test_a_tight_method_stands_before_one_that_does_not_fit():
    verdicts = ["not planned", "does not fit", "tight", "fits"]
    table = pd.DataFrame({
        "verdict": verdicts, "accuracy": [0.5, 0.5, 0.1, 0.1], "tokens_per_s": [None, 9, 1, 1],
        "peak_bytes": [None, 9, 1, 1],
    })  # fmt: skip
    assert list(room.ranked(table)["verdict"]) == verdicts[::-1]


def test_the_first_layers_and_the_period_of_the_others_are_seen():
    from transformers import DeepseekV3Config, Gemma3TextConfig, LlamaConfig

    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 100}
    assert searching.depths_of(LlamaConfig(num_hidden_layers=9, **small)) == (1, 2)
    assert searching.depths_of(Gemma3TextConfig(num_hidden_layers=18, sliding_window_pattern=6, **small)) == (6, 12)
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 16, "first_k_dense_replace": 3, "n_group": 1}
    assert searching.depths_of(DeepseekV3Config(num_hidden_layers=9, topk_group=1, **experts, **small)) == (4, 5)


def test_few_layers_are_all_planned():
    from transformers import LlamaConfig

    assert searching.depths_of(LlamaConfig(num_hidden_layers=1)) == (1, 1)


@pytest.mark.parametrize("limit", range(20, 3000, 97))
def test_the_proposal_is_the_largest_batch_within_the_limit_or_nearly(limit):
    class Bent:
        """Convex in the batch, as the peak of a step."""

        most = room.MOST_BATCH

        def proposed(self, batch):
            return float(max(10 + batch, 20 * batch - 100))

    batch, slope = searching._proposal(Bent(), Bent().proposed(1), limit)
    most = max(size for size in range(1, room.MOST_BATCH + 1) if Bent().proposed(size) <= limit)
    assert most - 1 - most // 16 <= batch <= most
    assert slope >= 1


def test_plans_of_the_whole_correct_a_proposal_far_too_high():
    step = lambda batch: searching.Step(int(1000 + 50 * batch), Counter(), False)  # noqa: E731

    class Flat:
        most = room.MOST_BATCH
        place = places.Place("a card", int(1501 * places.RESERVED), None)
        proposed = staticmethod(lambda batch: 900.0 + batch)
        plan = staticmethod(step)

    largest = room.largest(Flat())
    batch, found, slope, planned = largest.batch, largest.step, largest.slope, largest.exact
    assert planned and batch == 10 and found == step(10) and slope == 50


@pytest.mark.parametrize("name", ["LoRA r16, attention", "LoRA r16, all linear", "IA-3"])
def test_a_hybrid_is_planned_without_the_modules_that_peft_refuses(name):
    from transformers import FalconH1Config

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    mamba = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "num_key_value_heads": 2}
    config = FalconH1Config(vocab_size=300, dtype="bfloat16", **sizes, **mamba)
    search = searching.Search(config, places.Place("a card", 2**34, None), method_of(name), True, 64, 1)
    assert search.plan(1).peak > 0


def test_an_epoch_of_the_data_keeps_some_steps(toy, monkeypatch):
    monkeypatch.setattr(room, "METHODS", METHODS[2:3])
    place = places.Place("a card", 2**34, None)
    table = room.recommend(read_architecture(toy), place, 64, examples=100)
    assert set(table["batch"]) == {99 // 15}
    assert table["why"].str.contains("fewer than 16 steps").all()
    assert set(room.recommend(read_architecture(toy), place, 64, devices=4, examples=100)["batch"]) == {1}


def test_searches_in_other_processes_find_the_same(toy, monkeypatch):
    from base_model.train import workers

    monkeypatch.setattr(room, "METHODS", METHODS[2:3] + METHODS[5:6])
    monkeypatch.setattr(room, "MOST_BATCH", 2)
    here = mt.recommend(toy, gpu="4090", tokens=32)
    monkeypatch.setattr(workers, "ALONE_S", 0.0)
    monkeypatch.setattr(workers, "count_workers", lambda: 2)
    monkeypatch.setattr(room, "largest", None)  # so that no search can be made here
    pd.testing.assert_frame_equal(mt.recommend(toy, gpu="4090", tokens=32), here)


def test_what_a_search_warns_of_is_said_once(toy, monkeypatch):
    def largest(_):
        warnings.warn("half of it is a guess", mt.ModelWarning, stacklevel=1)
        warnings.warn("of no interest", UserWarning, stacklevel=1)
        raise mt.ModelError("it cannot be planned")

    monkeypatch.setattr(room, "largest", largest)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = mt.recommend(toy, gpu="4090")
    assert [str(one.message) for one in caught if one.category is not DeprecationWarning] == ["half of it is a guess"]
    assert (table["why"] == "it cannot be planned").all() and (table["verdict"] == "not planned").all()


def test_what_is_tight_comes_before_what_does_not_fit():
    table = pd.DataFrame({
        "verdict": ["not planned", "does not fit", "tight", "fits"], "accuracy": pd.array([0.9, 0.9, 0.3, 0.9], dtype="Float64"),
        "tokens_per_s": [9.0, 9.0, 1.0, 0.5], "peak_bytes": pd.array([1, 2, 3, 4], dtype="Int64"),
    })  # fmt: skip
    assert list(room.ranked(table)["verdict"]) == ["fits", "tight", "does not fit", "not planned"]
