"""Storage of the packed images during training: in GPU memory if they fit beside the network, otherwise on disk.

Images in GPU memory are gathered there, without a copy over the bus for each batch. Otherwise they stay memory-mapped,
and a batch is copied when it is gathered.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from reprise.runtime.device import to_device

SHARE = 0.5  # of the free memory; the rest is for the network, its gradients and activations
CHUNK = 64 << 20  # bytes, of one copy to the device


class Images:
    """Packed images, uint8 (N, H, W, C), kept in GPU memory if they take at most SHARE of what is free there."""

    def __init__(self, images: np.ndarray, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        with warnings.catch_warnings():  # the file is read-only, and nothing here writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self.mapped = torch.from_numpy(np.asarray(images))
        self.resident: Tensor | None = None
        if self.device.type != "cpu" and self.mapped.nbytes <= SHARE * torch.cuda.mem_get_info(self.device)[0]:
            self.resident = _copied(self.mapped, self.device)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the images of these rows, int64 on the CPU, as a new tensor on the device."""
        if self.resident is not None:
            return self.resident.index_select(0, to_device(rows, self.device))
        # torch's indexing is faster than NumPy's and releases the GIL
        return to_device(self.mapped.index_select(0, rows), self.device)


def _copied(images: Tensor, device: torch.device) -> Tensor:
    """Copy to the device in pieces, so that a memory-mapped array never lies in main memory as a whole."""
    resident = torch.empty(images.shape, dtype=torch.uint8, device=device)
    rows = max(1, CHUNK // max(1, images[:1].nbytes))
    for start in range(0, len(images), rows):
        resident[start : start + rows] = images[start : start + rows]
    return resident
