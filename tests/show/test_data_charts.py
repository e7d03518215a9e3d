"""The chart of lengths: what stands where, and what its title says."""

import pandas as pd
import pytest

import model_tools as mt


def lengths(tokens, most=None):
    table = pd.DataFrame({"tokens": tokens, "trained": tokens})
    table["max_length"] = pd.array([most] * len(table), "Int64")
    return table.assign(truncated=False if most is None else table["tokens"] > most)


def lines(ax):
    return sorted(line.get_xdata()[0] for line in ax.lines)


def test_every_example_is_in_one_column():
    ax = mt.plot_lengths(lengths([1, 1, 2, 9, 200]))
    assert sum(bar.get_height() for bar in ax.patches) == 5
    assert max(bar.get_height() for bar in ax.patches) == 3
    assert lines(ax) == [2, 200]
    assert ax.get_title(loc="left") == "5 examples, 213 tokens: nothing is cut off"
    assert ax.get_xlabel() == "length of an example (tokens)"


def test_what_is_lost_has_a_colour_of_its_own():
    ax = mt.plot_lengths(lengths([10, 20, 30, 100, 140], most=100))
    beyond = [bar for bar in ax.patches if bar.get_x() > 100]
    assert sum(bar.get_height() for bar in beyond) == 1  # 100 itself is kept
    assert {bar.get_facecolor() for bar in beyond}.isdisjoint(bar.get_facecolor() for bar in ax.patches[: -len(beyond)])
    assert lines(ax) == [30, 100, 140]
    assert ax.get_title(loc="left") == "At 100 tokens, 1 of 5 examples loses 13.3% of all tokens"


@pytest.mark.parametrize(("most", "said"), [(19, True), (20, False)])
def test_only_what_is_cut_is_grey(most, said):
    ax = mt.plot_lengths(lengths([10, 20], most=most))
    assert any("grey beyond the cut" in text.get_text() for text in ax.texts) == said


def test_a_limit_far_beyond_is_told_and_not_drawn():
    ax = mt.plot_lengths(lengths([10, 20], most=4096))
    assert lines(ax) == [15, 20]
    assert ax.get_title(loc="left") == "2 examples, 30 tokens: nothing is lost at 4,096"


def test_it_draws_into_the_axes_that_it_is_given():
    import matplotlib.pyplot as plt

    ax = plt.figure().add_subplot()
    assert mt.plot_lengths(lengths([3]), ax=ax) is ax
