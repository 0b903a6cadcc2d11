"""Packed arrays hold exactly the decoded images, with labels, ids and statistics that belong to them."""

import errno
import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from reprise.data.download.sources import encode_array
from reprise.data.formats.packed import load_metadata, load_split
from reprise.data.formats.raw import RawImage, write_archive
from reprise.data.prepare.packing import channel_statistics, channel_sums
from reprise.data.prepare.prepare import preprocess
from reprise.runtime.atomic import publishing
from reprise.runtime.checksums import write_sealed
from reprise.runtime.errors import UserError, one_line_errors
from tests.conftest import data_params
from tests.data.prepare.test_decode import damaged_exif


def raw_images(classes=("cat", "dog"), each=10, channels=3, split="unsplit"):
    """Yield images whose every pixel says which image it is."""
    for label, name in enumerate(classes):
        for number in range(each):
            shape = (8, 8) if channels == 1 else (8, 8, 3)
            yield RawImage(split, name, f"{number}.ppm", encode_array(np.full(shape, label * 100 + number, np.uint8)))


def prepared(tmp_path, images, classes=("cat", "dog"), workers=1, **options):
    tmp_path.mkdir(exist_ok=True)
    write_archive(tmp_path / "raw", "folder", classes, images)
    options = {"image_size": 8, "val_fraction": 0.2, "test_fraction": 0.3} | options
    return preprocess(tmp_path / "raw", tmp_path / "out", data_params(**options), workers)[0]


def test_every_image_lands_once_with_its_own_label_and_id(tmp_path):
    metadata = prepared(tmp_path, raw_images())
    assert sum(metadata.counts.values()) == 20
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


def test_metadata_describe_the_training_split_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("reprise.data.prepare.packing.BATCH_IMAGES", 3)
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


def test_columns_and_sizes_of_test_images_travel_with_them_where_there_are_any(tmp_path):
    assert "test_columns.json" not in prepared(tmp_path / "plain", raw_images()).sha256
    images = [replace(image, columns={"size": "big", "of": image.member}) for image in raw_images()]
    odd = RawImage("unsplit", "cat", "wide.ppm", encode_array(np.zeros((8, 12, 3), np.uint8)), {"size": "", "of": ""})
    prepared(tmp_path / "own", [*images, odd], test_fraction=0.7)
    data = load_split(tmp_path / "own/out", "test")
    rows = [("1.5", "", "") if "wide" in name else ("1.0", "big", f"unsplit/{name}") for name in data.ids]
    assert ("1.5", "", "") in rows
    # the user's own size, not the number of pixels
    assert list(zip(*(data.columns[name] for name in ("aspect", "size", "of")), strict=True)) == rows
    (tmp_path / "own/out/test_columns.json").write_text("{}")
    with pytest.raises(UserError, match=r"test_columns\.json"):
        load_split(tmp_path / "own/out", "test")


def test_gray_stays_one_channel_unless_one_image_has_color(tmp_path):
    assert prepared(tmp_path / "gray", raw_images(channels=1)).channels == 1
    color = RawImage("unsplit", "cat", "red.ppm", encode_array(np.full((8, 8, 3), 9, np.uint8)))
    assert prepared(tmp_path / "mixed", [*raw_images(channels=1), color]).channels == 3


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


BROKEN = [
    RawImage("unsplit", name, f"broken {number}.png", b"%d" % number) for name in ("dog", "cat") for number in range(9)
]


def contents(folder):
    """Return {id: (split, label, pixels)} and the metadata."""
    splits = {split: load_split(folder, split) for split in ("train", "val", "test")}
    placed = {
        image_id: (split, int(label), pixels.tobytes())
        for split, data in splits.items()
        for image_id, label, pixels in zip(data.ids, data.labels, data.images, strict=True)
    }
    assert sum(map(len, splits.values())) == len(placed)
    return placed, load_metadata(folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_dropped_images_leave_everything_else_as_if_they_had_never_been_there(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("reprise.data.prepare.prepare.MANY_IMAGES", 1)
    monkeypatch.setattr("reprise.data.prepare.packing.BATCH_BYTES", 500)  # two images
    whole = list(raw_images(each=30))
    for folder, images in (("without", whole), ("with", [*BROKEN[:9], *whole[:30], *BROKEN[9:], *whole[30:]])):
        prepared(tmp_path / folder, images, on_corrupt="drop", workers=workers)
    expected, clean = contents(tmp_path / "without/out")
    found, metadata = contents(tmp_path / "with/out")
    assert found == expected
    same = ("mean", "std", "counts", "channels")
    assert {key: getattr(metadata, key) for key in same} == {key: getattr(clean, key) for key in same}
    assert (clean.dropped, metadata.dropped) == (0, 18)
    assert "18 left out (see dropped.json)" in metadata.summary()
    for split in ("train", "val", "test"):
        files = [(tmp_path / folder / "out" / f"{split}_images.npy").read_bytes() for folder in ("without", "with")]
        assert files[0] == files[1]
    listed = json.loads((tmp_path / "with/out/dropped.json").read_text())
    assert [entry["id"] for entry in listed] == [image.member.removeprefix("unsplit/") for image in BROKEN]
    assert {entry["reason"] for entry in listed} == {"not an image, or its beginning is damaged"}
    assert len({entry["split"] for entry in listed}) > 1


def test_images_with_a_damaged_part_are_kept_and_named(tmp_path, capsys):
    odd = RawImage("unsplit", "dog", "odd.jpg", damaged_exif())
    metadata = prepared(tmp_path, [*raw_images(), odd, BROKEN[0]], on_corrupt="drop")
    assert (sum(metadata.counts.values()), metadata.dropped) == (21, 1)
    said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(said) == 1
    assert said[0].startswith(
        "preprocess: warning: 1 image read, but with a damaged part, the first: dog/odd.jpg: Corrupt"
    )


def test_a_class_of_which_nothing_is_left_to_train_on_is_named(tmp_path):
    broken = [RawImage("unsplit", "rare", f"{number}.png", b"%d" % number) for number in range(5)]
    with pytest.raises(
        UserError, match="with 5 images dropped or relabeled, none is left of class rare in train; add images"
    ):
        prepared(tmp_path, [*raw_images(), *broken], classes=("cat", "dog", "rare"), on_corrupt="drop")


def test_the_stated_channels_and_resize_are_kept(tmp_path):
    wide = RawImage("unsplit", "cat", "wide.ppm", encode_array(np.full((8, 16), 9, np.uint8)))
    metadata = prepared(tmp_path, [*raw_images(channels=1), wide], channels=3, resize="fit")
    assert (metadata.channels, metadata.resize) == (3, "fit")
    pixels = np.frombuffer(contents(tmp_path / "out")[0]["cat/wide.ppm"][2], np.uint8).reshape(8, 8, 3)
    assert pixels[:, 0].tolist() == [[0] * 3] * 2 + [[9] * 3] * 4 + [[0] * 3] * 2


def test_one_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        prepared(tmp_path, raw_images(classes=("cat",)), classes=("cat",))


def test_statistics_are_exact_whatever_the_batches():
    images = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 3), dtype=np.uint8)
    whole = channel_sums(images)
    assert (sum(channel_sums(images[start : start + 7]) for start in range(0, 100, 7)) == whole).all()
    mean, std = channel_statistics(whole, 1600)
    assert mean == pytest.approx((images / 255).mean(axis=(0, 1, 2)), rel=1e-12)
    assert std == pytest.approx((images / 255).std(axis=(0, 1, 2)), rel=1e-12)


def test_a_constant_channel_does_not_divide_by_zero():
    assert channel_statistics(channel_sums(np.full((3, 2, 2, 1), 255, np.uint8)), 12) == ([1.0], [1.0])


@pytest.mark.parametrize("file", ["train_images.npy", "train_labels.npy", "train_ids.json"])
def test_an_altered_or_missing_file_says_what_to_run(tmp_path, file):
    prepared(tmp_path, raw_images())
    path = tmp_path / "out" / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{file}: altered since it was written; `dvc repro --force preprocess` makes"):
        load_split(tmp_path / "out", "train")
    path.unlink()
    with pytest.raises(UserError, match=f"{file}: no prepared data there; run `dvc repro preprocess`"):
        load_split(tmp_path / "out", "train")


def test_metadata_of_something_else_are_refused(tmp_path):
    write_sealed(tmp_path / "metadata.json", {"classes": ["cat"]})
    with pytest.raises(UserError, match=r"metadata\.json: written by another version; `dvc repro --force preprocess`"):
        load_metadata(tmp_path)


@pytest.mark.parametrize("file", ["train_images.npy", "val_labels.npy", "test_ids.json", "metadata.json"])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path, full_disk, file):
    write_archive(tmp_path / "raw", "folder", ("cat", "dog"), raw_images())
    full_disk(file)
    with pytest.raises(SystemExit) as caught, one_line_errors(), publishing(tmp_path / "out") as (out,):
        preprocess(tmp_path / "raw", out, data_params(image_size=8, val_fraction=0.2, test_fraction=0.3))
    assert caught.value.code == f"error: {out / file}: No space left on device; free some space and run it again"
    assert os.listdir(tmp_path) == ["raw"]


def test_a_full_disk_is_noticed_before_the_first_image_is_decoded(tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("reprise.data.prepare.packing.decode", None)
    with pytest.raises(OSError, match=r"No space left on device: .*train_images\.npy"):
        prepared(tmp_path, raw_images())


def test_the_number_of_workers_changes_no_bit_and_no_message(tmp_path, monkeypatch):
    monkeypatch.setattr("reprise.data.prepare.packing.BATCH_IMAGES", 3)
    monkeypatch.setattr("reprise.data.prepare.prepare.MANY_IMAGES", 1)
    images = list(raw_images(channels=1))
    broken = [RawImage("unsplit", name, f"{number}\n.png", b"text") for number in range(9) for name in ("dog", "cat")]
    written, refused = [], []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        prepared(folder, images, workers=workers)
        written.append({path.name: path.read_bytes() for path in (folder / "out").iterdir()})
        with pytest.raises(UserError) as caught:
            prepared(folder / "broken", [*broken[:9], *images, *broken[9:]], workers=workers)
        refused.append(str(caught.value))
    assert len(written[0]) == 11
    assert written[0] == written[1]
    listed = [f"  '{image.class_name}/{image.file_name[0]}\\n.png': not an image" for image in broken]
    assert refused[0] == refused[1]
    assert [line.split(",")[0] for line in refused[0].splitlines()[1:]] == listed  # in the archive's order


def test_an_image_lands_in_the_same_split_with_the_same_pixels_whatever_the_order_of_the_archive(tmp_path):
    found = []
    for name, images in (("forward", list(raw_images())), ("backward", list(raw_images())[::-1])):
        prepared(tmp_path / name, images)
        placed, metadata = contents(tmp_path / name / "out")
        found.append((placed, metadata.mean, metadata.std))
    assert found[0] == found[1]


def test_the_splits_have_a_fingerprint(tmp_path):
    marks = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        marks.append(prepared(tmp_path / name, raw_images(), seed=seed).splits_sha256)
    assert marks[0] == marks[1] != marks[2]
