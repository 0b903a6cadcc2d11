"""Where to compute, and how tensors get there. Loads torch only when it is asked."""

from typing import TYPE_CHECKING, Literal

from reprise.runtime.environment import Reproducibility
from reprise.runtime.provenance import Reproducible

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def resolve_reproducible(reproducible: Reproducibility) -> Reproducible:
    """Return what `auto` means here: `machine` on a GPU, otherwise `portable`; the others mean themselves."""
    import torch

    if reproducible != "auto":
        return reproducible
    return "machine" if torch.cuda.is_available() else "portable"


def device(reproducible: Reproducibility) -> Literal["cuda", "cpu"]:
    """Return where to compute: `portable` promises something of CPUs and keeps to them; the others use a GPU."""
    import torch

    return "cuda" if reproducible != "portable" and torch.cuda.is_available() else "cpu"


def to_device(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """Copy from the CPU; to a GPU from pinned memory, so that nothing waits for it or what is queued before it."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)
