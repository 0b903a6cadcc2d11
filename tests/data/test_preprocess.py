"""Packed arrays hold exactly the decoded images, with labels, ids and statistics that belong to them."""

import errno
import hashlib
import json
import os

import numpy as np
import pytest

from reprise.data.archive import RawImage, write_archive
from reprise.data.packed import load_metadata, load_split
from reprise.data.preprocess import channel_statistics, preprocess
from reprise.data.sources import encode_array
from reprise.errors import UserError


def raw_images(classes=("cat", "dog"), each=10, channels=3, split="unsplit"):
    """Yield images whose every pixel says which image it is."""
    for label, name in enumerate(classes):
        for number in range(each):
            shape = (8, 8) if channels == 1 else (8, 8, 3)
            yield RawImage(split, name, f"{number}.ppm", encode_array(np.full(shape, label * 100 + number, np.uint8)))


def prepared(tmp_path, images, classes=("cat", "dog"), **options):
    write_archive(tmp_path / "raw", "folder", classes, images)
    options = {"image_size": 8, "val_fraction": 0.2, "test_fraction": 0.3, "seed": 0} | options
    return preprocess(tmp_path / "raw", tmp_path / "out", **options)


def test_every_image_lands_once_with_its_own_label_and_id(tmp_path):
    metadata = prepared(tmp_path, raw_images())
    assert metadata.counts == {"train": 10, "val": 4, "test": 6}
    seen = []
    for split in ("train", "val", "test"):
        data = load_split(tmp_path / "out", split)
        assert data.images.shape == (metadata.counts[split], 8, 8, 3)
        assert data.images.dtype == np.uint8
        for pixels, label, image_id in zip(data.images, data.labels, data.ids, strict=True):
            value = int(pixels[0, 0, 0])
            assert (pixels == value).all()
            assert label == value // 100
            assert image_id == f"{('cat', 'dog')[label]}/{value % 100}.ppm"
            seen.append(value)
    assert sorted(seen) == [*range(10), *range(100, 110)]


def test_metadata_describe_the_training_split_alone(tmp_path):
    metadata = prepared(tmp_path, raw_images())
    train = load_split(tmp_path / "out", "train").images / 255
    assert metadata.mean == pytest.approx(train.mean(axis=(0, 1, 2)), rel=1e-12)
    assert metadata.std == pytest.approx(train.std(axis=(0, 1, 2)), rel=1e-12)
    assert metadata.source_sha256 == hashlib.sha256((tmp_path / "raw" / "images.zip").read_bytes()).hexdigest()
    assert load_metadata(tmp_path / "out") == metadata


def test_labels_follow_the_sources_order_of_classes(tmp_path):
    prepared(tmp_path, raw_images(), classes=("dog", "cat"))
    data = load_split(tmp_path / "out", "test")
    assert {image_id[:3]: label for image_id, label in zip(data.ids, data.labels, strict=True)} == {"dog": 0, "cat": 1}


def test_grey_stays_one_channel_unless_one_image_has_colour(tmp_path):
    (tmp_path / "grey").mkdir()
    assert prepared(tmp_path / "grey", raw_images(channels=1)).channels == 1
    (tmp_path / "mixed").mkdir()
    colour = RawImage("unsplit", "cat", "red.ppm", encode_array(np.full((8, 8, 3), 9, np.uint8)))
    assert prepared(tmp_path / "mixed", [*raw_images(channels=1), colour]).channels == 3


def test_all_bad_images_are_listed_at_once_whatever_is_wrong_with_them(tmp_path):
    broken = [
        RawImage("unsplit", "cat", "empty.jpg", b""),
        RawImage("unsplit", "dog", "text.png", b"hello"),
        RawImage("unsplit", "dog", "short.ppm", encode_array(np.zeros((8, 8, 3), np.uint8))[:-50]),
    ]
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, [*raw_images(), *broken])
    message = str(caught.value)
    assert message.startswith("3 images cannot be read")
    assert "cat/empty.jpg: empty file" in message
    assert "dog/text.png: not an image" in message
    assert "dog/short.ppm: " in message


def test_one_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        prepared(tmp_path, raw_images(classes=("cat",)), classes=("cat",))


def test_a_class_with_fewer_images_than_splits_is_named(tmp_path):
    with pytest.raises(UserError, match=r"class rare \(2\)"):
        prepared(tmp_path, [*raw_images(), *raw_images(("rare",), each=2)], classes=("cat", "dog", "rare"))


def test_statistics_are_exact_whatever_the_chunk():
    images = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 3), dtype=np.uint8)
    assert channel_statistics(images, chunk=7) == channel_statistics(images, chunk=4096)


def test_a_constant_channel_does_not_divide_by_zero():
    assert channel_statistics(np.full((3, 2, 2, 1), 255, np.uint8)) == ([1.0], [1.0])


@pytest.mark.parametrize("file", ["train_images.npy", "train_labels.npy", "train_ids.json"])
def test_an_altered_or_missing_file_says_what_to_run(tmp_path, file):
    prepared(tmp_path, raw_images())
    path = tmp_path / "out" / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="dvc repro preprocess"):
        load_split(tmp_path / "out", "train")
    path.unlink()
    with pytest.raises(UserError, match="no prepared data there"):
        load_split(tmp_path / "out", "train")


def test_metadata_of_something_else_are_refused(tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps({"classes": ["cat"]}))
    with pytest.raises(UserError, match="not readable"):
        load_metadata(tmp_path)


def test_images_labels_and_ids_must_fit_together(tmp_path):
    prepared(tmp_path, raw_images())
    np.save(tmp_path / "out/train_labels.npy", np.zeros(3, np.int64))
    with pytest.raises(UserError, match="do not fit together"):
        load_split(tmp_path / "out", "train")


def test_a_full_disk_is_an_error_and_not_a_crash_when_the_array_is_filled(tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*train_images\.npy"):
        prepared(tmp_path, raw_images())


def test_the_splits_have_a_fingerprint(tmp_path):
    marks = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        marks.append(prepared(tmp_path / name, raw_images(), seed=seed).splits_sha256)
    assert marks[0] == marks[1] != marks[2]
