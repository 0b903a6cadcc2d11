"""A Git and DVC repository as a crash may have left it: what Git says, who still works there, who holds DVC's locks.

"Still works" is decided by living processes, not by pids in files: a pid is used again, and a killed process that
nobody waited for keeps its own.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from reprise.runtime.errors import UserError


class Owner(NamedTuple):
    """Who has taken a path in a file of DVC's locks."""

    path: str
    pid: int
    command: str


@dataclass(frozen=True)
class Workspace:
    """The root of a repository that Git and DVC share."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> "Workspace":
        """Return the workspace whose root this is; raise UserError if it is none."""
        workspace = cls(root)
        top = workspace.git("rev-parse", "--show-toplevel", check=False).strip()
        if not top or Path(top).resolve() != root.resolve() or not (root / ".dvc").is_dir():
            raise UserError(f"{root}: not the root of a Git and DVC repository; `git clone` makes one")
        return workspace

    @property
    def tmp(self) -> Path:
        """Where DVC keeps locks and scratch."""
        return self.root / ".dvc/tmp"

    @property
    def rwlocks(self) -> list[Path]:
        """The files in which DVC notes who reads and writes which out, and which step of an experiment."""
        return [path for path in (self.tmp / "rwlock", self.tmp / "exps/rwlock") if path.exists()]

    def git(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        """Return what git prints, or nothing if it fails and that does not matter; else raise UserError."""
        return self._run(["git", *arguments], check, stdin)

    def dvc(self, *arguments: str) -> str:
        """Return what dvc prints; raise UserError if it fails."""
        return self._run([sys.executable, "-m", "dvc", *arguments])

    def _run(self, command: list[str], check: bool = True, stdin: str | None = None) -> str:
        done = subprocess.run(
            command, cwd=self.root, capture_output=True, text=True, errors="surrogateescape", input=stdin
        )
        if check and done.returncode:
            raise UserError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        return "" if done.returncode else done.stdout

    def git_path(self, name: str) -> Path:
        """Return where Git keeps a file of its own."""
        return self.root / self.git("rev-parse", "--git-path", name).strip()

    def changed(self, *arguments: str) -> set[str]:
        """Return the paths that `git diff` lists."""
        return set(filter(None, self.git("diff", "--name-only", "-z", *arguments).split("\0")))

    def refs(self, prefix: str) -> dict[str, str]:
        """Return the refs below a prefix, each with its commit."""
        listed = self.git("for-each-ref", "--format=%(refname) %(objectname)", prefix).splitlines()
        return {name: commit for name, _, commit in (line.partition(" ") for line in listed)}

    def short(self, path: Path) -> str:
        """Return a path as a person in the root would type it."""
        return os.path.relpath(path, self.root)


@contextmanager
def at_rest(workspace: Workspace) -> Iterator[None]:
    """Hold DVC's own lock while the block runs. Raises UserError while DVC, or a stage that it began, still works."""
    working = _working(workspace)
    if working:
        raise UserError(f"DVC works here: {'; '.join(working)}. Wait for it, or stop it, and run this again")
    if not workspace.tmp.is_dir():
        yield
        return
    with (workspace.tmp / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("DVC works here: a process holds .dvc/tmp/lock. Wait for it, or stop it") from None
        yield


def owners(path: Path) -> list[Owner] | None:
    """Return who holds what by one of `Workspace.rwlocks`; None if the file is cut off."""
    try:
        content = json.loads(path.read_text())
        held = list(content.get("write", {}).items())
        held += [(name, owner) for name, readers in content.get("read", {}).items() for owner in readers]
        return [Owner(name, int(owner["pid"]), str(owner["cmd"])) for name, owner in held]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def git_at_work(workspace: Workspace) -> list[int]:
    """Return the pids of git's processes in this work tree."""
    return [
        process["pid"]
        for process in _processes()
        if process["cmdline"]
        and Path(process["cmdline"][0]).name == "git"
        and not any("daemon" in word for word in process["cmdline"])
        and _inside(process["cwd"], [workspace.root.resolve()])
    ]


def _working(workspace: Workspace) -> list[str]:
    """Describe the processes of DVC, and of stages that outlived theirs, in this repository and its work trees."""
    listed = workspace.git("worktree", "list", "--porcelain").splitlines()
    roots = [Path(line.removeprefix("worktree ")).resolve() for line in listed if line.startswith("worktree ")]
    noted = {owner.pid for path in workspace.rwlocks for owner in owners(path) or []}
    found = []
    for process in _processes():
        ours = process["pid"] in noted or _inside(process["cwd"], roots)
        is_stage = _inside((process["environ"] or {}).get("DVC_ROOT"), roots)
        if is_stage or (ours and _is_dvc(process["cmdline"] or [])):
            found.append(f"process {process['pid']} ({' '.join(process['cmdline'] or ['?'])[:80]})")
    return found


def _processes() -> Iterator[dict[str, Any]]:
    """Yield the living processes other than this one and those that wait for it."""
    mine = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    for process in psutil.process_iter(["pid", "cmdline", "cwd", "environ", "status"]):
        if process.pid not in mine and process.info["status"] != psutil.STATUS_ZOMBIE:
            yield process.info


def _is_dvc(command: list[str]) -> bool:
    program, *rest = [Path(word).name for word in command[:6]] or [""]
    return program == "dvc" or (program.startswith("python") and "dvc" in rest)


def _inside(path: str | None, roots: list[Path]) -> bool:
    return path is not None and any(Path(path).is_relative_to(root) for root in roots)
