"""Where two files or folders differ, in the terms of their content: a tensor, a row, a member, a line; else a byte.

Needs no torch: the tensors of a .safetensors file are read by NumPy.
"""

import json
from itertools import count, zip_longest
from pathlib import Path
from zipfile import ZipFile

import numpy as np

BLOCK = 2**20
# safetensors' names; bfloat16, which numpy lacks, is read as the upper half of a float32
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
DTYPES |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}


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
    offset = _first_byte(one, two)
    if offset is None:
        return None
    explain = {".safetensors": _tensors, ".npy": _rows, ".zip": _members}.get(one.suffix, _lines)
    try:
        found = explain(one, two)
    except Exception:  # not what its name promises, as after damage: the byte has to do
        found = None
    return found or f"byte {offset:,} of {one.stat().st_size:,} -> {two.stat().st_size:,}"


def _first_byte(one: Path, two: Path) -> int | None:
    with one.open("rb") as first, two.open("rb") as second:
        for offset in count(0, BLOCK):
            here, there = first.read(BLOCK), second.read(BLOCK)
            if here != there:
                return offset + _length_in_common(here, there)
            if not here:
                break
    return None


def _length_in_common(one: bytes, two: bytes) -> int:
    return next((i for i, (a, b) in enumerate(zip_longest(one, two)) if a != b), len(one))


def _tensors(one: Path, two: Path) -> str | None:
    first, second = _read_tensors(one), _read_tensors(two)
    for name in [*first, *(name for name in second if name not in first)]:
        if name not in first or name not in second:
            return f"tensor {name}: only in the {'first' if name in first else 'second'}"
        (kind, a), (other_kind, b) = first[name], second[name]
        if (kind, a.shape) != (other_kind, b.shape):
            return f"tensor {name}: {kind} {list(a.shape)} -> {other_kind} {list(b.shape)}"
        if a.tobytes() != b.tobytes():
            bits = [tensor.reshape(-1).view(f"u{tensor.itemsize}") for tensor in (a, b)]
            different = np.flatnonzero(bits[0] != bits[1])
            values = [_as_float(kind, tensor).reshape(-1)[different] for tensor in (a, b)]
            gap = np.abs(values[0] - values[1]).max()
            return f"tensor {name}: {len(different):,} of {a.size:,} elements, by up to {gap:.3g}"
    return "the tensors are the same, the header is not" if list(first) == list(second) else "order of the tensors"


def _read_tensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Return {name: (type, array)} in the order of the file, unread until used."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        found[name] = (entry["dtype"], data[start:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"]))
    return found


def _as_float(kind: str, array: np.ndarray) -> np.ndarray:
    wide = (array.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else array
    return wide.astype(np.float64)


def _rows(one: Path, two: Path) -> str | None:
    a, b = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (one, two))
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {list(a.shape)} -> {b.dtype} {list(b.shape)}"
    if a.ndim == 0:
        return f"{a} -> {b}"
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
