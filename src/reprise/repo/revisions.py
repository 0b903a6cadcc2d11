"""A revision of the project, as Git and DVC hold it: params, dvc.lock, metrics, outs. Nothing is checked out.

Small files come from Git; outs come from DVC's cache, by the MD5 in the revision's dvc.lock, or from the remote where
the cache lacks them. The workspace is a revision too, with the outs that its dvc.lock names.
"""

import csv
import hashlib
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
from reprise.repo.project import EXPERIMENT, Project
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError, nearest

WORKSPACE = "workspace"
PREDICTIONS, MODEL, WEIGHTS = "data/predictions.csv", "models/model.json", "models/model.safetensors"
CONFIDENCE = "models/confidence.json"
RAW, PROCESSED, GROUPS = "data/raw", "data/processed", "data/groups.csv"
CODE = ("src/", "stages/", "project")
TEST, TRAIN, HISTORY = "metrics/test.json", "metrics/train.json", "metrics/history.csv"
DATA = "metrics/data.json"


def find_revision(project: Project, name: str) -> "Revision":
    """Return the revision of this name: `workspace`, a branch, tag or commit, or an experiment of DVC.

    Raises UserError for a name that is none of these, an ambiguous one, and a revision without a dvc.lock.
    """
    revision = Revision(project) if name == WORKSPACE else Revision(project, name, _commit(project, name))
    if not revision.read("dvc.lock"):
        if revision.commit is None:
            raise UserError("the workspace has no dvc.lock: nothing has run yet; `dvc repro` runs the pipeline")
        log = ("log", "--all", "--reverse", "--format=%h", "--diff-filter=A", "--", "dvc.lock")
        first = project.git(*log, check=False).split()[:1]
        since = f"; {first[0]} is the first commit that has one" if first else ""
        why = "it is from before the pipeline existed, or the pipeline was not run there"
        raise UserError(f"{revision}: has no dvc.lock: {why}{since}; name a later revision")
    return revision


def _commit(project: Project, name: str) -> str:
    """Return the commit that a name stands for, also that of a branch which only `origin` has."""
    for candidate in (name, f"origin/{name}"):
        verify = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{candidate}^{{commit}}")
        if commit := project.git(*verify, check=False).split():
            return commit[-1]
    known = experiments(project)
    matching = sorted({str(run.commit) for run in known if run.name == name})
    if len(matching) > 1:
        commits = ", ".join(commit[:9] for commit in matching)
        raise UserError(f"{name}: {len(matching)} experiments have this name; name one by its commit: {commits}")
    if matching:
        return matching[0]
    if project.is_shallow:
        fetch = "`git fetch --unshallow origin '+refs/heads/*:refs/remotes/origin/*'`"
        fetch += ", in GitHub Actions `fetch-depth: 0` of actions/checkout"
        raise UserError(f"{name}: no such revision in this clone, which is shallow; fetch the whole history: {fetch}")
    branches = project.git("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/remotes", "refs/tags")
    near = nearest(name, [*branches.split(), *(run.name for run in known)])
    hint = f"did you mean {' or '.join(near)}?" if near else "`git branch -a`, `git tag` and `dvc exp list` list them"
    raise UserError(f"{name}: no Git revision and no DVC experiment has this name; {hint}")


def experiments(project: Project, commit: str = "") -> list["Revision"]:
    """Return the finished experiments of DVC, all or those that began from one commit (its whole id); oldest first."""
    refs = project.refs(f"refs/exps/{commit[:2]}/{commit[2:]}" if commit else "refs/exps").items()
    return [Revision(project, ref.rpartition("/")[2], commit) for ref, commit in refs if EXPERIMENT.fullmatch(ref)]


@dataclass(frozen=True)
class Revision:
    """A revision by its name, as typed, and its commit. Without both, it is the workspace (commit: None)."""

    project: Project
    name: str = WORKSPACE
    commit: str | None = None

    def __str__(self) -> str:
        """Its name and commit, for a person."""
        if self.commit is None:
            return "the workspace"
        return self.name[:9] if self.commit.startswith(self.name) else f"{self.name} ({self.commit[:9]})"

    def read(self, path: str) -> str:
        """Return the text of a file that Git holds, or that lies in the workspace; "" if there is none."""
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
        """The values of params.yaml by dotted name."""
        return flat(self._mapping("params.yaml", parse_yaml))

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages of dvc.lock, in the order in which they ran."""
        return self._mapping("dvc.lock", parse_yaml).get("stages") or {}

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """What the stage evaluate measured; an undefined metric (null) is None, anything else but a number is NaN."""
        return self._numbers(TEST)

    @cached_property
    def training(self) -> dict[str, float | None]:
        """What the stage train measured at the best epoch, with None and NaN as in `metrics`."""
        return self._numbers(TRAIN)

    @property
    def all_metrics(self) -> dict[str, Any]:
        """The metrics by name; those of train.json and data.json begin with `train.` and `data.`."""
        data = flat({"data": self._mapping(DATA, json.loads)})
        return {**data, **{f"train.{name}": value for name, value in self.training.items()}, **self.metrics}

    def _numbers(self, path: str) -> dict[str, float | None]:
        found = self._mapping(path, json.loads)
        return {name: value if isinstance(value, int | float | None) else math.nan for name, value in found.items()}

    @cached_property
    def history(self) -> dict[str, list[float]]:
        """The columns of metrics/history.csv by name, a value per epoch; empty without the file or if it is damaged."""
        rows = list(csv.DictReader(io.StringIO(self.read(HISTORY))))
        try:
            return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
        except (TypeError, ValueError):
            return {}

    def locked(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return {path: entry} of all `deps` or all `outs` in dvc.lock."""
        return {entry["path"]: entry for stage in self.stages.values() for entry in stage.get(kind) or []}

    def md5s(self, kind: str) -> dict[str, str | None]:
        """Return {path: MD5} of all `deps` or all `outs` in dvc.lock."""
        return {path: entry.get("md5") for path, entry in self.locked(kind).items()}

    def md5(self, out: str) -> str | None:
        """Return the MD5 of an out; None if dvc.lock has no such out."""
        return self.md5s("outs").get(out)

    def setting(self, free: str, *made: str) -> str:
        """Return a key that runs share if they differ in nothing but the param `free`: their params, and MD5s of deps.

        Without the model's, and those of the user's images, which data/raw stands for. made: further deps that follow
        from that param.
        """
        left_out = (MODEL, WEIGHTS, CONFIDENCE, self.params.get("data.path"), *made)
        deps = {path: md5 for path, md5 in self.md5s("deps").items() if path not in left_out}
        # as DVC compares: 1 and 1.0 are equal; keys become text before they are sorted
        text = json.dumps([{**self.params, free: None}, deps], default=str)
        return json.dumps(json.loads(text, parse_int=float), sort_keys=True)

    def out(self, path: str) -> Path | None:
        """Return the path in the cache of an out, or of a file in a folder out; None if it is in no cache or remote."""
        if md5 := self.md5(path):
            return self.project.cached(md5)
        folder, _, name = path.rpartition("/")
        listing = self.project.cached(md5) if (md5 := self.md5(folder)) else None
        entries = json.loads(listing.read_bytes()) if listing else []
        return next((self.project.cached(entry["md5"]) for entry in entries if entry["relpath"] == name), None)

    @cached_property
    def model(self) -> dict[str, Any]:
        """The content of models/model.json, of whatever version; empty where it is in no cache or remote."""
        path = self.out(MODEL)
        return json.loads(path.read_bytes()) if path else {}

    @property
    def evaluated(self) -> bool:
        """Whether the predictions that dvc.lock names, if it does, are those of its model."""
        made = [each for each in self.stages.values() if PREDICTIONS in {out["path"] for out in each.get("outs") or []}]
        used = [dep["md5"] for stage in made for dep in stage.get("deps") or [] if dep["path"] == WEIGHTS]
        return used in ([], [self.md5(WEIGHTS)])

    @cached_property
    def predictions(self) -> Predictions:
        """What the model predicted for each test image. Raises UserError where that is in no cache or remote."""
        if not self.md5(PREDICTIONS):
            raise UserError(f"{self}: its dvc.lock has no {PREDICTIONS}; name a revision that ran evaluate")
        if not self.evaluated:
            way_out = f"`dvc exp apply {self.name}`, then `dvc repro`" if self.commit else "`dvc repro`"
            raise UserError(f"{self}: its {PREDICTIONS} are another model's: evaluate has not run there; {way_out}")
        path = self.out(PREDICTIONS)
        if path is None:
            anew = "`dvc repro`" if self.commit is None else f"`git switch --detach {self.commit[:9]} && dvc repro`"
            way_out = f"`dvc push` it where it was made, or make it here with {anew}"
            raise UserError(f"{self}: its {PREDICTIONS} is neither in DVC's cache nor in a remote; {way_out}")
        try:
            return read_predictions(path.read_text(encoding="utf-8", errors="surrogateescape"))
        except (ValueError, IndexError):
            raise UserError(f"{self}: {PREDICTIONS} was written by another version; run evaluate again there") from None


def parse_yaml(text: str) -> Any:
    """Read YAML with libyaml where there is one: it is 10 times faster."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def restore_outs(project: Project) -> list[str]:
    """Bring back the outs that dvc.lock names and a failed stage has lost, from DVC's cache or the last commit.

    Returns their paths.
    """
    outs = Revision(project).md5s("outs")
    gone = [path for path in outs if not (project.root / path).exists()]
    if gone:
        project.dvc_shown("checkout", "--quiet", "--allow-missing")
    for path in gone:
        place, stored, text = project.root / path, project.cache_path(str(outs[path])), project.read(path, "HEAD")
        content = stored.read_bytes() if stored.is_file() else text.encode("utf-8", "surrogateescape")
        if not place.exists() and hashlib.md5(content).hexdigest() == outs[path]:
            with publishing(place) as (partial,):
                partial.write_bytes(content)
    return [path for path in gone if (project.root / path).exists()]
