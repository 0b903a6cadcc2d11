"""Prove that `dvc repro` gives the same bytes every time: run it twice from scratch, in different surroundings.

Two fresh clones of the commit, each with an empty cache of its own, differ in folder, time zone, locale, umask, hash
seed, order of directories and number of CPUs (and with it of workers). All outs are compared byte for byte, and then
dvc.lock. Takes two runs of the pipeline, and the disk space of two, in the system's temporary folder.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reprise.params.load import load_params
from reprise.repo.differences import difference, differences
from reprise.repo.project import Project, environment
from reprise.repo.revisions import Revision
from reprise.repo.runs import write_params
from reprise.runtime.errors import UserError, say

PREFIX = "reproduce-"

# Python runs this at each start of a stage (src/ is on its path): directories list their names in a fixed order, the
# one clone forwards and the other backwards, whatever the file system does.
DIRECTORY_ORDER = """
import os

backwards = os.environ.get("REPRODUCE_DIRECTORIES") == "backwards"
listdir, scandir = os.listdir, os.scandir


class Entries:
    def __init__(self, path):
        with scandir(path) as entries:
            self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    __iter__ = __enter__ = lambda self: self
    __next__ = lambda self: next(self.entries)
    __exit__ = close = lambda *_: None


os.listdir = lambda path=".": sorted(listdir(path), reverse=backwards)
os.scandir = lambda path=".": Entries(path)
"""

# what a stage sees of its surroundings: the proof that they really differ
PROBE = """
import json, locale, os, time
print(json.dumps({
    "folder": os.getcwd(),
    "time zone": time.localtime(0)[:5],
    "locale": locale.setlocale(locale.LC_ALL, ""),
    "umask": os.umask(0),
    "hash seed": hash("a word"),
    "directory order": [os.listdir()[0], next(os.scandir()).name],
    "CPUs": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
}))
"""


@dataclass(frozen=True)
class Surroundings:
    """The folder and the settings in which one of the two runs takes place."""

    folder: str
    time_zone: str
    locale: str
    umask: int
    hash_seed: str
    directories: str
    one_cpu: bool

    def run(self, clone: Path, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in these surroundings. options: of `subprocess.run`."""
        foreign = ("PYTHON", "LC_", "LANG", "DVC_", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX", "MAKE", "MFLAGS")
        inherited = {key: value for key, value in environment().items() if not key.startswith(foreign)}
        temporary = next(path for path in clone.parents if path.name.startswith(PREFIX))
        one_cpu = self.one_cpu and hasattr(os, "sched_setaffinity")  # not on macOS
        pin = partial(os.sched_setaffinity, 0, {max(os.sched_getaffinity(0))}) if one_cpu else None
        env = inherited | {
            "TZ": self.time_zone,
            "LC_ALL": self.locale,
            "LANG": self.locale,
            "PYTHONHASHSEED": self.hash_seed,
            "REPRODUCE_DIRECTORIES": self.directories,
            "TMPDIR": str(temporary),  # what libraries leave there is removed with the clones
            "DVC_SITE_CACHE_DIR": str(clone / ".dvc/tmp/site"),
        }
        return subprocess.run(command, cwd=clone, env=env, umask=self.umask, preexec_fn=pin, text=True, **options)

    def __str__(self) -> str:
        """As a person would type them, as far as a shell can set them."""
        shell = f"TZ={self.time_zone} LC_ALL={self.locale} PYTHONHASHSEED={self.hash_seed} umask {self.umask:03o}"
        return f"{shell}, directories {self.directories}{', one CPU' if self.one_cpu else ''}"


BOTH = (
    Surroundings("a", "UTC0", "C.UTF-8", 0o022, "0", "forwards", one_cpu=False),
    Surroundings("a longer name/one level deeper", "LINT-14", "C", 0o077, "4242", "backwards", one_cpu=True),
)


def reproduce(project: Project, overrides: list[str]) -> str | None:
    """Run the commit's pipeline twice and print what comes out; return the first difference, None without one.

    Raises UserError if tracked files have uncommitted changes, which the clones would lack, and if a run fails.
    """
    project.refuse_edits("the runs are of the commit")
    with TemporaryDirectory(prefix=PREFIX) as temporary:
        clones = [clone_afresh(project, Path(temporary), place, overrides) for place in BOTH]
        say(f"reproduce: two clones that differ in {', '.join(check_surroundings(clones))}", file=sys.stderr)
        for number, (clone, place) in enumerate(zip(clones, BOTH, strict=True), start=1):
            say(f"reproduce: run {number} of 2, in {clone.root}: {place}", file=sys.stderr)
            if place.run(clone.root, sys.executable, "-m", "dvc", "repro", stdout=sys.stderr).returncode:
                raise UserError(f"`dvc repro` failed in run {number} of 2, see above; it ran in {place}")
        first = first_difference(*clones)
        if first is None:
            say("reproduce: two runs from scratch gave the same bytes in every out and in dvc.lock")
            if not overrides:
                say(f"reproduce: {against_committed(project, clones[0])}")
        return first


def clone_afresh(project: Project, temporary: Path, place: Surroundings, overrides: list[str]) -> Project:
    """Return a clone of the commit without results, with the user's images and weights, ordered directories, params."""
    folder = temporary / place.folder
    folder.mkdir(parents=True)
    place.run(folder, "git", "clone", "--quiet", str(project.top), ".", check=True)
    clone = Project(folder / project.prefix)
    for out in (clone.root / out for out in Revision(clone).locked("outs")):
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    (clone.root / "dvc.lock").unlink(missing_ok=True)
    (clone.root / ".dvc/config.local").write_text("[cache]\n    dir = cache\n")  # also where a shared one is configured
    params = load_params(project.root / "params.yaml", overrides)
    given = project.root / params.data.path, project.root / "data/weights"
    own = sorted(file for path in given for file in (path, *path.rglob("*")) if file.is_file())
    own = [file.relative_to(project.root) for file in own if file.is_relative_to(project.root)]  # both have others
    for path in own if place.directories == "forwards" else reversed(own):
        (clone.root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project.root / path, clone.root / path)
    with clone.git_path("info/exclude").open("a") as exclude:
        exclude.write("sitecustomize.py\n")
    (clone.root / "src/sitecustomize.py").write_text(DIRECTORY_ORDER)
    if overrides:
        write_params(params, clone.root / "params.yaml")
    return clone


def check_surroundings(clones: list[Project]) -> list[str]:
    """Return what a stage sees differ between the two runs. Raises RuntimeError if something else does not differ."""
    probes = [
        place.run(clone.root, "sh", "-c", f"PYTHONPATH=src python -c '{PROBE}'", check=True, stdout=subprocess.PIPE)
        for clone, place in zip(clones, BOTH, strict=True)
    ]
    one, two = (json.loads(probe.stdout) for probe in probes)
    same = {fact for fact in one if one[fact] == two[fact]}
    if same - ({"CPUs"} if one["CPUs"] in (1, None) else set()):
        raise RuntimeError(f"the two surroundings do not differ in {', '.join(sorted(same))}: {one}, {two}")
    return [f"{fact} (not here: there is one)" if fact in same else fact for fact in one]


def first_difference(one: Project, two: Project) -> str | None:
    """Compare all outs, stage by stage, and then dvc.lock; print each; return the first difference."""
    found = []
    for name, stage in Revision(one).stages.items():
        for out in stage.get("outs", []):
            files, size, differing = differences(one.root / out["path"], two.root / out["path"], out["path"])
            verdict = f"{len(differing)} differ" if differing else "the same"
            say(f"{name:<12} {out['path']}: {files:,} file{'s' * (files != 1)}, {size:,} bytes: {verdict}")
            for path, what in differing:
                say(f"{'':<12} {path}: {what}")
                found.append(f"stage {name}, {path}: {what}")
    lock = difference(one.root / "dvc.lock", two.root / "dvc.lock")
    say(f"{'':<12} dvc.lock: {lock or 'the same'}")
    return next(iter(found), f"dvc.lock: {lock}" if lock else None)


def against_committed(project: Project, clone: Project) -> str:
    """Return whether the outcome is what the commit's dvc.lock records and, if not, what differs first; a sentence."""
    committed, made = Revision(project, "HEAD", "HEAD").stages, Revision(clone).stages
    if not committed:
        return "no dvc.lock is committed to compare with"
    for name in made:
        for kind in ("cmd", "params", "deps", "outs"):
            before, now = (stages.get(name, {}).get(kind) for stages in (committed, made))
            if before != now:
                paths = [e["path"] for e in now or [] if e not in (before or [])] if kind in ("deps", "outs") else []
                return f"that is NOT what the committed dvc.lock records: stage {name}, {', '.join([kind, *paths[:1]])}"
    return "that is what the committed dvc.lock records, to the last bit"
