"""What a project keeps on the disk beside Git, and what of it may go: nothing that a commit or an experiment needs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from reprise.repo.project import Project
from reprise.repo.trials import TREES
from reprise.runtime.atomic import Lock, remove
from reprise.runtime.errors import UserError


class Holding(NamedTuple):
    """One place: its path, its size in bytes, what it is, and how what may go of it is removed; None: all is needed."""

    path: Path
    size: int
    what: str
    remove: Callable[[], object] | None


def holdings(project: Project, checkpoints: bool = False) -> list[Holding]:
    """Return what takes space, first what may go; checkpoints: whether those of stopped trainings may go as well.

    Raises UserError while a training of src/train.py runs.
    """
    root = project.root
    runs = [path for path in (root / "runs").glob("*") if path.is_dir() and not path.is_symlink()]
    for run in runs:
        lock = Lock(run)
        if not lock.acquire(wait=False):
            raise UserError(f"{project.short(run)}: a training is at work there; wait for it, or stop it")
        lock.release()
    cache = Path(project.dvc("cache", "dir").strip())
    own = cache.resolve().is_relative_to(root) and not project.git("stash", "list")
    # every commit's, so that comparisons and reviews with any of them still work
    collect = partial(project.dvc_shown, "gc", "--workspace", "--all-commits", "--all-experiments", "--force")
    may = "outs; those that no commit and no experiment has may go, and what lets `dvc repro` repeat their runs unrun"
    left = "outs, left alone: of other projects too (`dvc gc --projects`), or of what is in `git stash list`"
    of_cache = may if own else left
    stopped = "from which stopped trainings go on" + "; without them they begin anew" * checkpoints
    found = [
        (root / "data/.downloads", "downloads, fetched again when they are needed", True),
        (root / "runs/data", "data prepared for runs, prepared again when they are needed", True),
        (root / "runs/features", "features of frozen backbones, computed again when they are needed", True),
        (root / "runs/checkpoints", stopped, checkpoints),
        (root / TREES, "work trees of sweeps, made again when needed", True),
    ]
    places = [Holding(path, size(path), what, partial(remove, path) if may else None) for path, what, may in found]
    places.append(Holding(cache, size(cache), of_cache, collect if own else None))
    kept = [path for path in sorted(runs) if path.name not in ("data", "checkpoints", "features", "trees")]
    places += [Holding(path, size(path), "yours; `rm -r` removes it", None) for path in kept]
    return sorted((place for place in places if place.size), key=lambda place: place.remove is None)


def size(path: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir() or file.is_symlink())
