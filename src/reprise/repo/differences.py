"""Where two files or folders differ, in the terms of their content: a tensor, a row, a member, a line; else a byte.

Loads torch only for .safetensors files.
"""

import filecmp
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from zipfile import ZipFile

import numpy as np

BLOCK = 2**20


def differences(one: Path, two: Path, name: str) -> tuple[int, int, list[tuple[str, str]]]:
    """Compare two files, or two folders file by file, byte for byte. name: of both, in the paths of the result.

    Returns the number of files and bytes that were compared, and (path, what differs) for each file that differs.
    """
    if one.is_dir() and two.is_dir():
        here, there = ({path.relative_to(top) for path in top.rglob("*") if path.is_file()} for top in (one, two))
        pairs = [(one / path, two / path, f"{name}/{path.as_posix()}") for path in sorted(here | there)]
    else:
        pairs = [(one, two, name)]
    size = sum(first.stat().st_size for first, _, _ in pairs if first.is_file())
    return len(pairs), size, [(path, found) for first, second, path in pairs if (found := difference(first, second))]


def difference(one: Path, two: Path) -> str | None:
    """Return where two files first differ, as `one -> two`; None if they are the same bytes."""
    for path, other in ((one, "second"), (two, "first")):
        if not path.is_file():
            return f"only in the {other}"
    if filecmp.cmp(one, two, shallow=False):
        return None
    explain = {".safetensors": _tensors, ".npy": _rows, ".zip": _members}.get(one.suffix, _lines)
    with suppress(Exception):  # not what its name promises, as after damage: the byte has to do
        if found := explain(one, two):
            return found
    a, b = one.read_bytes(), two.read_bytes()
    return f"byte {_length_in_common(a, b):,} of {len(a):,} -> {len(b):,}"


def _length_in_common(one: bytes, two: bytes) -> int:
    return next((i for i, (a, b) in enumerate(zip_longest(one, two)) if a != b), len(one))


def _tensors(one: Path, two: Path) -> str | None:
    import torch
    from safetensors import safe_open

    with safe_open(one, "pt") as first, safe_open(two, "pt") as second:
        order, other_order = first.offset_keys(), second.offset_keys()
        for name in dict.fromkeys([*order, *other_order]):
            if name not in order or name not in other_order:
                return f"tensor {name}: only in the {'first' if name in order else 'second'}"
            parts = first.get_slice(name), second.get_slice(name)
            kinds = [f"{part.get_dtype()} {part.get_shape()}" for part in parts]
            if kinds[0] != kinds[1]:
                return f"tensor {name}: {kinds[0]} -> {kinds[1]}"
            a, b = (file.get_tensor(name).reshape(-1, 1) for file in (first, second))
            different = (a.view(torch.uint8) != b.view(torch.uint8)).any(dim=1)
            if different.any():
                gap = (a[different].double() - b[different].double()).abs().max()
                return f"tensor {name}: {different.sum():,} of {len(a):,} elements, by up to {gap:.3g}"
    return "the tensors are the same, the header is not" if order == other_order else "order of the tensors"


def _rows(one: Path, two: Path) -> str | None:
    a, b = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (one, two))
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {list(a.shape)} -> {b.dtype} {list(b.shape)}"
    different = [row for row in range(len(a)) if a[row].tobytes() != b[row].tobytes()]
    return f"row {different[0]}, the first of {len(different):,} of {len(a):,}" if different else None


def _members(one: Path, two: Path) -> str | None:
    with ZipFile(one) as first, ZipFile(two) as second:
        for number, (a, b) in enumerate(zip_longest(first.infolist(), second.infolist())):
            names = [member.filename if member else "nothing" for member in (a, b)]
            if a is None or b is None or names[0] != names[1]:
                return f"member {number}: {names[0]} -> {names[1]}"
            if a.CRC != b.CRC:
                return f"member {number}, {names[0]}: its content"
    return None


def _lines(one: Path, two: Path) -> str | None:
    with one.open("rb") as first, two.open("rb") as second:
        if b"\0" in first.read(BLOCK) + second.read(BLOCK):  # not text
            return None
        first.seek(0)
        second.seek(0)
        for number, (a, b) in enumerate(zip_longest(first, second, fillvalue=b""), start=1):
            if a != b:
                return f"line {number}: {_short(a, b)} -> {_short(b, a)}"
    return None


def _short(line: bytes, other: bytes, width: int = 60) -> str:
    """Return a line for a message: of a long one, the part around its first difference from the other."""
    first = _length_in_common(line, other)
    start = max(0, first - width // 2) if len(line) > width else 0
    shown = line[start : start + width].decode(errors="replace").rstrip("\n")
    return f"{'...' if start else ''}{shown!r}{'...' if start + width < len(line) else ''}" if line else "nothing"
