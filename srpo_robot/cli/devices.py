"""Finds the device that a command computes on."""

from __future__ import annotations

import re

from srpo_robot.errors import UsageError

_DEVICE = re.compile(r"(auto|cpu|cuda|mps|xpu|hpu|npu|mtia|privateuseone|meta)(:\d+)?")


def check_device(device: str) -> None:
    """Raises UsageError if no device has such a name. It does not import torch, so the machine may lack the device."""
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"no device {device!r} here (no device has this name); take --device cpu or auto")


def resolve(device: str) -> str:
    """Returns `device`, with "auto" replaced by cuda if there is one, otherwise by cpu.

    Raises:
        UsageError: this machine does not have the device.
    """
    check_device(device)
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UsageError(f"no device {device!r} here ({why}); take --device cpu or auto") from None
    return device


def few_threads() -> None:
    """Limits torch to two threads: the operators of a tiny model are too small to share among more."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), 2))
