"""What this machine multiplies per second. The bandwidth's own tests are in tests/run/test_limits.py."""

import pytest

from base_model.plan import speed


def timed(monkeypatch, seconds):
    """Rounds that take what `seconds` says for their side; the sides that were asked for."""
    sides = []
    monkeypatch.setattr(speed, "_products", lambda side, kind: sides.append(side) or seconds[side])
    return sides


def test_a_quick_machine_is_measured_on_large_products(monkeypatch):
    sides = timed(monkeypatch, {speed.SMALL: 0.001, speed.LARGE: 0.5})
    assert speed.cpu_flops("bfloat16") == 6 * speed.LARGE**3 / 0.5
    assert sides.count(speed.LARGE) == speed.ROUNDS


def test_a_slow_one_is_spared_them(monkeypatch):
    sides = timed(monkeypatch, {speed.SMALL: 0.1})
    assert speed.cpu_flops("float16") == 6 * speed.SMALL**3 / 0.1
    assert set(sides) == {speed.SMALL}


def test_float32_is_always_measured_on_large_ones(monkeypatch):
    timed(monkeypatch, {speed.SMALL: 0.1, speed.LARGE: 0.4})
    assert speed.cpu_flops("float32") == 6 * speed.LARGE**3 / 0.4


def test_one_round_that_another_program_held_up_does_not_count(monkeypatch):
    times = iter([9.0, 0.001, 0.001, 0.001, 0.25, 9.0, 0.5])
    monkeypatch.setattr(speed, "_products", lambda side, kind: next(times))
    assert speed.cpu_flops("float32") == 6 * speed.LARGE**3 / 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_round_has_three_products_of_that_dtype(dtype, monkeypatch):
    import torch

    monkeypatch.setattr(speed, "SMALL", 16)
    monkeypatch.setattr(speed, "LARGE", 32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as profile:
        assert speed._products(32, getattr(torch, dtype)) > 0
    assert sum(event.flops for event in profile.key_averages()) == 6 * 32**3
    assert speed.cpu_flops(dtype) > 0
