"""What is planted is found, counted exactly and acted upon; the page that says so is readable and always the same."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from reprise.data.download.sources import encode_array
from reprise.data.formats.packed import load_split
from reprise.data.formats.raw import RawImage, write_archive
from reprise.data.prepare.duplicates import MOST_BITS, Twins, bits_of_similar, equal_images, similar_images
from reprise.data.prepare.prepare import preprocess
from reprise.data.prepare.report import write_report
from reprise.data.prepare.signatures import difference_hash, signatures
from reprise.runtime.errors import UserError
from reprise.runtime.markup import html
from reprise.runtime.markup import text as escaped
from tests.conftest import data_params

NO_TWINS = {"train": 0, "val": 0, "test": 0, "val_in_train": 0, "test_in_train": 0, "test_in_val": 0}


def photo(number, size=32):
    """Return something smooth and structured, unlike every other number's."""
    blocks = np.random.default_rng(number).integers(30, 220, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((size, size), Image.Resampling.BICUBIC))


def raw(split, class_name, name, pixels):
    return RawImage(split, class_name, f"{name}.ppm", encode_array(pixels))


def clean(each=8):
    """Yield photos of two classes in three given splits, no two alike."""
    for number, split in enumerate(("train", "val", "test")):
        for label, class_name in enumerate(("cat", "dog")):
            for index in range(each):
                yield raw(split, class_name, index, photo(1000 * number + 100 * label + index))


def brighter(pixels):
    return np.clip(pixels.astype(int) + 9, 0, 255).astype(np.uint8)


def recompressed(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


PLANTED = [
    raw("train", "cat", "equal to test", photo(2000)),
    raw("train", "cat", "equal to val", photo(1001)),
    raw("val", "dog", "similar to test", brighter(photo(2101))),
    raw("train", "dog", "similar to test", brighter(photo(2102))),
    raw("train", "dog", "twice", photo(3)),  # there is a cat of these pixels
]


def checked(folder, images, classes=("cat", "dog"), workers=1, **options):
    folder.mkdir(exist_ok=True)
    write_archive(folder / "raw", "folder", classes, images)
    options = {"val_fraction": 0.2, "test_fraction": 0.3} | options
    return preprocess(folder / "raw", folder / "out", data_params(**options), workers)


def test_clean_data_have_nothing_to_report(tmp_path, capsys):
    _, findings = checked(tmp_path, clean())
    assert findings.metrics() == {
        "images": {"train": 16, "val": 16, "test": 16},
        "classes": 2,
        "imbalance": 1.0,
        "missing": 0,
        "width": {"min": 32, "median": 32, "max": 32},
        "height": {"min": 32, "median": 32, "max": 32},
        "dropped": {"corrupt": 0, "leaks": 0},
        "corrections": {"relabeled": 0, "dropped": 0, "gone": 0, "test": {"relabeled": 0, "dropped": 0}},
        "two_labels": {"equal": 0, "similar": 0},
        "equal": NO_TWINS,
        "similar": NO_TWINS,
    }
    assert findings.similar_bits == MOST_BITS
    assert capsys.readouterr().err == ""


def test_what_is_planted_is_found_and_counted_exactly(tmp_path, capsys):
    _, findings = checked(tmp_path, [*clean(), *PLANTED])
    facts = findings.metrics()
    assert facts["equal"] == NO_TWINS | {"train": 2, "val_in_train": 1, "test_in_train": 1}
    assert facts["similar"] == NO_TWINS | {"test_in_train": 1, "test_in_val": 1}
    assert facts["two_labels"] == {"equal": 2, "similar": 0}
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2
    assert warned[0] == (
        "preprocess: warning: 4 images of train or val in a later split too, which flatters the result; the first: "
        "train/cat/equal to test.ppm (train), same pixels as test/cat/0.ppm (test); data.on_leak: drop leaves them out"
    )
    assert warned[1].startswith("preprocess: warning: 2 images under two labels, the first: train/cat/3.ppm, same")


def test_drop_leaves_out_what_a_later_split_has_and_lists_it_while_the_test_split_stays_whole(tmp_path, capsys):
    metadata, findings = checked(tmp_path, [*clean(), *PLANTED], on_leak="drop")
    assert metadata.counts == {"train": 17, "val": 16, "test": 16}
    assert json.loads((tmp_path / "out/dropped.json").read_text()) == [
        {"id": "train/cat/equal to test.ppm", "split": "train", "reason": "same pixels as test/cat/0.ppm (test)"},
        {"id": "train/cat/equal to val.ppm", "split": "train", "reason": "same pixels as val/cat/1.ppm (val)"},
        {"id": "val/dog/similar to test.ppm", "split": "val", "reason": "similar to test/dog/1.ppm (test)"},
        {"id": "train/dog/similar to test.ppm", "split": "train", "reason": "similar to test/dog/2.ppm (test)"},
    ]
    assert findings.metrics()["dropped"] == {"corrupt": 0, "leaks": 4}
    assert "later split" not in capsys.readouterr().err
    left = [load_split(tmp_path / "out", split).ids for split in ("train", "val")]
    assert not [name for ids in left for name in ids if "to " in name]


def test_error_is_one_line_with_names_and_the_way_out(tmp_path):
    with pytest.raises(UserError) as caught:
        checked(tmp_path, [*clean(), *PLANTED], on_leak="error")
    assert str(caught.value) == (
        "4 images of train or val in a later split too: "
        "train/cat/equal to test.ppm (train), same pixels as test/cat/0.ppm (test); "
        "train/cat/equal to val.ppm (train), same pixels as val/cat/1.ppm (val); "
        "val/dog/similar to test.ppm (val), similar to test/dog/1.ppm (test); and 1 more; "
        "remove one of each pair, or set data.on_leak: drop (leaves out the one that is not in the later split) or warn"
    )
    checked(tmp_path / "clean", clean(), on_leak="error")


def test_the_same_pixels_in_another_file_are_found_also_where_the_splits_are_made_here(tmp_path):
    twins = []
    for index in range(20):
        pixels = photo(index)
        commented = encode_array(pixels).replace(b"P6 ", b"P6 #\n", 1)
        twins += [raw("unsplit", "cat", index, pixels), RawImage("unsplit", "cat", f"copy {index}.ppm", commented)]
    twins += [raw("unsplit", "dog", index, photo(500 + index)) for index in range(20)]
    metadata, findings = checked(tmp_path, twins, on_leak="drop")
    assert sum(findings.shared("equal").values()) >= 20
    assert 0 < len(findings.dropped) < 20
    assert sum(metadata.counts.values()) == 60 - len(findings.dropped)


def test_corrupt_images_sizes_imbalance_and_gaps_are_reported(tmp_path, capsys):
    images = [
        *clean(),
        raw("train", "cat", "wide", np.concatenate([photo(70), photo(71)], axis=1)),
        RawImage("train", "dog", "broken.png", b"text"),
        raw("train", "fox", "only", photo(72, size=40)),
    ]
    _, findings = checked(tmp_path, images, classes=("cat", "dog", "fox"), on_corrupt="drop")
    facts = findings.metrics()
    assert facts["dropped"] == {"corrupt": 1, "leaks": 0}
    assert (facts["imbalance"], facts["missing"]) == (9.0, 2)
    assert facts["width"] == {"min": 32, "median": 32, "max": 64}
    assert facts["height"] == {"min": 32, "median": 32, "max": 40}
    assert facts["images"] == {"train": 18, "val": 16, "test": 16}
    assert capsys.readouterr().err == "preprocess: warning: no images of class fox in val, fox in test\n"
    assert findings.missing() == [("fox", "val"), ("fox", "test")]


def page(findings, folder):
    write_report(findings, folder)
    return (folder / "report.md").read_text(encoding="utf-8")


def test_the_page_names_everything_and_its_pictures_exist(tmp_path):
    _, findings = checked(tmp_path, [*clean(), *PLANTED], on_leak="drop")
    text = page(findings, tmp_path / "report")
    assert "# Data: folder\n\n- 49 images in 2 classes: 17 train, 16 val, 16 test\n" in text
    assert "| cat | 8 | 8 | 8 | ![examples](class_0.png) |" in text
    assert "| of test, also in train | 1 | 1 |" in text
    assert "- train/cat/equal to test.ppm (train): same pixels as test/cat/0.ppm (test)\n" in text
    assert "## Equal images under two labels\n\n- train/cat/3.ppm (train): same pixels as train/dog/twice.ppm" in text
    assert "- left out: 0 that cannot be read, 4 that a later split has too\n" in text
    assert "at most 18 of 128 bits" in text
    assert "fewer than the usual" not in text
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"class_0.png", "class_1.png", "leaks.png", "report.md", "report.html", "two_labels.csv"}
    with Image.open(tmp_path / "report/leaks.png") as picture:
        pixels = np.asarray(picture)
    twin = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert set(re.findall(r'src="(.*?)"', twin)) == names - {"report.md", "report.html", "two_labels.csv"}
    assert '<td>cat</td>\n<td style="text-align:right">8</td>' in twin
    assert "<b>" not in html("<b>" + escaped("<b>"))
    assert pixels.shape == (132, 12 * 68, 3)
    assert np.array_equal(pixels[:66, :68], pixels[66:, :68])  # the equal pair
    assert not np.array_equal(pixels[:66, 136:202], pixels[66:, 136:202])  # the similar one


@pytest.mark.parametrize(("side", "factor"), [(8, 8), (28, 2), (40, 1), (64, 1)])
def test_small_pictures_are_enlarged_by_whole_pixels_and_a_white_one_has_a_frame(tmp_path, side, factor):
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    own = [raw("train", "cat", "a", noise), raw("train", "cat", "white", np.full_like(noise, 255))]
    _, findings = checked(tmp_path, [*own, *clean(1)])
    page(findings, tmp_path / "report")
    cats = [name for name in findings.ids if "/cat/" in name]
    sheet, whole = np.asarray(Image.open(tmp_path / "report/class_0.png")), factor * side
    for name, pixels in (("a", noise), ("white", np.full_like(noise, 255))):
        left = cats.index(f"train/cat/{name}.ppm") * 68
        shown = sheet[: whole + 2, left : left + whole + 2]
        expected = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        assert np.array_equal(shown, np.pad(expected, ((1, 1), (1, 1), (0, 0)), constant_values=200))


def test_shares_that_groups_miss_are_warned_of_and_reported(tmp_path, capsys):
    names = [f"{name}{group}-{index}" for name in "ab" for group in range(3) for index in range(9)]
    images = [raw("unsplit", name[0], name, photo(number)) for number, name in enumerate(names)]
    text = page(checked(tmp_path, images, ("a", "b"), group=r"[ab]\d")[1], tmp_path / "report")
    assert "\n- groups: val has 18 of 54 images, 20% asked\n" in text
    assert "warning: test has 18 of 54 images, 30% asked; val has 18" in capsys.readouterr().err


def test_the_page_says_so_where_similar_images_cannot_be_told(tmp_path):
    blank = [
        raw("unsplit", name, i, np.full((8, 8), 9 * i + k, np.uint8)) for k, name in enumerate("ab") for i in range(9)
    ]
    text = page(checked(tmp_path, blank, ("a", "b"))[1], tmp_path / "report")
    assert "Similar: not told.\nThat is fewer than the usual 18" in text


def test_names_cannot_break_the_page(tmp_path):
    classes = ("a|b\n# c", "<b>ключ")
    images = [
        raw(split, name, f"*{index}*", photo(100 * label + 10 * number + index))
        for number, split in enumerate(("train", "test"))
        for label, name in enumerate(classes)
        for index in range(8)
    ]
    images.append(raw("train", classes[1], "_copy_", photo(10)))
    text = page(checked(tmp_path, images, classes)[1], tmp_path / "report")
    rows = [line for line in text.splitlines() if "class_" in line]
    names = [row.rsplit(" | ", 4)[0].removeprefix("| ") for row in rows]
    assert names == [escaped(classes[0]), escaped(classes[1])] == ["a&#124;b?&#35;&#8203; c", "&#60;b&#62;ключ"]
    assert escaped(r"same pixels as 'test/a|b\n# c/*0*.ppm' (test)") in text
    assert f"{escaped('/_copy_.ppm')} (train): same pixels" in text
    assert "\n# c" not in text


def test_page_numbers_and_pictures_are_the_same_bytes_every_time_and_with_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("reprise.data.prepare.prepare.MANY_IMAGES", 1)
    monkeypatch.setattr("reprise.data.prepare.packing.BATCH_IMAGES", 5)
    written = []
    for workers in (1, 1, 2):
        folder = tmp_path / str(len(written))
        _, findings = checked(folder, [*clean(), *PLANTED], on_leak="drop", workers=workers)
        write_report(findings, folder / "report")
        files = {path.name: path.read_bytes() for part in ("out", "report") for path in (folder / part).iterdir()}
        written.append((json.dumps(findings.metrics()), files))
    assert written[0] == written[1] == written[2]


def test_a_photo_that_is_brighter_flatter_larger_or_recompressed_is_similar_and_a_stranger_is_not():
    photos = np.stack([photo(number) for number in range(200)])
    hashes = difference_hash(photos)
    changes = (
        brighter(photos),
        photos // 2,
        np.stack([np.asarray(Image.fromarray(pixels).resize((50, 50))) for pixels in photos]),
        np.stack([recompressed(pixels) for pixels in photos]),
    )
    for changed in changes:
        apart = np.bitwise_count(difference_hash(changed) ^ hashes).sum(axis=1)
        assert np.mean(apart <= MOST_BITS) > 0.95
    shifted = np.bitwise_count(difference_hash(np.roll(photos, 1, axis=2)) ^ hashes).sum(axis=1)
    assert np.mean(shifted <= MOST_BITS) > 0.5
    strangers = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2)[~np.eye(200, dtype=bool)]
    assert strangers.min() > MOST_BITS


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (9, 28, 3), (224, 224, 3)])
def test_any_size_has_a_hash_and_blank_images_are_similar_to_nothing(height, width, channels):
    images = np.random.default_rng(0).integers(0, 256, (4, height, width, channels), dtype=np.uint8)
    images[2:] = 255
    images[3, 0, 0] = 0
    hashes = difference_hash(images)
    assert hashes.shape == (4, 2)
    nobody = Twins(np.full((4, 3), -1))
    assert (similar_images(np.concatenate([hashes]), np.array([0, 0, 0, 1]), nobody, 128).rows[2:] == -1).all()


def test_the_fast_search_finds_what_comparing_all_pairs_finds():
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, (20_000, 2), dtype=np.uint64)
    splits = random.integers(-1, 3, 20_000)
    for copy, bits in enumerate(range(17)):  # copies of image 0 to 16, so many bits away
        flipped = np.zeros(128, np.uint8)
        flipped[random.permutation(128)[:bits]] = 1
        hashes[10_000 + copy] = hashes[copy] ^ np.packbits(flipped).view(np.uint64)
        splits[[copy, 10_000 + copy]] = 0, 2
    found = similar_images(hashes, splits, Twins(np.full((20_000, 3), -1)), 16).rows
    expected = np.full((20_000, 3), -1)
    expected[:17, 2], expected[10_000:10_017, 0] = np.arange(10_000, 10_017), np.arange(17)
    assert np.array_equal(found, expected)


def test_many_images_of_one_hash_each_have_a_twin_in_every_split():
    hashes = np.tile(np.array([[0x0F0F0F0F0F0F0F0F, 0x0F0F0F0F0F0F0F0F]], np.uint64), (3000, 1))
    splits = np.repeat([0, 1, 2], [2998, 1, 1])
    rows = similar_images(hashes, splits, Twins(np.full((3000, 3), -1)), 0).rows
    assert rows[0].tolist() == [1, 2998, 2999]
    assert rows[2998].tolist() == [0, -1, 2999]
    assert (rows[:2998] >= 0).all()


def test_of_equal_images_each_has_the_first_other_one_of_each_split():
    digests = np.array([[1, 1], [2, 1], [1, 1], [1, 1], [1, 2]], np.uint64)
    rows = equal_images(digests, np.array([0, 0, 0, 2, 2])).rows
    assert rows.tolist() == [[2, -1, 3], [-1] * 3, [0, -1, 3], [0, -1, -1], [-1] * 3]
    assert (equal_images(digests, np.array([0, 0, -1, -1, 2])).rows == -1).all()


def told(images, labels=None):
    return bits_of_similar(difference_hash(images), np.zeros(len(images)) if labels is None else labels)


def test_images_that_resemble_one_another_by_nature_are_not_called_similar():
    digits = load_digits()
    assert told((digits.images * 15.9).astype(np.uint8)[..., None], digits.target) <= 0
    assert told(np.zeros((9, 8, 8, 1), np.uint8)) == -1
    photos = np.stack([photo(number) for number in range(100)])
    assert told(photos) == MOST_BITS
    assert told(photos[:1]) == -1


def test_where_most_images_have_a_twin_it_is_found_if_it_has_their_label():
    twins = np.concatenate([photos := np.stack([photo(number) for number in range(100)]), brighter(photos)])
    labels = np.tile(np.arange(100) % 2, 2)
    assert told(twins, labels) == MOST_BITS
    labels[100:] = np.arange(100) // 2 % 2  # half of them with another label: crowded by nature, or by chance
    assert told(twins, labels) < MOST_BITS


def test_a_signature_tells_one_changed_value():
    images = np.stack([photo(1), photo(1), photo(1)])
    images[2, 5, 5, 0] ^= 1
    digests = signatures(images, np.full((3, 3), 32))["digest"]
    assert (digests[0] == digests[1]).all()
    assert (digests[0] != digests[2]).all()
