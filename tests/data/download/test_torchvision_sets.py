"""Each data set of torchvision arrives with its splits, class names, labels and pixels; nothing half unpacked does."""

import bz2
import csv
import hashlib
import inspect
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

from reprise.data.download.torchvision_sets import LEFT_OUT, TORCHVISION_SETS, class_names, download_torchvision, moved
from reprise.data.formats.raw import RawArchive, encode_array
from reprise.runtime.errors import UserError
from tests.conftest import ROOT

RANDOM = np.random.default_rng(0)
DIGITS = ["0 - zero", "1 - one", "2 - two", "3 - three", "4 - four", *("5 - five", "6 - six", "7 - seven")]
DIGITS += ["8 - eight", "9 - nine"]


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def image(path):
    """Write a small image file; return its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(4, 4, 3)).save(path)
    return path.read_bytes()


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def idx(path, array, kind=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes())


# Each of these lays a data set out below a folder, and returns its classes and what each member of the archive holds.


def mnist(root, folder="MNIST", prefix="", names=tuple(DIGITS), labels=(7, 0), test="t10k"):
    found = {}
    for ours, theirs in (("train", "train"), ("test", test)):
        images = pixels(2, 28, 28)
        idx(root / folder / f"raw/{prefix}{theirs}-images-idx3-ubyte", images)
        idx(root / folder / f"raw/{prefix}{theirs}-labels-idx1-ubyte", np.array(labels, np.uint8))
        for index, label in enumerate(labels):
            found[f"{ours}/{names[label]}/0000{index}.pgm"] = images[index]
    return list(names), found


def fashion_mnist(root):
    names = ["T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    return mnist(root, "FashionMNIST", names=names)


def kmnist(root):
    return mnist(root, "KMNIST", names=["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"])


def emnist(root):
    letters = list("abcdefghijklmnopqrstuvwxyz")
    _, found = mnist(root, "EMNIST", "emnist-letters-", ["none", *letters], labels=(1, 26), test="test")
    return letters, found


def qmnist(root):
    images = pixels(2, 28, 28)
    for part in ("train", "test"):
        idx(root / f"QMNIST/raw/qmnist-{part}-images-idx3-ubyte", images)
        labels = np.zeros((2, 8), ">i4")
        labels[:, 0] = 3, 9
        idx(root / f"QMNIST/raw/qmnist-{part}-labels-idx2-int", labels, kind=12)
    members = {f"{part}/{DIGITS[label]}/0000{index}.pgm": images[index] for part, index, label in rows(3, 9)}
    return DIGITS, members


def rows(*labels):
    return [(part, index, label) for part in ("train", "test") for index, label in enumerate(labels)]


def cifar(root, folder, files, key, names_key):
    names = [f"class {label}" for label in range(10)]
    (root / folder).mkdir(parents=True)
    array = pixels(2, 3072)
    for part, count in files:
        (root / folder / part).write_bytes(pickle.dumps({"data": array[:count], key: [9, 2][:count]}))
    meta = "meta" if "100" in folder else "batches.meta"
    (root / folder / meta).write_bytes(pickle.dumps({names_key: names}))
    return names, array.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1)


def cifar10(root):
    parts = [*((f"data_batch_{number}", 1) for number in range(1, 6)), ("test_batch", 2)]
    names, images = cifar(root, "cifar-10-batches-py", parts, "labels", "label_names")
    found = {f"train/class 9/0000{index}.ppm": images[0] for index in range(5)}
    return names, found | {"test/class 9/00000.ppm": images[0], "test/class 2/00001.ppm": images[1]}


def cifar100(root):
    names, images = cifar(root, "cifar-100-python", [("train", 2), ("test", 2)], "fine_labels", "fine_label_names")
    return names, {f"{part}/class {label}/0000{index}.ppm": images[index] for part, index, label in rows(9, 2)}


def svhn(root):
    images = pixels(2, 32, 32, 3)
    for part in ("train", "test"):
        savemat(root / f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": np.array([[10], [4]])})
    members = {f"{part}/{label}/0000{index}.ppm": images[index] for part, index, label in rows(0, 4)}
    return list("0123456789"), members


def usps(root):
    lines = ["10 " + " ".join(f"{n}:1" for n in range(1, 257)), "1 " + " ".join(f"{n}:-1" for n in range(1, 257))]
    for name in ("usps.bz2", "usps.t.bz2"):
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))
    levels = [np.full((16, 16), 255, np.uint8), np.zeros((16, 16), np.uint8)]
    members = {f"{part}/{label}/0000{index}.pgm": levels[index] for part, index, label in rows(9, 0)}
    return list("0123456789"), members


def stl10(root):
    images = pixels(2, 96, 96, 3)
    folder = root / "stl10_binary"
    names = ["airplane", "bird", "car"]
    text(folder / "class_names.txt", *names)
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes([3, 1]))
    (folder / "unlabeled_X.bin").touch()
    return names, {f"{part}/{names[n]}/0000{index}.ppm": images[index] for part, index, n in rows(2, 0)}


def semeion(root):
    bits = RANDOM.integers(0, 2, (2, 256))
    lines = [" ".join(map(str, [*row, *np.eye(10, dtype=int)[label]])) for row, label in zip(bits, (6, 0), strict=True)]
    text(root / "semeion.data", *lines)
    levels = (bits * 255).reshape(2, 16, 16).astype(np.uint8)
    return list("0123456789"), {"unsplit/6/00000.pgm": levels[0], "unsplit/0/00001.pgm": levels[1]}


def files_in(root, names, member, path):
    """Write two images a class, in the wrong order; return the classes and the members."""
    found = {}
    for n in (2, 1):
        for name in reversed(names):
            parts = {"name": name, "n": n, "number": name[:3], "nested": name.replace("-", "/")}
            found[f"unsplit/{name}/{member.format(**parts)}"] = image(root / path.format(**parts))
    return names, found


def omniglot(root):
    (root / "omniglot-py").mkdir()
    (root / "omniglot-py/images_background.zip").touch()
    names = ["Greek-character01", "Greek-character02", "Latin-character01"]
    return files_in(root, names, "0709_0{n}.png", "omniglot-py/images_background/{nested}/0709_0{n}.png")


def caltech101(root):
    image(root / "caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg")
    path = "caltech101/101_ObjectCategories/{name}/image_000{n}.jpg"
    return files_in(root, ["ant", "emu"], "image_000{n}.jpg", path)


def caltech256(root):
    path = "caltech256/256_ObjectCategories/{name}/{number}_000{n}.jpg"
    return files_in(root, ["001.ak47", "002.flag"], "{number}_000{n}.jpg", path)


def eurosat(root):
    return files_in(root, ["Forest", "River"], "{n}.jpg", "eurosat/2750/{name}/{n}.jpg")


def inaturalist(root):
    names = ["00000_Animalia_a_b_c_d_e_f", "00001_Plantae_a_b_c_d_e_f"]
    return files_in(root, names, "{n}.jpg", "2021_train_mini/{name}/{n}.jpg")


def sun397(root):
    text(root / "SUN397/ClassName.txt", "/a/abbey", "/a/arch/indoor")
    return files_in(root, ["abbey", "arch-indoor"], "sun_{n}.jpg", "SUN397/a/{nested}/sun_{n}.jpg")


def gtsrb(root):
    found = {}
    with (root / "gt.csv").open("w") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["Filename", "ClassId"])
        for label in (1, 0):
            found[f"train/{label}/0_{label}.ppm"] = image(root / f"gtsrb/GTSRB/Training/0000{label}/0_{label}.ppm")
            found[f"test/{label}/{label}.ppm"] = image(root / f"gtsrb/GTSRB/Final_Test/Images/{label}.ppm")
            table.writerow([f"{label}.ppm", label])
    (root / "gt.csv").rename(root / "gtsrb/GT-final_test.csv")
    return [str(label) for label in range(43)], found


def flowers102(root):
    folder = root / "flowers-102"
    names = torchvision.datasets.Flowers102.classes
    numbers = {"train": [1, 2], "val": [3, 4], "test": [5, 6]}
    content = {number: image(folder / f"jpg/image_0000{number}.jpg") for number in range(1, 7)}
    savemat(folder / "imagelabels.mat", {"labels": np.array([102, 1] * 3)})
    savemat(folder / "setid.mat", {"trnid": numbers["train"], "valid": numbers["val"], "tstid": numbers["test"]})
    return names, {
        f"{split}/{names[[0, 101][number % 2]]}/image_0000{number}.jpg": content[number]
        for split, two in numbers.items()
        for number in two
    }


def oxford_iiit_pet(root):
    folder = root / "oxford-iiit-pet"
    found = {}
    for ours, theirs in (("train", "trainval"), ("test", "test")):
        text(folder / f"annotations/{theirs}.txt", f"shiba_inu_{ours} 2 2 1", f"Abyssinian_{ours} 1 1 1")
        for name, file in (("Shiba Inu", "shiba_inu"), ("Abyssinian", "Abyssinian")):
            found[f"{ours}/{name}/{file}_{ours}.jpg"] = image(folder / f"images/{file}_{ours}.jpg")
    return ["Abyssinian", "Shiba Inu"], found


def a_file_each(folder, names, *splits):
    """Write one image for each split and class."""
    files = [f"{name}/{split}.jpg" for split in splits for name in names]
    return sorted(names), {f"{Path(file).stem}/{file}": image(folder / file) for file in files}


def food101(root):
    for split in ("train", "test"):
        listed = {name: [f"{name}/{split}"] for name in ("waffles", "apple_pie")}
        text(root / f"food-101/meta/{split}.json", json.dumps(listed))
    return a_file_each(root / "food-101/images", ["waffles", "apple_pie"], "train", "test")


def dtd(root):
    for split in ("train", "val", "test"):
        text(root / f"dtd/dtd/labels/{split}3.txt", f"zigzagged/{split}.jpg", f"banded/{split}.jpg")
    return a_file_each(root / "dtd/dtd/images", ["zigzagged", "banded"], "train", "val", "test")


def split_folders(root, folder, names, suffix, classes=(), **splits):
    classes = list(classes or names)
    found = {}
    for split, theirs in splits.items():
        for name, label in zip(names, classes, strict=True):
            found[f"{split}/{label}/x.{suffix}"] = image(root / folder / theirs / name / f"x.{suffix}")
    return classes, found


def country211(root):
    return split_folders(root, "country211", ["AD", "ZW"], "jpg", train="train", val="valid", test="test")


def rendered_sst2(root):
    names = ["negative", "positive"]
    return split_folders(root, "rendered-sst2", names, "png", train="train", val="valid", test="test")


def imagenette(root):
    names, classes = ["n01440764", "n03888257"], ["tench", "parachute"]
    return split_folders(root, "imagenette2-160", names, "jpeg", classes, train="train", val="val")


def fgvc_aircraft(root):
    folder = root / "fgvc-aircraft-2013b/data"
    text(folder / "families.txt", "A300", "DHC-8")
    found = {}
    for number, split in enumerate(("train", "val", "test")):
        text(folder / f"images_family_{split}.txt", f"{number} DHC-8")
        found[f"{split}/DHC-8/{number}.jpg"] = image(folder / f"images/{number}.jpg")
    return ["A300", "DHC-8"], found


def stanford_cars(root):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["Ram C/V Van 2012", "smart fortwo"], object)})
    found = {}
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        cars = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=[("fname", object), ("class", int)])
        savemat(folder / path, {"annotations": cars})
        for name, file in (("smart fortwo", "1.jpg"), ("Ram C-V Van 2012", "2.jpg")):
            found[f"{split}/{name}/{file}"] = image(folder / f"cars_{split}/{file}")
    return ["Ram C-V Van 2012", "smart fortwo"], found


def fer2013(root):
    images = pixels(2, 48, 48)
    lines = [
        f"{label},{' '.join(map(str, array.flatten()))},{usage}"
        for label, array, usage in ((3, images[0], "Training"), (6, images[1], "PrivateTest"))
    ]
    text(root / "fer2013/fer2013.csv", "emotion,pixels,Usage", *lines)
    names = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    return names, {"train/happy/00000.pgm": images[0], "test/neutral/00000.pgm": images[1]}


def clevr_classification(root):
    folder = root / "clevr/CLEVR_v1.0"
    found = {}
    for split in ("train", "val"):
        scenes = [{"image_filename": f"{n}.png", "objects": [{}] * n} for n in (10, 3)]
        text(folder / f"scenes/CLEVR_{split}_scenes.json", json.dumps({"scenes": scenes}))
        for n in (10, 3):
            found[f"{split}/{n}/{n}.png"] = image(folder / f"images/{split}/{n}.png")
    return [str(n) for n in range(3, 11)], found


def places365(root):
    text(root / "categories_places365.txt", "/a/airfield 0", "/a/alcove/indoor 1")
    text(root / "places365_train_standard.txt", "/a/alcove/indoor/1.jpg 1", "/a/airfield/1.jpg 0")
    text(root / "places365_val.txt", "v.jpg 1")
    found = {
        "train/a-airfield/1.jpg": image(root / "data_256_standard/a/airfield/1.jpg"),
        "train/a-alcove-indoor/1.jpg": image(root / "data_256_standard/a/alcove/indoor/1.jpg"),
        "val/a-alcove-indoor/v.jpg": image(root / "val_256/v.jpg"),
    }
    return ["a-airfield", "a-alcove-indoor"], found


def pcam(root):
    (root / "pcam").mkdir()
    found = {}
    for ours, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        images = pixels(2, 96, 96, 3)
        for name, array in (("x", images), ("y", np.array([1, 0]).reshape(2, 1, 1, 1))):
            with (root / f"pcam/camelyonpatch_level_2_split_{theirs}_{name}.h5").open("wb") as file:
                np.savez(file, **{name: array})
        found |= {f"{ours}/tumor/00000.ppm": images[0], f"{ours}/normal/00001.ppm": images[1]}
    return ["normal", "tumor"], found


FAKES = [
    *(caltech101, caltech256, cifar10, cifar100, clevr_classification, country211, dtd, emnist, eurosat, fashion_mnist),
    *(fer2013, fgvc_aircraft, flowers102, food101, gtsrb, imagenette, inaturalist, kmnist, mnist, omniglot),
    *(oxford_iiit_pet, pcam, places365, qmnist, rendered_sst2, semeion, stanford_cars, stl10, sun397, svhn, usps),
]
VARIANTS = {"dtd": "3", "emnist": "letters", "fgvc_aircraft": "family", "imagenette": "160px"}


@pytest.fixture
def fakes_are_taken(monkeypatch):
    """The checksums are those of the fakes; folders list their names backwards; h5py, not installed, reads .npz."""
    listdir, rglob = os.listdir, Path.rglob
    monkeypatch.setattr("torchvision.datasets.utils.check_md5", lambda path, md5, **_: True)
    monkeypatch.setattr(os, "listdir", lambda path=".": sorted(listdir(path), reverse=True))
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: iter(sorted(rglob(path, pattern), reverse=True)))
    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=np.load))


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: fake.__name__)
def test_splits_classes_labels_and_pixels_arrive(tmp_path, fakes_are_taken, fake):
    name = fake.__name__
    root = tmp_path / "downloads" / name
    root.mkdir(parents=True)
    classes, expected = fake(root)
    source = download_torchvision(name, tmp_path / "raw", tmp_path / "downloads", variant=VARIANTS.get(name))
    archive = RawArchive(tmp_path / "raw")
    assert (source.name, source.classes) == (name, list(classes))
    content = {name: encode_array(item) if isinstance(item, np.ndarray) else item for name, item in expected.items()}
    assert {member: archive.read(member) for member in archive.members} == content
    splits, _ = archive.placed()
    assert splits == sorted(splits, key=list(TORCHVISION_SETS[name].splits).index)
    if Path(next(iter(expected))).stem != "00000":  # files
        assert list(archive.members) == sorted(
            archive.members, key=lambda name: (splits.index(name.split("/")[0]), name)
        )


def test_each_set_of_the_table_has_a_fake():
    assert [fake.__name__ for fake in FAKES] == list(TORCHVISION_SETS)


def test_every_class_of_the_installed_torchvision_is_in_the_table_or_left_out_with_a_reason():
    known = [row.kind for row in TORCHVISION_SETS.values()] + [kind for kinds in LEFT_OUT.values() for kind in kinds]
    theirs = [name for name in torchvision.datasets.__all__ if inspect.isclass(getattr(torchvision.datasets, name))]
    assert sorted(known) == sorted(theirs)


def test_the_list_names_every_data_set_without_importing_torch():
    code = "import sys; from reprise.cli import main; main(['data'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], cwd=ROOT, capture_output=True, text=True
    )
    listed = [line.split()[0] for line in done.stdout.split("\n\n")[0].splitlines()[1:]]
    assert (listed, done.stdout.splitlines()[-1]) == (["digits", "folder", "archive", *TORCHVISION_SETS], "False")


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_each_variant_and_split_are_arguments_that_torchvision_has(name):
    row = TORCHVISION_SETS[name]
    kind = getattr(torchvision.datasets, row.kind)
    accepted = {key for part in kind.__mro__ for key in inspect.signature(part.__init__).parameters}
    for arguments in (*row.splits.values(), *(row.variants or {}).values(), {} if row.manual else {"download": True}):
        assert set(arguments) <= accepted
    code = inspect.getsource(sys.modules[kind.__module__])
    for value in [value for variant in (row.variants or {}).values() for value in variant.values()]:
        assert not isinstance(value, str) or f'"{value}"' in code


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_the_mirror_stands_in_for_every_address_or_is_refused(tmp_path, name):
    row = TORCHVISION_SETS[name]
    addresses = moved(getattr(torchvision.datasets, row.kind), "http://mirror.example/x")
    if row.mirror:
        assert addresses
        assert "http://mirror.example/x" in str(addresses)
        assert "https://" not in str(addresses)
    else:
        assert not addresses
        with pytest.raises(UserError, match=f"data.mirror = http://m: torchvision cannot take {name} from elsewhere"):
            download_torchvision(name, tmp_path / "raw", tmp_path, mirror="http://m")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["T-shirt/top", "Shirt"], ["T-shirt-top", "Shirt"]),
        ([("tench", "Tinca tinca"), ("horn",)], ["tench", "horn"]),
        (["a/b", "a-b", "/a/b"], ["a-b", "a-b (1)", "a-b (2)"]),
        (["N/A", "a"], ["N/A", "a"]),
    ],
)
def test_class_names_are_unique_and_free_of_slashes(theirs, ours):
    assert class_names(theirs) == ours


def test_files_that_the_user_must_bring_are_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"fer2013: train.csv not found .* bring fer2013.csv .* below .*/fer2013, or"):
        download_torchvision("fer2013", tmp_path / "raw", tmp_path)


def test_what_a_killed_process_has_half_unpacked_is_unpacked_again_from_the_kept_archive(tmp_path, monkeypatch, served):
    """food101 would be taken for whole because its folders are there."""
    folder, address, asked = served
    with tarfile.open(folder / "food-101.tar.gz", "w:gz") as tar:
        _, expected = food101(tmp_path)
        tar.add(tmp_path / "food-101", "food-101")
    monkeypatch.setattr(
        torchvision.datasets.Food101, "_MD5", hashlib.md5((folder / "food-101.tar.gz").read_bytes()).hexdigest()
    )

    def killed(*_, **__):
        raise KeyboardInterrupt

    real = tarfile.TarFile.chown
    monkeypatch.setattr(tarfile.TarFile, "chown", killed)  # after the first member
    with pytest.raises(KeyboardInterrupt):
        download_torchvision("food101", tmp_path / "raw", tmp_path / "downloads", mirror=address)
    for part in ("images/waffles/train.jpg", "meta/train.json", "meta/test.json"):  # it came as far as this
        text(tmp_path / "downloads/food101/food-101" / part, '{"waffles": ["waffles/train"]}')
    monkeypatch.setattr(tarfile.TarFile, "chown", real)
    fetched = len(asked)
    assert fetched
    download_torchvision("food101", tmp_path / "raw", tmp_path / "downloads", mirror=address)
    archive = RawArchive(tmp_path / "raw")
    assert {member: archive.read(member) for member in archive.members} == expected
    assert len(asked) == fetched
