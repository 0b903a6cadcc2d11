"""The pages on the model at work are true: their blocks run in a project that has the files they name."""

import shutil
import sys
from zipfile import ZipFile

import pytest

from tests.conftest import blocks


@pytest.mark.slow
def test_the_blocks_of_the_pages_run_as_they_stand(project, tmp_path):
    flowers = project.copy(tmp_path / "flowers")
    own = flowers.path / "data/own"
    shutil.copytree(own, flowers.path / "photos")
    shutil.copytree(flowers.path / "models", flowers.path / "runs/latest")
    shutil.copy(own / "cat/0.jpg", flowers.path / "cat.jpg")
    (flowers.path / "list.csv").write_text("filename\ncat.jpg\nphotos/cat/3.jpg\n")
    with ZipFile(flowers.path / "more.zip", "w") as archive:
        archive.write(own / "dog/1.jpg", "dog/1.jpg")
    flowers.run("git", "tag", "model@v1.2.0")
    commands = [line for text in blocks("docs/using.md", "sh") for line in text.splitlines()]
    assert len(commands) == 5
    for command in commands:
        said = flowers.run("sh", "-ec", command.replace("reprise", f"{sys.executable} -m reprise", 1))
        assert "cannot be used" not in said.stderr
    rows = (flowers.path / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(path.is_file() for path in own.rglob("*.jpg")) + 1
    (in_python,) = blocks("docs/using.md", "python")
    assert flowers.run("python", "-c", in_python).stdout.splitlines()[0].split()[0] == "cat.jpg"
    (onnx,) = blocks("docs/export.md", "python")
    assert flowers.run("python", "-c", onnx.replace("1, 32, 32, 1", "1, 32, 32, 3")).stdout.strip() in {
        "cat",
        "dog",
        "=emu",
    }
