"""The raw archive gives back what was put in, the same bytes each time, and notices when it was altered."""

import pytest

from reprise.data.archive import RawArchive, RawImage, write_archive
from reprise.errors import UserError

IMAGES = [
    RawImage("unsplit", "cat", "a b\n1.png", b"first"),
    RawImage("unsplit", "größe", "日本.png", b"second" * 100),
]


def test_round_trip_of_awkward_names(tmp_path):
    write_archive(tmp_path / "raw", "folder", ["cat", "größe"], IMAGES)
    archive = RawArchive(tmp_path / "raw")
    assert archive.members == ["unsplit/cat/a b\n1.png", "unsplit/größe/日本.png"]
    assert list(archive.placed()) == [("unsplit", "cat"), ("unsplit", "größe")]
    assert [archive.read(member) for member in archive.members] == [b"first", b"second" * 100]
    assert archive.source.classes == ["cat", "größe"]
    assert archive.source.images == 2


def test_equal_images_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_archive(tmp_path / name, "folder", ["cat", "größe"], iter(IMAGES))
    for file in ("images.zip", "source.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_two_images_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"two images are called unsplit/cat/a"):
        write_archive(tmp_path / "raw", "folder", ["cat"], [IMAGES[0], IMAGES[0]])


def test_a_missing_archive_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro download"):
        RawArchive(tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path):
    write_archive(tmp_path / "raw", "folder", ["cat", "größe"], IMAGES)
    path = tmp_path / "raw" / "images.zip"
    content = bytearray(path.read_bytes())
    content[content.index(b"first")] ^= 1
    path.write_bytes(content)
    archive = RawArchive(tmp_path / "raw")
    with pytest.raises(UserError, match="altered at unsplit/cat"):
        archive.read(archive.members[0])


def test_a_truncated_archive_is_noticed(tmp_path):
    write_archive(tmp_path / "raw", "folder", ["cat", "größe"], IMAGES)
    path = tmp_path / "raw" / "images.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="not readable as raw data"):
        RawArchive(tmp_path / "raw")
