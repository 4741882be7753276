"""Which device a command computes on."""

from __future__ import annotations

from srpo_robot.errors import UsageError


def resolve(device: str) -> str:
    """`device`, with "auto" resolved to cuda where there is one, else cpu.

    Raises:
        UsageError: a device that this machine does not have.
    """
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
    """At most two threads: a tiny model's operators are too small to share among more."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), 2))
