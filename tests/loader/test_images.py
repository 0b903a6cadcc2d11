"""Images lie on the GPU when they take at most half of what is free, and what is gathered is the same either way."""

import numpy as np
import pytest
import torch

from reprise.loader import images as residency
from reprise.loader.images import Images


def packed(count=10):
    return np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)


@pytest.mark.parametrize(("free", "resident"), [(240, True), (239, False), (0, False), (10**12, True)])
def test_the_free_memory_decides(free, resident, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    images = Images(packed(), "meta")
    assert (images.resident is not None) is resident
    batch = images[torch.tensor([3, 1])]
    assert (batch.shape, batch.dtype, batch.device.type) == ((2, 2, 2, 3), torch.uint8, "meta")


def test_on_the_cpu_a_memory_mapped_array_stays_where_it_is(tmp_path):
    np.save(tmp_path / "images.npy", packed())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    images = Images(mapped)
    assert images.resident is None
    assert images.mapped.data_ptr() == mapped.ctypes.data
    batch = images[torch.tensor([3, 3, 0])]
    assert torch.equal(batch, torch.from_numpy(packed()[[3, 3, 0]]))
    batch.zero_()  # a copy: the file is read only
    assert images.mapped[3].any()


def test_what_is_copied_in_pieces_is_the_whole(monkeypatch):
    monkeypatch.setattr(residency, "CHUNK", 40)  # three images and a bit
    assert torch.equal(residency._copied(torch.from_numpy(packed()), torch.device("cpu")), torch.from_numpy(packed()))


@pytest.mark.gpu
@pytest.mark.parametrize("free", [0, 10**12])
def test_on_a_gpu_the_same_images_come(free, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    batch = Images(packed(), "cuda")[torch.tensor([9, 2])]
    assert batch.is_cuda
    assert torch.equal(batch.cpu(), torch.from_numpy(packed()[[9, 2]]))
