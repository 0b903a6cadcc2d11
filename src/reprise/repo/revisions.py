"""A revision of the pipeline, as Git and DVC hold it: params, lock, metrics, outs. Nothing is checked out for it.

Small files come from Git, outs from DVC's cache by the MD5 in that revision's dvc.lock, and from the remote where the
cache lacks them. The workspace is a revision too; its outs, too, are those that its dvc.lock names.
"""

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from reprise.evaluation.predictions import Predictions, read_predictions
from reprise.params.load import flat
from reprise.repo.cache import cached
from reprise.repo.project import EXPERIMENT, Project
from reprise.runtime.errors import UserError, nearest

WORKSPACE = "workspace"
PREDICTIONS, MODEL, WEIGHTS = "data/predictions.csv", "models/model.json", "models/model.safetensors"
RAW, PROCESSED = "data/raw", "data/processed"
CODE = ("src/", "stages/")
TEST, TRAIN, HISTORY = "metrics/test.json", "metrics/train.json", "metrics/history.csv"


def find_revision(project: Project, name: str) -> "Revision":
    """Return the revision of this name: `workspace`, a branch, tag or commit, or an experiment of DVC.

    Raises UserError for a name that is none of these, an ambiguous one, and a revision without a dvc.lock.
    """
    revision = Revision(project, name, None if name == WORKSPACE else _commit(project, name))
    if not revision.read("dvc.lock"):
        if revision.commit is None:
            raise UserError("the workspace has no dvc.lock: nothing has run yet; `dvc repro` runs the pipeline")
        log = ("log", "--all", "--reverse", "--format=%h", "--diff-filter=A", "--", "dvc.lock")
        first = project.git(*log, check=False).split()[:1]
        since = f"; {first[0]} is the first commit that has one" if first else ""
        raise UserError(
            f"{revision}: has no dvc.lock, so it is from before the pipeline existed, or the pipeline was not run "
            f"there{since}; name a later revision"
        )
    return revision


def workspace(project: Project) -> "Revision":
    """Return the workspace, whether anything has run there or not."""
    return Revision(project, WORKSPACE, None)


def _commit(project: Project, name: str) -> str:
    for candidate in (name, f"origin/{name}"):
        verify = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{candidate}^{{commit}}")
        if commit := project.git(*verify, check=False).split():
            return commit[-1]
    known = experiments(project)
    matching = {run.commit for run in known if run.name == name}
    if len(matching) > 1:
        raise UserError(
            f"{name}: {len(matching)} experiments have this name; name one by its commit: "
            + ", ".join(sorted(str(commit)[:9] for commit in matching))
        )
    if matching:
        return str(matching.pop())
    if project.is_shallow:
        raise UserError(
            f"{name}: no such revision in this clone, which is shallow; fetch the whole history: "
            "`git fetch --unshallow origin '+refs/heads/*:refs/remotes/origin/*'`, in GitHub Actions "
            "`fetch-depth: 0` of actions/checkout"
        )
    branches = project.git("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/remotes", "refs/tags")
    near = nearest(name, [*branches.split(), *(run.name for run in known)])
    hint = f"did you mean {' or '.join(near)}?" if near else "`git branch -a`, `git tag` and `dvc exp list` list them"
    raise UserError(f"{name}: no Git revision and no DVC experiment has this name; {hint}")


def experiments(project: Project) -> list["Revision"]:
    """Return every finished experiment of DVC."""
    refs = project.refs("refs/exps").items()
    return [Revision(project, ref.rpartition("/")[2], commit) for ref, commit in refs if EXPERIMENT.fullmatch(ref)]


@dataclass(frozen=True)
class Revision:
    """One revision: a name as typed, its commit (None: the workspace)."""

    project: Project
    name: str
    commit: str | None

    def __str__(self) -> str:
        """Its name and commit, for a person."""
        if self.commit is None:
            return "the workspace"
        return self.name[:9] if self.commit.startswith(self.name) else f"{self.name} ({self.commit[:9]})"

    def read(self, path: str) -> str:
        """Return a file that Git holds, or that lies in the workspace; nothing if there is none."""
        return self.project.read(path, self.commit)

    def _mapping(self, path: str, load: Callable[[str], Any]) -> dict[str, Any]:
        try:
            found = load(self.read(path) or "{}")
        except (yaml.YAMLError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{self}: {path} cannot be read; `git log -- {path}` shows who changed it")
        return found

    @cached_property
    def params(self) -> dict[str, Any]:
        """params.yaml, dotted."""
        return flat(self._mapping("params.yaml", _yaml))

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages of dvc.lock, in the order in which they ran."""
        return self._mapping("dvc.lock", _yaml).get("stages") or {}

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """What evaluate measured; what is undefined (null) is None, what else is no number in the file is NaN."""
        return self._numbers(TEST)

    @cached_property
    def training(self) -> dict[str, float | None]:
        """What train measured, at the best epoch; what is no number in the file is NaN."""
        return self._numbers(TRAIN)

    def _numbers(self, path: str) -> dict[str, float | None]:
        found = self._mapping(path, json.loads)
        return {name: value if isinstance(value, int | float | None) else math.nan for name, value in found.items()}

    @cached_property
    def history(self) -> dict[str, list[float]]:
        """metrics/history.csv: one list per column; empty where there is none."""
        rows = list(csv.DictReader(io.StringIO(self.read(HISTORY))))
        try:
            return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
        except (TypeError, ValueError):
            return {}

    def locked(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return path: entry of all `deps` or `outs` in dvc.lock."""
        return {entry["path"]: entry for stage in self.stages.values() for entry in stage.get(kind) or []}

    def md5(self, out: str) -> str | None:
        """Return the MD5 of an out, None if dvc.lock has no such out."""
        return self.locked("outs").get(out, {}).get("md5")

    def out(self, path: str) -> Path | None:
        """Return the cache's file of an out, or one in a folder out (`data/raw/images.zip`); None if not to be had."""
        if md5 := self.md5(path):
            return cached(self.project, md5)
        folder, _, name = path.rpartition("/")
        listing = cached(self.project, md5) if (md5 := self.md5(folder)) else None
        entries = json.loads(listing.read_bytes()) if listing else []
        return next((cached(self.project, entry["md5"]) for entry in entries if entry["relpath"] == name), None)

    @cached_property
    def model(self) -> dict[str, Any]:
        """models/model.json, of whatever version; empty where it is not to be had."""
        path = self.out(MODEL)
        return json.loads(path.read_bytes()) if path else {}

    @cached_property
    def predictions(self) -> Predictions:
        """What the model said of each test image. Raises UserError where that is not to be had."""
        if not self.md5(PREDICTIONS):
            raise UserError(f"{self}: its dvc.lock has no {PREDICTIONS}; name a revision that ran evaluate")
        path = self.out(PREDICTIONS)
        if path is None:
            anew = "`dvc repro`" if self.commit is None else f"`git switch --detach {self.commit[:9]} && dvc repro`"
            raise UserError(
                f"{self}: its {PREDICTIONS} is neither in DVC's cache nor in a remote; `dvc push` it where it was "
                f"made, or make it here with {anew}"
            )
        try:
            return read_predictions(path.read_text(encoding="utf-8", errors="surrogateescape"))
        except (ValueError, IndexError):
            raise UserError(f"{self}: {PREDICTIONS} was written by another version; run evaluate again there") from None


def _yaml(text: str) -> Any:
    """Read YAML with libyaml where there is one: it is 10 times faster."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
