"""How numbers and names are written."""

import pytest

import model_tools as mt
from base_model import format_share, visible


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (866, "866 B"),
        (1023, "1,023 B"),
        (1024, "1.00 KiB"),
        (20_951, "20.46 KiB"),
        (2**20 - 1, "1.00 MiB"),  # not 1024.00 KiB
        (4_998_767_360, "4.66 GiB"),
        (3 * 2**40, "3.00 TiB"),
    ],
)
def test_format_bytes_counts_in_1024s(size, text):
    assert mt.format_bytes(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (576, "576"),
        (35_136, "35,136"),
        (49_552_704, "49,552,704 (~49.6 M)"),
        (729_861_120, "729,861,120 (~0.730 B)"),
        (1_249_689_600, "1,249,689,600 (~1.250 B)"),
    ],
)
def test_format_count_gives_the_count_in_full_then_rounded(count, text):
    assert mt.format_count(count) == text


@pytest.mark.parametrize(("share", "text"), [(0, "0.0%"), (0.0003, "<0.1%"), (0.5919, "59.2%"), (1, "100.0%")])
def test_a_small_share_is_not_nothing(share, text):
    assert format_share(share) == text


def test_control_characters_in_names_are_written_as_escapes():
    assert visible("a\nb\x1b[31m\u202ec é") == "a\\nb\\x1b[31m\\u202ec é"
