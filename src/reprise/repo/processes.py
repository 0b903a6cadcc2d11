"""Which processes work in a project's repository, and which hold DVC's locks, as a crash may have left them.

Whether one still works is decided by the living processes, not by pids in files: a pid is used again, and a killed
process that nobody has waited for keeps its own.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from reprise.repo.project import Project
from reprise.runtime.errors import UserError


class Owner(NamedTuple):
    """The process that has taken a path, by a file of DVC's locks."""

    path: str
    pid: int
    command: str


def scratch(project: Project) -> Path:
    """Return the folder of DVC's locks and temporary files."""
    return project.root / ".dvc/tmp"


def rwlocks(project: Project) -> list[Path]:
    """Return the files in which DVC notes who reads and writes which out, and which step of an experiment."""
    return [path for path in (scratch(project) / "rwlock", scratch(project) / "exps/rwlock") if path.exists()]


@contextmanager
def at_rest(project: Project) -> Iterator[None]:
    """Hold DVC's own lock while the block runs. Raises UserError while DVC, or a stage that it began, still works."""
    if working := _working(project):
        raise UserError(f"DVC works here: {'; '.join(working)}. Wait for it, or stop it, and run this again")
    if not scratch(project).is_dir():
        yield
        return
    with (scratch(project) / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("DVC works here: a process holds .dvc/tmp/lock. Wait for it, or stop it") from None
        yield


def owners(path: Path) -> list[Owner] | None:
    """Return the owners that one of `rwlocks` lists; None if the file is cut off."""
    try:
        content = json.loads(path.read_text())
        held = [*content.get("write", {}).items()]
        held += [(name, owner) for name, readers in content.get("read", {}).items() for owner in readers]
        return [Owner(name, int(owner["pid"]), str(owner["cmd"])) for name, owner in held]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def git_at_work(project: Project) -> list[int]:
    """Return the pids of git's processes in this repository's work trees, or in a folder that is not shown to us."""
    roots = _work_trees(project)
    here = [process for process in _processes() if process["cwd"] is None or _inside(process["cwd"], roots)]
    commands = {process["pid"]: [*(process["cmdline"] or []), "", ""] for process in here}
    return [pid for pid, (name, what, *_) in commands.items() if Path(name).name == "git" and "daemon" not in what]


def _working(project: Project) -> list[str]:
    """Describe the processes of DVC, and of stages that outlived theirs, in this repository and its work trees.

    This one and those that wait for it do not count.
    """
    roots = _work_trees(project)
    mine = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    noted = {owner.pid: path.stat().st_mtime for path in rwlocks(project) for owner in owners(path) or []}
    found = []
    for process in _processes():
        pid, command = process["pid"], process["cmdline"] or ["?"]
        program, *words = [Path(word).name for word in command[:6]]
        is_dvc = program == "dvc" or (program.startswith("python") and "dvc" in words)
        is_stage = _inside((process["environ"] or {}).get("DVC_ROOT"), roots)
        is_owner = process["create_time"] <= noted.get(pid, 0)  # a younger one has the pid anew
        if pid not in mine and (is_stage or is_owner or (is_dvc and _inside(process["cwd"], roots))):
            found.append(f"process {pid} ({' '.join(command)[:80]})")
    return found


def _work_trees(project: Project) -> list[Path]:
    listed = project.git("worktree", "list", "--porcelain").splitlines()
    trees = [Path(line.removeprefix("worktree ")).resolve() for line in listed if line.startswith("worktree ")]
    return [*trees, project.top]  # of a submodule, Git lists another folder


def _processes() -> list[dict[str, Any]]:
    """Return the living processes."""
    wanted = ["pid", "cmdline", "cwd", "environ", "status", "create_time"]
    return [each.info for each in psutil.process_iter(wanted) if each.info["status"] != psutil.STATUS_ZOMBIE]


def _inside(path: str | None, roots: list[Path]) -> bool:
    return path is not None and any(Path(path).is_relative_to(root) for root in roots)
