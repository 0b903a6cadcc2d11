"""The device to compute on, and copies to it. Loads torch only when a function is called."""

from typing import TYPE_CHECKING, Literal

from reprise.runtime.environment import Reproducibility
from reprise.runtime.provenance import Reproducible

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def resolve_reproducible(reproducible: Reproducibility) -> Reproducible:
    """Replace `auto` by `machine` where there is a GPU, otherwise by `portable`; return the others as they are."""
    import torch

    if reproducible != "auto":
        return reproducible
    return "machine" if torch.cuda.is_available() else "portable"


def device(reproducible: Reproducibility) -> Literal["cuda", "cpu"]:
    """Return the device to compute on: a GPU if there is one, but the CPU for `portable`, whose bits are CPUs'."""
    import torch

    return "cuda" if reproducible != "portable" and torch.cuda.is_available() else "cpu"


def to_device(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """Copy a tensor from the CPU to a device; to a GPU without blocking, from pinned memory."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)
