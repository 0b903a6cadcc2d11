"""Prove that `dvc repro` gives the same bytes every time: run it twice from scratch, in different surroundings.

    python src/reproduce.py                   with the params of the commit
    python src/reproduce.py train.epochs=2    with some changed, e.g. to be quicker

Two fresh clones of the commit, each with an empty cache of its own, differ in folder, time zone, locale, umask, hash
seed, order of directories and number of CPUs (and with it of workers). All outs are compared byte for byte, and then
dvc.lock. Takes two runs of the pipeline, and the disk space of two, in the system's temporary folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from reprise.params.load import load_params
from reprise.repo.differences import compare, compare_files
from reprise.runtime.errors import UserError, one_line_errors
from runs import write_params

ROOT = Path(__file__).resolve().parent.parent

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

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.entries)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def close(self):
        pass


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
    """Where and under what settings one of the two runs takes place."""

    folder: str
    time_zone: str
    locale: str
    umask: int
    hash_seed: str
    directories: str
    one_cpu: bool

    def run(self, clone: Path, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in them, with this interpreter's programs first on the path."""
        foreign = ("PYTHON", "LC_", "LANG", "DVC_", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX", "MAKE", "MFLAGS")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "TZ": self.time_zone,
            "LC_ALL": self.locale,
            "LANG": self.locale,
            "PYTHONHASHSEED": self.hash_seed,
            "REPRODUCE_DIRECTORIES": self.directories,
            "TMPDIR": str(clone.parents[self.folder.count("/")]),  # what libraries leave there goes with the clones
            "DVC_SITE_CACHE_DIR": str(clone / ".dvc/tmp/site"),
        }
        return subprocess.run(
            command,
            cwd=clone,
            env=inherited | own,
            umask=self.umask,
            preexec_fn=self._take_one_cpu if self.one_cpu else None,
            text=True,
            **options,
        )

    def __str__(self) -> str:
        """What a person would type to get the same, as far as a shell can."""
        order = f"directories {self.directories}{', one CPU' if self.one_cpu else ''}"
        return (
            f"TZ={self.time_zone} LC_ALL={self.locale} PYTHONHASHSEED={self.hash_seed} umask {self.umask:03o}, {order}"
        )

    def _take_one_cpu(self) -> None:
        if hasattr(os, "sched_setaffinity"):  # not on macOS
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


BOTH = (
    Surroundings("a", "UTC0", "C.UTF-8", 0o022, "0", "forwards", one_cpu=False),
    Surroundings("a longer name/one level deeper", "LINT-14", "C", 0o077, "4242", "backwards", one_cpu=True),
)


def main() -> None:
    """Clone twice, run, compare, print; exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="a parameter of params.yaml and its new value"
    )
    overrides = parser.parse_args().overrides
    refuse_uncommitted(ROOT)
    with TemporaryDirectory(prefix="reproduce-") as temporary:
        clones = [clone_afresh(ROOT, Path(temporary), place, overrides) for place in BOTH]
        print(f"reproduce: two clones that differ in {', '.join(check_surroundings(clones))}", file=sys.stderr)
        for number, (clone, place) in enumerate(zip(clones, BOTH, strict=True), start=1):
            print(f"reproduce: run {number} of 2, in {clone}: {place}", file=sys.stderr)
            if place.run(clone, sys.executable, "-m", "dvc", "repro", stdout=sys.stderr).returncode:
                raise UserError(f"`dvc repro` failed in run {number} of 2, see above; it ran in {place}")
        first = first_difference(*clones)
        if first:
            sys.exit(f"reproduce: the two runs differ, first in {first}")
        print("reproduce: two runs from scratch gave the same bytes in every out and in dvc.lock")
        if not overrides:
            print(f"reproduce: {against_committed(ROOT, clones[0])}")


def refuse_uncommitted(root: Path) -> None:
    """Raise UserError if tracked files have uncommitted changes: the clones would be without them."""
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=root, capture_output=True, text=True
    )
    if status.returncode:
        raise UserError(f"{root}: not a Git repository; `make reproduce` clones the commit that is checked out")
    if changed := [line[3:] for line in status.stdout.splitlines()]:
        files = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise UserError(f"uncommitted changes ({files}): the runs are of the commit; `git commit` or `git stash` first")


def clone_afresh(root: Path, temporary: Path, place: Surroundings, overrides: list[str]) -> Path:
    """Clone the commit, without results; bring the user's own images along; order directories; set params."""
    clone = temporary / place.folder
    clone.mkdir(parents=True)
    place.run(clone, "git", "clone", "--quiet", str(root), ".", check=True)
    for stage in read_stages(clone).values():
        for out in (clone / out["path"] for out in stage.get("outs", [])):
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    (clone / "dvc.lock").unlink(missing_ok=True)
    (clone / ".dvc/config.local").write_text("[cache]\n    dir = cache\n")  # also where a shared one is configured
    path = root / load_params(root / "params.yaml", overrides).data.path
    own = [path] if path.is_file() else sorted(below for below in path.rglob("*") if below.is_file())
    own = [path.relative_to(root) for path in own if path.is_relative_to(root)]  # elsewhere it is there for both
    for path in own if place.directories == "forwards" else reversed(own):
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, clone / path)
    with (clone / ".git/info/exclude").open("a") as exclude:
        exclude.write("/src/sitecustomize.py\n")
    (clone / "src/sitecustomize.py").write_text(DIRECTORY_ORDER)
    if overrides:
        write_params(load_params(root / "params.yaml", overrides), clone / "params.yaml")
    return clone


def check_surroundings(clones: list[Path]) -> list[str]:
    """Return what a stage sees differ between the two runs; RuntimeError if anything is the same that need not be."""
    probes = [
        place.run(clone, "sh", "-c", f"PYTHONPATH=src python -c '{PROBE}'", check=True, stdout=subprocess.PIPE)
        for clone, place in zip(clones, BOTH, strict=True)
    ]
    one, two = (json.loads(probe.stdout) for probe in probes)
    same = {fact for fact in one if one[fact] == two[fact]}
    if same - ({"CPUs"} if one["CPUs"] in (1, None) else set()):
        raise RuntimeError(f"the two surroundings do not differ in {', '.join(sorted(same))}: {one}, {two}")
    return [f"{fact} (not here: there is one)" if fact in same else fact for fact in one]


def first_difference(one: Path, two: Path) -> str | None:
    """Compare all outs, stage by stage, and then dvc.lock; print each; return the first difference."""
    found = []
    for name, stage in read_stages(one).items():
        for out in stage.get("outs", []):
            result = compare(one / out["path"], two / out["path"], out["path"])
            verdict = f"{len(result.differences)} differ" if result.differences else "the same"
            files = f"{result.files:,} file{'' if result.files == 1 else 's'}"
            print(f"{name:<12} {out['path']}: {files}, {result.bytes:,} bytes: {verdict}")
            for path, difference in result.differences:
                print(f"{'':<12} {path}: {difference}")
                found.append(f"stage {name}, {path}: {difference}")
    lock = compare_files(one / "dvc.lock", two / "dvc.lock")
    print(f"{'':<12} dvc.lock: {lock or 'the same'}")
    return next(iter(found), f"dvc.lock: {lock}" if lock else None)


def against_committed(root: Path, clone: Path) -> str:
    """Say whether the outcome is what the commit's dvc.lock records, and if not, in what first."""
    show = subprocess.run(["git", "show", "HEAD:dvc.lock"], cwd=root, capture_output=True)
    if show.returncode:
        return "no dvc.lock is committed to compare with"
    committed, made = yaml.safe_load(show.stdout)["stages"], read_stages(clone)
    for name, stage in made.items():
        for kind in ("cmd", "params", "deps", "outs"):
            before, now = committed.get(name, {}).get(kind), stage.get(kind)
            if before != now:
                paths = [e["path"] for e in now if e not in (before or [])] if kind in ("deps", "outs") else []
                return f"that is NOT what the committed dvc.lock records: stage {name}, {', '.join([kind, *paths[:1]])}"
    return "that is what the committed dvc.lock records, to the last bit"


def read_stages(clone: Path) -> dict[str, Any]:
    """Return the stages of dvc.lock, in the order in which they ran; none without one."""
    lock = clone / "dvc.lock"
    return yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.exists() else {}


if __name__ == "__main__":
    with one_line_errors():
        main()
