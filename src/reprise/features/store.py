"""The store of features: a folder for each key, which is a digest of everything that decides their bits.

It is published whole, its file is checked against a checksum whenever it is read, and the least recently used folders
go where all of them together would take more than MOST_BYTES.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from reprise.model.backbone import TIMMBackbone
from reprise.model.pretrained import classifier_prefixes
from reprise.runtime.atomic import Lock, publishing, remove
from reprise.runtime.checksums import file_sha256, read_sealed, verify_file, write_sealed
from reprise.runtime.errors import say

MOST_BYTES = 4 * 10**9
FILE, SEAL = "features.safetensors", "features.json"


def backbone_sha256(network: TIMMBackbone) -> str:
    """Return a digest of the weights of a network that decide its features: all but the classifier's."""
    digest, classifier = hashlib.sha256(), classifier_prefixes(network.model)
    for name, tensor in sorted(network.model.state_dict().items()):
        if not name.startswith(classifier):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def stored(store: Path | None, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors that the store has under a key; otherwise compute them and keep them there.

    A damaged folder is named on stderr and made anew. Without a store they are computed.
    """
    if store is None:
        return compute()
    folder = store / key
    if (found := _read(folder)) is None:
        with publishing(folder) as (partial,):
            found = _read(folder)  # another process may have made it meanwhile
            tensors = compute() if found is None else found
            partial.mkdir()
            save_file(tensors, partial / FILE)
            write_sealed(partial / SEAL, {"sha256": file_sha256(partial / FILE)})
        with suppress(FileNotFoundError):  # another process was just removing one
            _drop_old(store, folder)
        return tensors
    os.utime(folder)
    return found


def _read(folder: Path) -> dict[str, Tensor] | None:
    """Return what a folder of the store holds, None if there is none or if it is damaged."""
    with suppress(FileNotFoundError):
        try:
            verify_file(folder / FILE, read_sealed(folder / SEAL)["sha256"])
            return load_file(folder / FILE)
        except (ValueError, KeyError, safetensors.SafetensorError) as error:
            say(f"{error}; features are computed anew", file=sys.stderr)
    return None


def _drop_old(store: Path, kept: Path) -> None:
    """Remove the least recently used folders beyond MOST_BYTES, all but `kept` and those that a process writes."""
    used = {folder: folder.stat() for folder in store.iterdir() if folder.is_dir() and folder.name[0] != "."}
    room = MOST_BYTES
    for folder in sorted(used, key=lambda folder: (folder == kept, used[folder].st_mtime_ns), reverse=True):
        room -= sum(file.stat().st_size for file in folder.iterdir())
        lock = Lock(folder)
        if room < 0 and folder != kept and lock.acquire(wait=False):
            remove(folder)
            lock.release()
