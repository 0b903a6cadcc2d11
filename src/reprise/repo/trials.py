"""Trials: the pipeline with other params in a work tree of its own, recorded as an experiment of DVC.

A trial changes nothing in the project's own work tree. DVC's cache, and with it the prepared data and every result, is
shared; so is `runs/`, where a training that was killed finds its checkpoint. An experiment appears whole or not at all.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reprise.params.load import flat, override
from reprise.params.presets import edited
from reprise.repo.project import Project, environment
from reprise.repo.revisions import HISTORY, parse_yaml
from reprise.runtime.atomic import Lock, remove
from reprise.runtime.errors import UserError

TREES = "runs/trees"
COURSE = "metrics/.history.csv.partial"  # the history of a training so far, see `reprise.runtime.atomic`
# DVC, which ends when this process has died: its stage then ends too, with a checkpoint
DVC = (
    "import sys; from reprise.runtime.signals import stop_with_parent; stop_with_parent()\n"
    "from dvc.cli import main; sys.exit(main(sys.argv[1:]))"
)
SHARED = ("runs", "data/own", "data/weights")
STAGES = ("check", "download", "preprocess", "train")  # of a trial that is not evaluated


@dataclass(frozen=True)
class Workspace:
    """A work tree of the project's commit, held by this process alone."""

    project: Project
    tree: Path  # of Git; the project may be a folder in it
    commit: str
    lock: int  # the descriptor that holds it, which DVC inherits

    @property
    def root(self) -> Path:
        """The project's folder in the work tree."""
        return self.tree / self.project.prefix

    def run(self, values: dict[str, Any], log: Path, *targets: str) -> subprocess.Popen[bytes]:
        """Start `dvc repro TARGETS` with some params changed (by dotted name, or nested); return its process.

        What was here before is gone, but for files that Git ignores; a stage that is about to end is waited for. Raises
        UserError if the file of params cannot be edited, or if data.path is another place here; whether the params are
        allowed is the stage `check` to say, in the log.
        """
        (self.root / COURSE).parent.mkdir(exist_ok=True)
        with Lock(self.root / HISTORY):  # which a stage holds that has outlived its DVC
            for lock in self._git_dir.glob("*.lock"):  # of a git that was killed
                remove(lock)
            self._git("reset", "--hard", "--quiet", self.commit)
            self._git("clean", "--force", "-d", "--quiet")
            remove(self.root / COURSE)
        remove(self.root / ".dvc/tmp/rwlock")  # of a DVC that was killed
        for name in SHARED:  # after Git, which puts its placeholders there
            remove(self.root / name)
            (self.root / name).symlink_to(self.project.root / name)
        params = self.root / "params.yaml"
        changes = [f"{key}={json.dumps(value)}" for key, value in flat(values).items()]
        after = edited(params.read_text("utf-8"), partial(override, changes=changes))
        params.write_text(after, encoding="utf-8")
        if path := parse_yaml(after).get("data", {}).get("path"):
            self._link_images(path)
        log.parent.mkdir(parents=True, exist_ok=True)
        own = {**environment(), "PYTHONPATH": str(self.root / "src")}
        command = [sys.executable, "-c", DVC, "repro", *targets]
        with log.open("ab") as file:
            # the session: Ctrl-C is for this process, which then calls `end`
            how = dict[str, Any](stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
            return subprocess.Popen(command, cwd=self.root, env=own, pass_fds=[self.lock], **how)

    def _link_images(self, path: str) -> None:
        """Link to the project's file or folder at data.path, if Git has none of it, or only a part."""
        path = os.path.normpath(path)
        here, own, tree = self.root / path, (self.project.root / path).resolve(), self.tree.resolve()
        place = here.parent.resolve() / here.name
        removable = tree in place.parents and not self.root.resolve().is_relative_to(place)  # never what lies outside
        if here.resolve() == own or not own.exists():
            return
        if removable and (here.is_symlink() or self._is_part(path)):
            remove(here)
        if not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(own)
        elif not removable:
            raise UserError(f"data.path = {path}: from {self.root} it is another place; make data/own a link to it")

    def _is_part(self, path: str) -> bool:
        """Whether the commit has some files of a folder, and the project others that are not in Git, nor here."""
        tracked = self._git("ls-files", "--", path)
        others = tracked and self.project.git("ls-files", "--others", "-z", "--", path, check=False)
        return any(not (self.root / name).exists() for name in others.split("\0"))

    def save(self, name: str, message: str, stages: Sequence[str] = ()) -> str:
        """Record params, dvc.lock and results as the experiment of this name; return its commit.

        stages: those that have run, if not all have. It has no files of the others, which would be the base commit's;
        their entries in dvc.lock stay, since `dvc exp apply` wants them, and are stale.
        """
        entries = parse_yaml((self.root / "dvc.lock").read_text("utf-8"))["stages"]
        left_out = [entry for stage, entry in entries.items() if stages and stage not in stages]
        outs = [out["path"] for entry in left_out for out in entry.get("outs") or []]
        self._git("add", "--all", "--", "params.yaml", "dvc.lock", "metrics", "models")
        if outs:
            self._git("rm", "--cached", "--quiet", "--force", "--ignore-unmatch", "--", *outs)
        tree = self._git("write-tree").strip()
        commit = self._git("commit-tree", tree, "-p", self.commit, "-m", message).strip()
        self.project.git("update-ref", f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{name}", commit)
        return commit

    @property
    def _git_dir(self) -> Path:
        return self.tree / (self.tree / ".git").read_text("utf-8").removeprefix("gitdir: ").removesuffix("\n")

    def _git(self, *arguments: str) -> str:
        """Run git on the work tree, and on nothing else where that is damaged."""
        return Project(self.root).git(f"--git-dir={self._git_dir}", f"--work-tree={self.tree}", *arguments)


def end(process: subprocess.Popen[bytes], most_s: float = 60) -> None:
    """End a DVC and its stage, which keeps a checkpoint, and wait for both; after so many seconds they are killed."""
    with suppress(ProcessLookupError):
        for signum in (signal.SIGTERM, *[0] * int(10 * most_s), signal.SIGKILL):
            os.killpg(process.pid, signum)  # 0: only asks whether there is one
            process.poll()
            time.sleep(0.1 * (process.returncode is None or not signum))
    process.wait()


@contextmanager
def workspace(project: Project, commit: str) -> Iterator[Workspace]:
    """Yield a work tree of a commit below runs/trees that no other process uses, with data and weights in place."""
    folder = project.root / TREES
    folder.mkdir(parents=True, exist_ok=True)
    lock, tree = _free(folder)
    try:
        found = Workspace(project, tree, commit, lock)
        _prepare(found)
        yield found
    finally:
        os.close(lock)


def remove_trees(project: Project) -> None:
    """Remove the work trees that no process holds."""
    for path in (project.root / TREES).glob(".*.lock"):
        with path.open("a") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path.with_suffix(".ready"))
            remove(path.with_name(path.stem[1:]))
    project.git("worktree", "prune")


def _free(folder: Path) -> tuple[int, Path]:
    number = 0
    while True:
        lock = os.open(folder / f".{number}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock, folder / str(number)
        os.close(lock)
        number += 1


def _prepare(found: Workspace) -> None:
    project, tree, root = found.project, found.tree, found.root
    ready = tree.with_name(f".{tree.name}.ready")  # names the commit, once all is there
    if (tree / ".git").is_file() and ready.exists() and ready.read_text() == found.commit:
        return
    ready.unlink(missing_ok=True)
    remove(tree)
    project.git("worktree", "prune")
    project.git("worktree", "add", "--force", "--force", "--quiet", "--detach", str(tree), found.commit)
    local = project.root / ".dvc/config.local"
    if local.exists():
        shutil.copyfile(local, root / ".dvc/config.local")
    inside = Project(root)
    inside.dvc("config", "--local", "cache.dir", str(Path(project.dvc_repo.cache.local.path).parent.parent))
    inside.dvc("config", "--local", "cache.type", "reflink,hardlink,copy")  # prepared data are there once
    inside.dvc("checkout", "--quiet", "--allow-missing")
    ready.write_text(found.commit)
