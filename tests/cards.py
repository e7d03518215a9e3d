"""A machine with a card, where there is none."""


def with_card(monkeypatch, name, free, total):
    """From here on torch tells of one CUDA card, of so many bytes."""
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free, total))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: name)
