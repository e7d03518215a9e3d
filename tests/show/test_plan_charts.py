"""The charts of the plans show what their tables say."""

import pandas as pd
import pytest

import model_tools as mt
from base_model.plan import inference as plans
from base_model.show.plan_charts import longest_in_words

GIB = 2**30


@pytest.fixture(scope="module")
def training():
    table = pd.DataFrame(
        {"method": ["full", "LoRA"], "weights_bytes": [6 * GIB, 6 * GIB], "embedding_bytes": [GIB, GIB]}
    )
    for part, sizes in {"gradients": (5, 0), "activations": (0, 3), "logits": (1, 2), "adapter": (0, 0)}.items():
        table[f"{part}_bytes"] = [size * GIB for size in sizes]
    return table.assign(optimizer_bytes=0, temporary_bytes=0, peak_bytes=[12 * GIB, 11 * GIB])


def test_training_bars_end_at_the_peak(training):
    ax = mt.plot_training(training)
    ends = {round(bar.get_y() + bar.get_height() / 2): bar.get_x() + bar.get_width() for bar in ax.patches}
    assert ends == {0: 11, 1: 12}  # the lightest first
    assert [text.get_text() for text in ax.texts if text.get_gid() is None] == ["11.00 GiB", "12.00 GiB"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "embedding", "other weights", "gradients", "activations", "logits",
    ]  # fmt: skip
    assert "GiB" in ax.get_xlabel()


def test_the_embedding_is_the_first_and_of_its_own_colour(training, toy):
    ax = mt.plot_training(training)
    bar = ax.containers[0][0]
    assert (bar.get_x(), bar.get_width()) == (0, 1)
    components = mt.plot_components(mt.read_tensors(toy))
    row = [label.get_text() for label in components.get_yticklabels()].index("embedding")
    assert components.patches[row].get_facecolor() == bar.get_facecolor()


def test_memory_has_a_line_per_precision_and_the_limit(toy, monkeypatch):
    machine = pd.DataFrame(
        [("cpu", "a CPU", 8 * GIB, 4 * GIB)], columns=["device", "name", "total_bytes", "usable_bytes"]
    )
    monkeypatch.setattr(plans, "this_machine", lambda: machine)
    plan = mt.plan_inference(toy, contexts=(64, 256))
    ax = mt.plot_memory(plan)
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["float32", "bfloat16", "int8", "nf4", "free on cpu: 4.00 GiB"]
    assert set(lines["free on cpu: 4.00 GiB"].get_ydata()) == {4}
    assert list(lines["float32"].get_ydata()) == list(plan["total_bytes"][:2].astype(float) / GIB)
    assert "tokens" in ax.get_xlabel()
    assert {"8 GiB", "4 GiB"} & {label.get_text() for label in ax.get_yticklabels()}


def test_a_line_is_named_at_its_right_end():
    rows = [("rising", 1, 1), ("rising", 64, 8), ("level", 1, 2), ("level", 64, 2)]
    plan = pd.DataFrame(rows, columns=["precision", "context", "total_bytes"])
    plan["total_bytes"] *= GIB
    ax = mt.plot_memory(plan.assign(weights_bytes=0, usable_bytes=4 * GIB, device="cpu"))
    places = {text.get_text(): text.xy for text in ax.texts}  # which a thread joins to the name
    assert (places["rising"], places["level"]) == ((64, 8), (64, 2))
    heights = {text.get_text(): text.xyann[1] for text in ax.texts}
    for name, end in (("rising", 8), ("level", 2)):
        assert heights[name] == pytest.approx(ax.transAxes.inverted().transform(ax.transData.transform((1, end)))[1])
    assert places["free on cpu: 4.00 GiB"][1] == 4


@pytest.mark.parametrize(
    ("contexts", "words"),
    [
        ([4096, 8192], "In every precision, texts of 4,096 tokens fit"),
        ([8192, 4096], "In every precision, texts of 4,096 tokens fit"),
        ([0, 8192], "In nf4, texts of 8,192 tokens fit"),
        ([0, 1], "In nf4, texts of 1 tokens fit"),
        ([0, 0], "The model does not fit here"),
        ([None, 8192], "In nf4, texts of 8,192 tokens fit"),
        ([None, None], "Memory to run the model"),
    ],
)
def test_the_longest_text_is_read_aloud(contexts, words):
    longest = pd.array(contexts, dtype="Int64")
    plan = pd.DataFrame({"precision": ["bfloat16", "nf4"], "usable_bytes": GIB, "largest_context": longest})
    assert longest_in_words(plan) == words


def test_adapters_are_bars_with_count_share_and_file(toy):
    plan = mt.plan_adapters(toy)
    ax = mt.plot_adapters(plan)
    assert [bar.get_width() * 1e6 for bar in ax.patches] == pytest.approx(sorted(plan["trainable"], reverse=True))
    row = plan.set_index("adapter").loc["IA-3"]
    expected = f"{row['trainable']:,}, {100 * row['share']:.4f}%, file {mt.format_bytes(row['file_bytes'])}"
    assert expected in [text.get_text() for text in ax.texts]


def test_insertion_lays_the_adapter_over_the_model(toy):
    import peft

    points = mt.insertion_points(toy, peft.LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1]))
    ax = mt.plot_insertion(mt.read_tensors(toy), points)
    names = [label.get_text() for label in ax.get_yticklabels()]
    sizes = {name: discs.get_sizes() for name, discs in zip(names, ax.collections, strict=True)}
    assert names == ["embedding", "attention", "mlp", "norm"]
    assert list(sizes["attention"] > 0) == [False, False, False, False, True]  # outside, a gap of two, layers 0 and 1
    assert not sizes["mlp"].any()
    assert ax.texts[1].get_text().endswith(", 100.0% of the trained parameters")
    shades = ax.images[0].get_array()
    assert shades[0, 0] > 0 == shades[0, 3]  # the embedding is outside of the layers
    assert shades[1, 3] ** 2 == pytest.approx(3_072 / 8_320)  # a layer's attention beside the embedding


def test_the_same_plan_gives_the_same_picture(training, tmp_path):
    first, second = (mt.save_chart(mt.plot_training(training), tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
