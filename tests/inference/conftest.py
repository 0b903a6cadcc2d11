"""A project of JPEGs, half of them on their side by EXIF, after `dvc repro` and a commit with a release's tag."""

import csv

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Workspace, tiny_clone

LYING = {0x0112: 6}  # EXIF: to be turned by 90 degrees


def make(path):
    clone = tiny_clone(path)
    generator = np.random.default_rng(0)
    for number in range(135):
        image = Image.fromarray(generator.integers(0, 256, (5, 4, 3), np.uint8)).resize((40, 50))
        exif = Image.Exif()
        if number % 2:
            image = image.transpose(Image.Transpose.ROTATE_90)
            exif.update(LYING)
        file = clone.path / "data/own" / ("cat", "dog", "=emu")[number % 3] / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        image.save(file, exif=exif)
    clone.set("data.name=folder", "train.epochs=1", "export.enabled=true")
    clone.run("dvc", "repro")
    clone.commit()
    clone.run("git", "tag", "model@v1.0.0")


@pytest.fixture(scope="session")
def project(once):
    return Workspace(once("inference", make), shared=True)


@pytest.fixture(scope="session")
def expected(project):
    """The rows of data/predictions.csv, but for their labels: path below data/own -> class and digits."""
    with (project.path / "data/predictions.csv").open(newline="") as file:
        return {row[0].lstrip("'"): row[2:] for row in list(csv.reader(file))[1:]}
