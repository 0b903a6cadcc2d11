"""A difference between two files is named in the terms of what they hold."""

import json
import re
from zipfile import ZipFile, ZipInfo

import numpy as np
import pytest

from reprise.repo.differences import difference, differences


def safetensors(path, metadata=None, **tensors):
    """Write a file of the format by hand: name=(type, array)."""
    header, data = {"__metadata__": metadata or {}}, b""
    for name, (kind, array) in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def f32(*values):
    return "F32", np.array(values, np.float32)


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ({"a": f32(1, 2), "b": f32(1, 2, 3)}, {"a": f32(1, 2), "b": f32(1, 2.5, 4)}, "tensor b: 2 of 3 .* up to 1$"),
        ({"a": f32(0.0)}, {"a": f32(-0.0)}, "tensor a: 1 of 1 elements, by up to 0$"),
        ({"a": f32(np.nan, 1)}, {"a": f32(np.nan, 1.5)}, "tensor a: 1 of 2 elements, by up to 0.5$"),
        ({"a": f32(1)}, {"a": f32(np.nan)}, "tensor a: 1 of 1 elements, by up to nan$"),
        (  # bfloat16: 1.0 and 1.0078125
            {"a": ("BF16", np.array([0x3F80], np.uint16))},
            {"a": ("BF16", np.array([0x3F81], np.uint16))},
            "tensor a: 1 of 1 elements, by up to 0.00781$",
        ),
        (
            {"a": ("I64", np.arange(6))},
            {"a": ("I64", np.arange(6).reshape(2, 3))},
            r"tensor a: I64 \[6\] -> I64 \[2, 3\]",
        ),
        ({"a": f32(1)}, {"a": f32(1), "b": f32(1)}, "tensor b: only in the second"),
        ({"a": f32(1), "b": f32(2)}, {"b": f32(2), "a": f32(1)}, "order of the tensors"),
        ({"a": f32(1), "metadata": {"x": "1"}}, {"a": f32(1), "metadata": {"x": "2"}}, "the header is not"),
    ],
)
def test_weights_differ_in_a_tensor(tmp_path, one, two, said):
    first, second = safetensors(tmp_path / "1.safetensors", **one), safetensors(tmp_path / "2.safetensors", **two)
    assert difference(first, first) is None
    assert re.search(said, difference(first, second))


def test_a_damaged_file_differs_in_a_byte(tmp_path):
    whole = safetensors(tmp_path / "1.safetensors", a=f32(1, 2))
    cut = tmp_path / "2.safetensors"
    cut.write_bytes(whole.read_bytes()[:-3])
    size = whole.stat().st_size
    assert difference(whole, cut) == f"byte {size - 3} of {size} -> {size - 3}"


def test_arrays_differ_in_a_row(tmp_path):
    array = np.zeros((5, 2, 2), np.uint8)
    np.save(tmp_path / "1.npy", array)
    array[2, 1, 0] = array[4, 0, 0] = 1
    np.save(tmp_path / "2.npy", array)
    np.save(tmp_path / "3.npy", array[:3])
    assert difference(tmp_path / "1.npy", tmp_path / "2.npy") == "row 2, the first of 2 of 5"
    assert difference(tmp_path / "1.npy", tmp_path / "3.npy") == "uint8 [5, 2, 2] -> uint8 [3, 2, 2]"


def test_archives_differ_in_a_member(tmp_path):
    for name, members in {"1": "abc", "2": "acb", "3": "abC", "4": "ab"}.items():
        with ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for member in members:
                archive.writestr(ZipInfo(member.lower()), member)
    one = tmp_path / "1.zip"
    assert difference(one, tmp_path / "2.zip") == "member 1: b -> c"
    assert difference(one, tmp_path / "3.zip") == "member 2, c: its content"
    assert difference(one, tmp_path / "4.zip") == "member 2: c -> nothing"


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        (b"a\nb\nc\n", b"a\nB\nc\n", "line 2: 'b' -> 'B'"),
        (b"a\n", b"a\nb\n", "line 2: nothing -> 'b'"),
        (b"a\n", b"a\r\n", "line 1: 'a' -> 'a\\r'"),
        (b"x" * 500 + b"1", b"x" * 500 + b"2", f"line 1: ...'{'x' * 30}1' -> ...'{'x' * 30}2'"),
        (b"\0" * 9, b"\0" * 8 + b"\1", "byte 8 of 9 -> 9"),
    ],
)
def test_text_differs_in_a_line_and_anything_else_in_a_byte(tmp_path, one, two, said):
    (tmp_path / "1").write_bytes(one)
    (tmp_path / "2").write_bytes(two)
    assert difference(tmp_path / "1", tmp_path / "2") == said


def test_a_difference_beyond_the_first_block_is_found(tmp_path):
    data = bytearray(3 * 2**20)
    (tmp_path / "1").write_bytes(data)
    data[2**21 + 5] = 1
    (tmp_path / "2").write_bytes(data)
    assert difference(tmp_path / "1", tmp_path / "2") == "byte 2,097,157 of 3,145,728 -> 3,145,728"


def test_folders_are_compared_file_by_file(tmp_path):
    for folder, files in {"1": {"a/x": "1", "b": "22", "c": "3"}, "2": {"b": "22", "c": "4", "d": "5"}}.items():
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    files, size, found = differences(tmp_path / "1", tmp_path / "2", "out")
    assert (files, size) == (4, 4)
    assert found == [
        ("out/a/x", "only in the first"),
        ("out/c", "line 1: '3' -> '4'"),
        ("out/d", "only in the second"),
    ]
    assert differences(tmp_path / "1/b", tmp_path / "2/b", "out") == (1, 2, [])
    assert differences(tmp_path / "1/b", tmp_path / "2", "out") == (1, 2, [("out", "only in the first")])
