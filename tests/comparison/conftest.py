"""A small repository with Git and DVC whose results are written by hand: any state in milliseconds, and no training."""

import csv
import hashlib
import io
import json
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml

CLASSES = ["ant", "bee", "cat"]


class Project:
    """A repository at a path; `state` writes the results of a pipeline, `commit` commits them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / ".dvc").mkdir(parents=True)
        (path / ".dvc/config").write_text("[core]\n    analytics = false\n")
        (path / ".dvc/.gitignore").write_text("/cache\n/tmp\n/config.local\n")
        self.git("init", "--quiet", "--initial-branch", "main")
        self.git("config", "user.name", "Test")
        self.git("config", "user.email", "test@example.invalid")

    def git(self, *arguments: str) -> str:
        return subprocess.check_output(["git", *arguments], cwd=self.path, stderr=subprocess.DEVNULL, text=True).strip()

    def stored(self, content: bytes, suffix: str = "") -> str:
        """Put a file into DVC's cache; return its MD5."""
        md5 = hashlib.md5(content).hexdigest() + suffix
        path = self.cached(md5)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return md5

    def cached(self, md5: str) -> Path:
        return self.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]

    def state(
        self, said, train=(), classes=CLASSES, params=None, metrics=None, code="1", sure=0.9, content=None,
        torch="2.11", groups=None,
    ):  # fmt: skip
        """Write results. said: {name: (label, predicted)} of the test images; train: names of the training images.

        Names are CLASS/FILE; an image's content is its file's name, or what `content` says. sure: of each prediction.
        groups: the text of data/groups.csv.
        """
        params = {"train": {"seed": 0, "lr": 0.1}, "evaluate": {"calibration_bins": 10}, **(params or {})}
        self.write("params.yaml", yaml.safe_dump(params, sort_keys=False))
        right = sum(label == guess for label, guess in said.values()) / len(said)
        measured = {"accuracy": right, "loss": 0.5, "images": len(said), "parameters": 10, "flops": 40}
        self.write("metrics/test.json", json.dumps(measured | (metrics or {})))
        self.write("metrics/train.json", json.dumps({"epoch": 1, "val_loss": 0.5}))
        self.write("metrics/history.csv", "epoch,train_loss,val_loss\n1,2.0,1.5\n2,1.0,nan\n")
        self.write("src/model.py", code)
        rest = (1 - sure) / max(len(classes) - 1, 1)
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["id", "label", "predicted", *(f"p({name})" for name in classes)])
        for name, (label, guess) in said.items():
            writer.writerow([name, label, guess, *(sure if each == guess else rest for each in classes)])
        tested = {name: label for name, (label, _) in said.items()}
        labels = {"test": tested, "train": {name: name.split("/")[0] for name in train}, "val": {}}
        everything = labels["test"] | labels["train"]
        contents = {name: (content or {}).get(name, name.split("/")[-1]).encode() for name in everything}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, encoded in contents.items():
                archive.writestr(zipfile.ZipInfo(f"unsplit/{name}"), encoded)
        processed = {"metadata.json": json.dumps({"classes": list(classes)}).encode()}
        for split, of in labels.items():
            pixels = [np.full((8, 8, 1), zlib.crc32(contents[name]) % 256, np.uint8) for name in of]
            processed |= {
                f"{split}_ids.json": json.dumps(list(of)).encode(),
                f"{split}_labels.npy": saved(np.array([list(classes).index(label) for label in of.values()], np.int64)),
                f"{split}_images.npy": saved(np.array(pixels, np.uint8).reshape(-1, 8, 8, 1)),
            }
        model = {"provenance": {"threads": 1, "device": "cpu", "packages": {"torch": torch}, "code_sha256": code}}
        outs = [
            self.folder("data/raw", {"images.zip": packed.getvalue()}),
            self.folder("data/processed", processed),
            {"path": "models/model.json", "hash": "md5", "md5": self.stored(json.dumps(model).encode())},
            {"path": "models/model.safetensors", "hash": "md5", "md5": "0" * 32, "size": 1000},
            {"path": "data/predictions.csv", "hash": "md5", "md5": self.stored(table.getvalue().encode())},
        ]
        outs += [{"path": "data/groups.csv", "hash": "md5", "md5": self.stored(groups.encode())}] if groups else []
        deps = [{"path": "src/model.py", "hash": "md5", "md5": hashlib.md5(code.encode()).hexdigest()}]
        stages = {"all": {"cmd": "true", "deps": deps, "params": {"params.yaml": params}, "outs": outs}}
        self.write("dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}))
        stage = {"cmd": "true", "deps": ["src/model.py"], "params": list(params), "outs": [out["path"] for out in outs]}
        self.write("dvc.yaml", yaml.safe_dump({"stages": {"all": stage}}))
        return self

    def folder(self, path, files):
        listing = [{"md5": self.stored(content), "relpath": name} for name, content in sorted(files.items())]
        return {"path": path, "hash": "md5", "md5": self.stored(json.dumps(listing).encode(), ".dir")}

    def write(self, path, content):
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        (self.path / path).write_text(content)

    def commit(self, branch=None):
        """Commit everything, on a new branch if one is named."""
        if branch:
            self.git("checkout", "--quiet", "-b", branch)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", branch or "state")
        return self.git("rev-parse", "HEAD")


def saved(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def answers(right, wrong, label="ant", guess="bee", prefix=""):
    """{name: (label, predicted)}: so many images of a class that are right, and then so many that are wrong."""
    return {f"{label}/{prefix}{number}": (label, label if number < right else guess) for number in range(right + wrong)}


@pytest.fixture
def project(tmp_path):
    """An empty project."""
    return Project(tmp_path / "project")
