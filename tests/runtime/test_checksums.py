"""One flipped bit is noticed, wherever it is, and the file is named; so is a disk that cannot be read."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.data.formats.packed import SPLITS, load_metadata, load_split
from reprise.data.formats.raw import Extent, RawArchive, read_images, write_archive
from reprise.data.prepare.prepare import preprocess
from reprise.runtime.checksums import read_sealed, write_sealed
from reprise.runtime.errors import UserError, one_line_errors
from tests.conftest import data_params
from tests.data.prepare.test_prepare import raw_images

FAILING = Path("/proc/self/mem")  # opens like any file; reading at its beginning is an input/output error
needs_failing_file = pytest.mark.skipif(not FAILING.exists(), reason="no file here that fails when it is read")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with `raw` and `processed`."""
    folder = tmp_path_factory.mktemp("data")
    write_archive(folder / "raw", "folder", ["cat", "dog"], raw_images())
    preprocess(folder / "raw", folder / "processed", data_params(image_size=8, val_fraction=0.2, test_fraction=0.3))
    return folder


def read_everything(data):
    RawArchive(data / "raw")
    load_metadata(data / "processed")
    for split in SPLITS:
        load_split(data / "processed", split)


def files(data):
    """Return what the later stages read; the list of dropped images is for people, and for `make verify`."""
    paths = [path for folder in ("raw", "processed") for path in sorted((data / folder).iterdir())]
    return [path for path in paths if path.name != "dropped.json"]


def test_each_flipped_bit_in_any_file_is_noticed_and_the_file_named(data):
    assert len(files(data)) == 12
    read_everything(data)
    for path in files(data):
        content = path.read_bytes()
        for position in {0, len(content) // 3, len(content) // 2, len(content) - 1}:
            for bit in (1, 32):
                altered = bytearray(content)
                altered[position] ^= bit
                path.write_bytes(altered)
                with pytest.raises(UserError) as caught:
                    read_everything(data)
                assert str(caught.value).startswith(f"{path}: altered")
                assert "`dvc repro --force " in str(caught.value)
        path.write_bytes(content)


@needs_failing_file
def test_a_disk_that_fails_is_named_with_the_file(data):
    for path in files(data):
        content = path.read_bytes()
        path.unlink()
        path.symlink_to(FAILING)
        with pytest.raises(UserError) as caught:
            read_everything(data)
        assert str(caught.value).startswith(f"{path}: cannot be read (Input/output error); `dvc repro --force ")
        path.unlink()
        path.write_bytes(content)


@needs_failing_file
def test_a_disk_that_fails_in_the_middle_ends_in_one_line():
    with pytest.raises(SystemExit) as caught, one_line_errors():
        list(read_images(FAILING, [Extent(0, 10, 0)]))
    assert str(caught.value).startswith("error: /proc/self/mem: Input/output error; the disk or its connection fails")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(st.text().filter(lambda key: key != "checksum"), JSON, max_size=4), st.data())
def test_a_sealed_document_comes_back_whole_or_not_at_all(tmp_path_factory, facts, data):
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    write_sealed(path, facts)
    assert read_sealed(path) == facts
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    stop = data.draw(st.integers(start, len(content)))
    altered = content[:start] + data.draw(st.binary(max_size=20)) + content[stop:]
    path.write_bytes(altered)
    if altered != content:
        with pytest.raises(ValueError, match=r"sealed\.json: altered"):
            read_sealed(path)
