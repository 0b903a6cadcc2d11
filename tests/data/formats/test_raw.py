"""The raw archive gives back what was put in, the same bytes each time, and notices when it was altered."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reprise.data.formats.raw import RawArchive, RawImage, read_images, write_archive
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError, one_line_errors

IMAGES = [RawImage("unsplit", "cat", "a b\n1.png", b"first"), RawImage("unsplit", "größe", "日本.png", b"second" * 100)]


def test_equal_images_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_archive(tmp_path / name, "folder", ["cat", "größe"], iter(IMAGES))
    for file in ("images.zip", "source.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_two_images_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"two images are called 'unsplit/cat/a b\\n1\.png'; rename one"):
        write_archive(tmp_path / "raw", "folder", ["cat"], [IMAGES[0], IMAGES[0]])


@pytest.mark.parametrize("image", [RawImage("train", "a\rb", "1.png", b""), RawImage("train", "a", "1\r.png", b"")])
def test_a_name_that_no_csv_keeps_is_refused_in_one_line(tmp_path, image):
    with pytest.raises(UserError, match=r"\\r.*: a carriage return in the name of a class or file; rename it"):
        write_archive(tmp_path / "raw", "folder", ["a"], [image])


def test_a_name_that_no_zip_can_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^unsplit/cat/x{68}\.\.\.: longer than 4,096 bytes; shorten the name$"):
        write_archive(tmp_path / "raw", "folder", ["cat"], [RawImage("unsplit", "cat", "x" * 70_000, b"")])


def test_a_missing_archive_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro download"):
        RawArchive(tmp_path)


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="/\0\r")
NAMES = st.text(CHARACTERS, min_size=1, max_size=12)
RAW_IMAGES = st.lists(
    st.builds(
        RawImage,
        split=st.sampled_from(["train", "val", "test", "unsplit"]),
        class_name=NAMES,
        file_name=st.lists(NAMES, min_size=1, max_size=3).map("/".join),
        encoded=st.binary(max_size=300),
    ),
    unique_by=lambda image: image.member,
    max_size=8,
)
QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@QUICK
@given(RAW_IMAGES)
def test_what_goes_in_comes_out_in_its_order(images):
    with TemporaryDirectory() as folder:
        classes = [image.class_name for image in images]
        written = write_archive(Path(folder, "raw"), "any", classes, images)
        archive = RawArchive(Path(folder, "raw"))
        assert archive.source == written
        assert (archive.source.classes, archive.source.images) == (classes, len(images))
        assert list(archive.members) == [image.member for image in images]
        assert list(zip(*archive.placed(), strict=True)) == [(image.split, image.class_name) for image in images]
        assert list(read_images(archive.path, archive.members.values())) == [image.encoded for image in images]
        assert [archive.read(image.member) for image in reversed(images)] == [i.encoded for i in reversed(images)]


@QUICK
@given(RAW_IMAGES, st.sampled_from(["images.zip", "source.json"]), st.data())
def test_an_archive_altered_in_any_way_is_refused_by_name(images, file, data):
    with TemporaryDirectory() as folder:
        write_archive(Path(folder, "raw"), "any", ["cat"], images)
        path = Path(folder, "raw", file)
        content = path.read_bytes()
        start = data.draw(st.integers(0, len(content) - 1))
        stop = data.draw(st.integers(start, len(content)))
        altered = content[:start] + data.draw(st.binary(max_size=30)) + content[stop:]
        assume(altered != content)
        path.write_bytes(altered)
        with pytest.raises(UserError, match=f"{file}: altered.*dvc repro --force download"):
            RawArchive(Path(folder, "raw"))


@QUICK
@given(RAW_IMAGES.filter(len), st.data())
def test_an_archive_altered_behind_the_readers_back_gives_the_right_bytes_or_none(images, data):
    with TemporaryDirectory() as folder:
        write_archive(Path(folder, "raw"), "any", ["cat"], images)
        archive = RawArchive(Path(folder, "raw"))
        content = bytearray(archive.path.read_bytes())
        length = data.draw(st.just(len(content)) | st.integers(1, len(content)))
        content[data.draw(st.integers(0, length - 1))] ^= data.draw(st.integers(1, 255))
        archive.path.write_bytes(content[:length])
        for image in images:
            try:
                assert archive.read(image.member) == image.encoded
            except UserError as error:
                assert "images.zip: altered while it was read" in str(error)


@pytest.mark.parametrize("file", ["images.zip", "source.json"])
@pytest.mark.parametrize("size", [10, 100_000])  # noticed when the file is closed, and before
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path, full_disk, file, size):
    full_disk(file)
    with pytest.raises(SystemExit) as caught, one_line_errors(), publishing(tmp_path / "raw") as (raw,):
        write_archive(raw, "folder", ["cat"], [RawImage("unsplit", "cat", "1.png", bytes(size))])
    assert caught.value.code == f"error: {raw / file}: No space left on device; free some space and run it again"
    assert os.listdir(tmp_path) == []
