"""Where the packed images lie in training: on the GPU when they fit beside the network, otherwise where they are.

A resident image is gathered on the device, without a copy over the bus for each batch; memory-mapped images stay
memory-mapped for the CPU and are copied as they are gathered.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from reprise.runtime.device import to_device

SHARE = 0.5  # of the free memory; the rest is for the network, its gradients and activations
CHUNK = 64 << 20  # bytes, of one copy to the device


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a GPU."""
    return torch.cuda.mem_get_info(device)[0]


class Images:
    """Packed uint8 images (N, H, W, C), on the device if it is a GPU and they take at most SHARE of its free memory."""

    def __init__(
        self,
        images: np.ndarray,
        device: torch.device | str = "cpu",
        free_memory: Callable[[torch.device], int] = free_memory,
    ) -> None:
        self.device = torch.device(device)
        with warnings.catch_warnings():  # the file is read only, and nothing here writes
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self.mapped = torch.from_numpy(np.asarray(images))
        self.resident: Tensor | None = None
        if self.device.type != "cpu" and self.mapped.nbytes <= SHARE * free_memory(self.device):
            self.resident = _copied(self.mapped, self.device)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.mapped)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the images of these rows, int64 on the CPU, as a new tensor on the device."""
        if self.resident is not None:
            return self.resident.index_select(0, to_device(rows, self.device))
        # torch's, and not NumPy's: it is faster, and lets other threads run meanwhile
        return to_device(self.mapped.index_select(0, rows), self.device)


def _copied(images: Tensor, device: torch.device) -> Tensor:
    """Copy in pieces: a memory-mapped array never lies in memory as a whole."""
    resident = torch.empty(images.shape, dtype=torch.uint8, device=device)
    rows = max(1, CHUNK // max(1, images[:1].nbytes))
    for start in range(0, len(images), rows):
        resident[start : start + rows] = images[start : start + rows]
    return resident
