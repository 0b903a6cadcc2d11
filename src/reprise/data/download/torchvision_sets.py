"""Every classification data set of torchvision: one adapter, and a table of where they differ.

torchvision fetches, checks and unpacks; each item is an image and a class. Image files are stored as they are, in the
order of class and name; pixels are stored as PGM/PPM in the data set's order. The table needs no torchvision; a test
compares the two.
"""

import inspect
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from reprise.data.formats.raw import UNSPLIT, RawImage, Source, encode_array, write_archive
from reprise.runtime.atomic import Lock
from reprise.runtime.errors import OF_THE_DISK, UserError, reason

Arguments = Mapping[str, Any]  # for the constructor of torchvision's class

# what the network, a damaged file or a missing package can do to torchvision's loaders
REFUSALS = (
    *(OSError, RuntimeError, ValueError, EOFError, HTTPException),
    *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
)
ARCHIVES = {".gz", ".tgz", ".tar", ".zip", ".xz"}  # torchvision verifies these before it unpacks them again
NO_IMAGES = ("", "N/A")  # names of labels that no image has


@dataclass(frozen=True)
class TorchvisionSet:
    """A class of torchvision.datasets, and how it differs from the others.

    classes, images: how many the default variant has, as published. splits: the arguments for each of our splits.
    variants: the arguments for each value of `data.split`, the default first. names: the attribute with the class
    names, or the names; unsorted: torchvision lists them in the order of the directory. pairs: path or image, and
    label, of each item. mirror: the address can be replaced. manual: the files are the user's to bring.
    """

    kind: str
    classes: int
    images: int
    splits: Mapping[str, Arguments]
    variants: Mapping[str, Arguments] | None = None
    names: str | tuple[str, ...] = "classes"
    pairs: Callable[[Any], Iterable[tuple[Any, Any]]] = lambda data_set: map(data_set.__getitem__, range(len(data_set)))
    unsorted: bool = False
    mirror: bool = True
    manual: bool = False
    note: str = ""


def _each(argument: str, *values: Any) -> dict[str, Arguments]:
    return {str(value): {argument: value} for value in values}


BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
TRAIN_TEST = _each("split", "train", "test")
TRAIN_VAL = _each("split", "train", "val")
TRAIN_VAL_TEST = _each("split", "train", "val", "test")
WHOLE: dict[str, Arguments] = {UNSPLIT: {}}
DIGITS = tuple("0123456789")

TORCHVISION_SETS = {
    "caltech101": TorchvisionSet("Caltech101", 101, 8_677, WHOLE, names="categories", mirror=False),
    "caltech256": TorchvisionSet("Caltech256", 257, 30_607, WHOLE, names="categories", mirror=False),
    "cifar10": TorchvisionSet("CIFAR10", 10, 60_000, BY_FLAG),
    "cifar100": TorchvisionSet("CIFAR100", 100, 60_000, BY_FLAG),
    "clevr_classification": TorchvisionSet(
        "CLEVRClassification", 8, 85_000, TRAIN_VAL, names=("", "", "", *map(str, range(3, 11))), note="objects counted"
    ),
    "country211": TorchvisionSet("Country211", 211, 63_300, {**TRAIN_TEST, "val": {"split": "valid"}}),
    "dtd": TorchvisionSet("DTD", 47, 5_640, TRAIN_VAL_TEST, _each("partition", *range(1, 11))),
    "emnist": TorchvisionSet(
        "EMNIST", 47, 131_600, BY_FLAG, _each("split", "balanced", "byclass", "bymerge", "letters", "digits", "mnist")
    ),
    "eurosat": TorchvisionSet("EuroSAT", 10, 27_000, WHOLE, mirror=False),
    "fashion_mnist": TorchvisionSet("FashionMNIST", 10, 70_000, BY_FLAG),
    "fer2013": TorchvisionSet(
        "FER2013", 7, 35_887, TRAIN_TEST, mirror=False, manual=True,
        note="fer2013.csv or icml_face_data.csv in fer2013/",
        names=("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
    ),
    "fgvc_aircraft": TorchvisionSet(
        "FGVCAircraft", 100, 10_000, TRAIN_VAL_TEST, _each("annotation_level", "variant", "family", "manufacturer"),
        note="torchvision has no checksum",
    ),
    "flowers102": TorchvisionSet("Flowers102", 102, 8_189, TRAIN_VAL_TEST),
    "food101": TorchvisionSet("Food101", 101, 101_000, TRAIN_TEST),
    "gtsrb": TorchvisionSet(
        "GTSRB", 43, 39_270, TRAIN_TEST, names=tuple(map(str, range(43))), mirror=False,
        pairs=lambda data_set: data_set._samples,
    ),
    "imagenette": TorchvisionSet("Imagenette", 10, 13_394, TRAIN_VAL, _each("size", "full", "320px", "160px")),
    "inaturalist": TorchvisionSet(
        "INaturalist", 10_000, 500_000, WHOLE, names="all_categories", mirror=False,
        variants=_each("version", "2021_train_mini", "2021_train", "2021_valid", "2019", "2018", "2017"),
    ),
    "kmnist": TorchvisionSet("KMNIST", 10, 70_000, BY_FLAG),
    "mnist": TorchvisionSet("MNIST", 10, 70_000, BY_FLAG),
    "omniglot": TorchvisionSet(
        "Omniglot", 964, 19_280, WHOLE, {"background": {"background": True}, "evaluation": {"background": False}},
        names="_characters", unsorted=True,
    ),
    "oxford_iiit_pet": TorchvisionSet(
        "OxfordIIITPet", 37, 7_349, {**TRAIN_TEST, "train": {"split": "trainval"}},
        pairs=lambda data_set: zip(data_set._images, data_set._labels, strict=True),
    ),
    "pcam": TorchvisionSet(
        "PCAM", 2, 327_680, TRAIN_VAL_TEST, names=("normal", "tumor"), mirror=False, note="pip install gdown h5py"
    ),
    "places365": TorchvisionSet(
        "Places365", 365, 1_839_960, {**TRAIN_VAL, "train": {"split": "train-standard"}},
        {"small": {"small": True}, "large": {"small": False}},
    ),
    "qmnist": TorchvisionSet("QMNIST", 10, 120_000, BY_FLAG),
    "rendered_sst2": TorchvisionSet("RenderedSST2", 2, 9_613, TRAIN_VAL_TEST),
    "semeion": TorchvisionSet("SEMEION", 10, 1_593, WHOLE, names=DIGITS),
    "stanford_cars": TorchvisionSet(
        "StanfordCars", 196, 16_185, TRAIN_TEST, mirror=False, manual=True, note="all its files in stanford_cars/"
    ),
    "stl10": TorchvisionSet("STL10", 10, 13_000, TRAIN_TEST),
    "sun397": TorchvisionSet("SUN397", 397, 108_754, WHOLE),
    "svhn": TorchvisionSet("SVHN", 10, 99_289, TRAIN_TEST, names=DIGITS),
    "usps": TorchvisionSet("USPS", 10, 9_298, BY_FLAG, names=DIGITS),
}  # fmt: skip

LEFT_OUT = {
    "captions": ("CocoCaptions", "Flickr30k", "Flickr8k", "SBU"),
    "boxes": ("CocoDetection", "Kitti", "VOCDetection", "WIDERFace"),
    "segmentation": ("Cityscapes", "SBDataset", "VOCSegmentation"),
    "videos": ("HMDB51", "Kinetics", "MovingMNIST", "UCF101"),
    "pairs of images": ("LFWPairs", "PhotoTour"),
    "optical flow": ("FlyingChairs", "FlyingThings3D", "HD1K", "KittiFlow", "Sintel"),
    "stereo": (
        *("CREStereo", "CarlaStereo", "ETH3DStereo", "FallingThingsStereo", "InStereo2k", "Kitti2012Stereo"),
        *("Kitti2015Stereo", "Middlebury2014Stereo", "SceneFlowStereo", "SintelStereo"),
    ),
    "several attributes, not one class": ("CelebA",),
    "not downloaded by torchvision; unpack it into class folders": ("ImageNet", "LFWPeople", "LSUN", "LSUNClass"),
    "no data of its own": ("DatasetFolder", "FakeData", "ImageFolder", "VisionDataset"),
}


def download_torchvision(
    name: str, destination: Path, downloads: Path, mirror: str | None = None, variant: str | None = None
) -> Source:
    """Bring one of TORCHVISION_SETS in, as a raw archive in the new folder `destination`.

    `downloads/NAME` keeps what torchvision fetched; `mirror` replaces the address, with the same file names below it;
    `variant` is one of the set's. Raises UserError for a variant or a mirror that the set does not have, without a
    network, and with files that are altered or incomplete.
    """
    row = TORCHVISION_SETS[name]
    options = dict(variant_arguments(name, mirror, variant)) | ({} if row.manual else {"download": True})
    kind = _kind(row, mirror)
    if "loader" in inspect.signature(kind).parameters:
        options["loader"] = str  # the item is then the path, and nothing is decoded
    root = downloads / name
    root.mkdir(parents=True, exist_ok=True)
    try:
        with Lock(root), nullcontext() if row.manual else _unpacking(root):
            parts = {ours: kind(root=str(root), **theirs, **options) for ours, theirs in row.splits.items()}
    except REFUSALS as error:
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise
        raise _refusal(name, row, mirror, root, reason(error).rstrip(".")) from None
    lists = [class_names(row.names if isinstance(row.names, tuple) else getattr(p, row.names)) for p in parts.values()]
    if any(other != lists[0] for other in lists):
        raise _refusal(name, row, mirror, root, "its splits have different classes")
    classes = [label for label in lists[0] if label not in NO_IMAGES]
    images = (image for split, data_set in parts.items() for image in _images(row, split, data_set, lists[0], root))
    return write_archive(destination, name, sorted(classes) if row.unsorted else classes, images)


def class_names(theirs: Iterable[Any]) -> list[str]:
    """Return unique class names by label, free of slashes; of several synonyms the first."""
    names: list[str] = []
    for label, name in enumerate(theirs):
        text = str(name[0] if isinstance(name, tuple) else name)
        text = text if text in NO_IMAGES else text.strip("/").replace("/", "-")
        names.append(f"{text} ({label})" if text and text in names else text)
    return names


def variant_arguments(name: str, mirror: str | None, variant: str | None) -> Arguments:
    """Return a variant's arguments. Raises UserError for a variant or a mirror that the set does not have."""
    row = TORCHVISION_SETS[name]
    if mirror is not None and not row.mirror:
        raise UserError(f"data.mirror = {mirror}: torchvision cannot take {name} from elsewhere; set data.mirror: null")
    variants = row.variants or {}
    if variant is None:
        return next(iter(variants.values()), {})
    if not variants:
        raise UserError(f"data.split = {variant}: {name} has no variants; set data.split: null")
    if variant not in variants:
        allowed = ", ".join(variants)
        raise UserError(f"data.split = {variant} is not allowed: {name} has {allowed}; null is the first of them")
    return variants[variant]


def _kind(row: TorchvisionSet, mirror: str | None) -> Any:
    """Return torchvision's class, with every address in its attributes moved to the mirror."""
    import torchvision.datasets

    kind: Any = getattr(torchvision.datasets, row.kind)
    if mirror is None:
        return kind
    return type(kind.__name__, (kind,), moved(kind, mirror))  # the name is also its folder's


def moved(kind: Any, mirror: str) -> dict[str, Any]:
    """Return the attributes of torchvision's class that hold addresses, with the mirror's in their place."""
    base = mirror.rstrip("/") + "/"

    def move(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            file = value.rpartition("/")[2]  # none of a folder's address, which keeps its slash if it has one
            return base + file if "." in file else base.rstrip("/") if file else base
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(move, value))
        return value

    attributes = inspect.getmembers(kind)
    return {key: move(value) for key, value in attributes if not key.startswith("__") and move(value) != value}


@contextmanager
def _unpacking(root: Path) -> Iterator[None]:
    """Let torchvision fetch and unpack into a folder; first remove what an unfinished attempt has unpacked.

    torchvision verifies archives, but takes an unpacked folder for complete if it exists.
    """
    unfinished = root / ".unfinished"
    if unfinished.exists():
        for path in sorted(root.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # an archive is in it
                    path.rmdir()
            elif path.suffix not in ARCHIVES and path != unfinished:
                path.unlink()
    unfinished.touch()
    yield
    unfinished.unlink()


def _images(row: TorchvisionSet, split: str, data_set: Any, names: list[str], root: Path) -> Iterator[RawImage]:
    """Yield the labelled images: pixels as they come, files by class and path (torchvision lists some unsorted)."""
    files = []
    for index, (item, label) in enumerate(row.pairs(data_set)):
        path = item if isinstance(item, str | Path) else getattr(item, "filename", None)
        if label is None:
            continue
        if path is None:
            pixels = np.asarray(item)
            suffix = "pgm" if pixels.ndim == 2 else "ppm"
            yield RawImage(split, names[int(label)], f"{index:05d}.{suffix}", encode_array(pixels))
        else:
            if path is not item:  # opened, not decoded
                item.close()
            files.append((names[int(label)], Path(path)))
    for class_name, path in sorted(files):
        try:
            encoded = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path} is missing; remove {root} and run it again") from None
        yield RawImage(split, class_name, path.name, encoded)


def _refusal(name: str, row: TorchvisionSet, mirror: str | None, root: Path, said: str) -> UserError:
    own = "put images into data/own/CLASS/ and set data.name: folder"
    if row.manual:
        return UserError(
            f"data.name = {name}: {said}; torchvision does not download this one: bring {row.note} below {root}, "
            f"or {own}"
        )
    address = mirror or "the data set's own address"
    copy = "set data.mirror to the http:// or https:// address of a copy, " if row.mirror else ""
    return UserError(
        f"data.name = {name}: could not download from {address} ({said}); check the network, {copy}or {own}; "
        f"if an earlier download is damaged, remove {root}"
    )
