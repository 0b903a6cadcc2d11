"""Shared ground of the tests: prepared digits, and temporary clones of this repository with a tiny setting."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("HF_HUB_OFFLINE", None)  # read when the hub's library loads; tests bring a hub of their own

import pytest
from filelock import FileLock

from reprise.data.download.sources import download
from reprise.data.prepare.prepare import preprocess
from reprise.params.load import load_params
from reprise.params.schema import AugmentParams, DataParams, TrainParams

for signum in (signal.SIGHUP, signal.SIGQUIT, signal.SIGINT):  # a job in the background is started to ignore them
    if signal.getsignal(signum) is signal.SIG_IGN:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
PARAMS = ROOT / "src/reprise/params/defaults.yaml"  # whatever the project's own are by now
# what belongs to the project in which the tests run: its data, results, remote; no test looks at it
OWN = re.compile(
    r"params\.yaml|reprise\.json|dvc\.lock|.*\.dvc|\.dvc/config|(data|metrics)/(.*/)?[^/.][^/]*|models/README\.md"
    r"|project/(?!README\.md).*|data/\.gitignore"
)

# a fenced block of a page, and the comment before it that says why no test runs it
BLOCK = re.compile(
    r"(?P<why><!-- not run by a test: \S[^>]+ -->\n+)?^ *```(?P<language>.*)\n(?P<text>(?s:.*?))^ *```$", re.M
)

# Python runs this at each start of a stage.
RECORD_IMPORTS = """
import atexit, os, sys
from pathlib import Path
atexit.register(lambda: Path(os.environ["IMPORTS"], Path(sys.argv[0]).stem).write_text("\\n".join(sys.modules)))
"""

# Two epochs on a tenth of the digits: the whole pipeline in seconds. The default model is tiny already, and its export
# takes longer than all else: see tests/export.
TINY = ["data.test_fraction=0.8", "train.epochs=2", "train.batch_size=16", "export.enabled=false"]


def blocks(page: str, language: str) -> list[str]:
    """Return all blocks of code of a page of this repository in a language, but those that say why no test runs them.

    tests/test_docs.py finds the calls.
    """
    found = [match.groupdict() for match in BLOCK.finditer((ROOT / page).read_text())]
    return [each["text"] for each in found if each["language"] == language and not each["why"]]


def data_params(**changes: Any) -> DataParams:
    """Params of the data, the defaults with these changes; both stages take their part of them."""
    return DataParams(**(load_params(PARAMS).data.model_dump() | changes))


def augmentation(**changes):
    """Params of an augmentation with these changes and no others."""
    still = dict.fromkeys(AugmentParams.model_fields, 0) | {"flip": False, "policy": "none", "own": []}
    return AugmentParams(**(still | changes))


def batch_params(batch_size: int, augment: AugmentParams, seed: int = 0, balance: str = "none") -> TrainParams:
    """Params of a training with such batches."""
    changes = {"batch_size": batch_size, "augment": augment, "seed": seed, "balance": balance}
    return load_params(PARAMS).train.model_copy(update=changes)


@dataclass(frozen=True)
class Workspace:
    """A clone of this repository in a temporary folder, with Git and DVC, running its own code."""

    path: Path
    shared: bool = False  # by many tests at once: what runs in it leaves no bytecode and no fresh index behind

    def environment(self) -> dict[str, str]:
        """Return a user's environment with this interpreter's programs first on the path."""
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.path / "src"),
            "HF_HUB_OFFLINE": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "CUDA_VISIBLE_DEVICES": "",
            "DVC_SITE_CACHE_DIR": str(self.path.parent / "dvc-site-cache"),
        }
        # what the test process set for itself is not what a user's shell has set
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "PYTHON", "MAKE"))}
        own |= {"PYTHONDONTWRITEBYTECODE": "1", "GIT_OPTIONAL_LOCKS": "0"} if self.shared else {}
        return inherited | own

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command there; its output is captured."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment() | environment, capture_output=True, text=True, timeout=300
        )
        if check and done.returncode:
            pytest.fail(
                f"{' '.join(command)} exited with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        return done

    def reprise(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of `reprise` there that loads no torch, without the start of a process."""
        from reprise.cli import main

        with TemporaryFile("w+") as out, TemporaryFile("w+") as err, pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.path)
            for name in ("DVC_SITE_CACHE_DIR", "GIT_CONFIG_GLOBAL"):
                patch.setenv(name, self.environment()[name])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            try:
                code = main(arguments)
            except SystemExit as ended:
                code = int(bool(ended.code))
                print(ended.code, file=err)
            for file in (out, err):
                file.seek(0)
            done = subprocess.CompletedProcess(arguments, code, out.read(), err.read())
        assert not (check and code), done.stdout + done.stderr
        return done

    def set(self, *overrides: str) -> None:
        """Change params.yaml as a person with an editor would: one value, the comments kept."""
        from ruamel.yaml import YAML

        yaml = YAML()
        file = self.path / "params.yaml"
        tree = yaml.load(file)
        for override in overrides:
            key, _, value = override.partition("=")
            *sections, name = key.split(".")
            place = tree
            for section in sections:
                place = place[section]
            place[name] = YAML(typ="safe").load(value)
        yaml.dump(tree, file)

    def commit(self) -> None:
        """Commit everything."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "state")

    def clean(self) -> bool:
        """Say whether Git sees no change."""
        return not self.run("git", "status", "--porcelain").stdout

    def copy(self, path: Path) -> "Workspace":
        """Return an independent copy, DVC cache included."""
        return Workspace(shutil.copytree(self.path, path, symlinks=True))


def fresh_clone(path: Path) -> Workspace:
    """Return a new repository with the files that Git knows, or would add, of this one, all but what is OWN."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not OWN.fullmatch(name):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)
    (path / "metrics").mkdir(exist_ok=True)
    (path / "data/own").mkdir(parents=True, exist_ok=True)
    (path / "data/corrections.csv").write_text("id,sha256,label,by,why\n")
    (path / "data/own/.gitkeep").touch()  # which a project with own images has no longer
    shutil.copy(PARAMS, path / "params.yaml")
    return new_repository(path)


def new_repository(path: Path) -> Workspace:
    """Return a folder as a Git repository with nothing committed."""
    workspace = Workspace(path)
    workspace.run("git", "init", "--quiet", "--initial-branch", "main")
    workspace.run("git", "config", "user.name", "Test")
    workspace.run("git", "config", "user.email", "test@example.invalid")
    return workspace


def tiny_clone(path: Path) -> Workspace:
    """Return a committed clone whose params.yaml is the tiny setting."""
    clone = fresh_clone(path)
    clone.set(*TINY)
    clone.commit()
    return clone


def state_of(folder: Path) -> list[str]:
    """Return path, size and time of change of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [f"{path} {path.lstat().st_size} {path.lstat().st_mtime_ns}" for path in files]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Callable[[Path], object]], Path]]:
    """Call it with a name and a function that fills a folder: the first worker to ask makes it, the others wait.

    Several workers read the folder at once, so nobody may write to it: whoever has is told after its last test.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    used = set()

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name / "clone"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.made").exists():
                make(folder)
                (shared / f"{name}.made").write_text(json.dumps(state_of(folder.parent)))
        used.add(name)
        return folder

    yield make_once
    for name in sorted(used):
        made = json.loads((shared / f"{name}.made").read_text())
        written = set(made) ^ set(state_of(shared / name))
        assert not written, f"a test wrote to a folder that all share: {sorted(written)[:9]}"


@pytest.fixture(scope="session")
def reproduced_once(once: Callable[[str, Callable[[Path], object]], Path]) -> Workspace:
    """A tiny clone after `dvc repro` and a commit; a change needs a copy. imports/STAGE beside it: its modules."""

    def make(path: Path) -> None:
        clone = tiny_clone(path)
        recorder, imports = path / "src/sitecustomize.py", path.with_name("imports")
        recorder.write_text(RECORD_IMPORTS)
        imports.mkdir()
        clone.run("dvc", "repro", IMPORTS=str(imports))
        recorder.unlink()
        clone.commit()

    return Workspace(once("pipeline", make), shared=True)


@pytest.fixture
def reproduced(reproduced_once: Workspace, tmp_path: Path) -> Workspace:
    """A private copy of the reproduced tiny clone."""
    return reproduced_once.copy(tmp_path / "clone")


@pytest.fixture(scope="session")
def digits(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Prepared digits of 32 x 32: about a tenth to train, a tenth to validate, the rest to test."""

    def make(path: Path) -> None:
        path.mkdir()
        params = data_params(test_fraction=0.8)
        download(params, path / "raw", path / "downloads")
        preprocess(path / "raw", path / "processed", params)

    return once("digits", make) / "processed"


@pytest.fixture(autouse=True)
def on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests and what they start on the CPU, except those marked `gpu`, which need one.

    Fixtures of a module or a session come before this; they use the default, `portable`, which is the CPU's.
    """
    import torch  # not above: the process that hands tests to the workers needs no torch

    if request.node.get_closest_marker("gpu"):
        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU here")
        return
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str | None]], None]:
    """Call it with what a launcher of several processes sets in the environment; nothing else is set."""

    def launch(environment: dict[str, str | None]) -> None:
        for name in os.environ:
            if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in (
                "LOCAL_RANK",
                "NODE_RANK",
                "RANK",
                "WORLD_SIZE",
            ):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return launch


@pytest.fixture
def tiny_params():
    """params.yaml with the tiny setting; call it with more overrides."""
    return lambda *overrides: load_params(PARAMS, [*TINY, *overrides])
