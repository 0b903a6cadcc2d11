"""A revision of the pipeline, as Git and DVC hold it: params, lock, metrics, outs. Nothing is checked out for it.

Small files come from Git, outs from DVC's cache by the MD5 in that revision's dvc.lock, and from the remote where the
cache lacks them. The workspace is a revision too; its outs, too, are those that its dvc.lock names.
"""

import csv
import difflib
import hashlib
import io
import json
import math
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from reprise.params.load import flat
from reprise.runtime.checksums import listing_md5
from reprise.runtime.errors import UserError

WORKSPACE = "workspace"
PREDICTIONS, MODEL, WEIGHTS = "data/predictions.csv", "models/model.json", "models/model.safetensors"
RAW, PROCESSED = "data/raw", "data/processed"
CODE = ("src/", "stages/")
TEST, TRAIN, HISTORY = "metrics/test.json", "metrics/train.json", "metrics/history.csv"


@dataclass(frozen=True)
class Predictions:
    """What a model said of each test image: ids (N), labels and predicted (N,) by name, probabilities (N, classes)."""

    classes: list[str]
    ids: list[str]
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray


class Repository:
    """The Git and DVC repository at a root; DVC itself is loaded only when its cache is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not (root / ".dvc").is_dir() or self.git("rev-parse", "--git-dir") is None:
            raise UserError(f"{root}: not the root of a Git and DVC repository; `git clone` makes one")

    def git(self, *arguments: str) -> bytes | None:
        """Return what git prints, None where it fails."""
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True)
        return None if done.returncode else done.stdout

    def lines(self, *arguments: str) -> list[str]:
        """Return the lines that git prints, none where it fails."""
        return (self.git(*arguments) or b"").decode("utf-8", "surrogateescape").splitlines()

    @cached_property
    def dvc(self) -> Any:
        """DVC's own view of it."""
        from dvc.repo import Repo

        return Repo(str(self.root))

    def revision(self, name: str) -> "Revision":
        """Return the revision of this name: `workspace`, a branch, tag or commit, or an experiment of DVC.

        Raises UserError for a name that is none of these, an ambiguous one, and a revision without a dvc.lock.
        """
        revision = Revision(self, name, None if name == WORKSPACE else self._commit(name))
        if revision.read("dvc.lock") is None:
            if revision.commit is None:
                raise UserError("the workspace has no dvc.lock: nothing has run yet; `dvc repro` runs the pipeline")
            first = self.lines("log", "--all", "--reverse", "--format=%h", "--diff-filter=A", "--", "dvc.lock")[:1]
            since = f"; {first[0]} is the first commit that has one" if first else ""
            raise UserError(
                f"{revision}: has no dvc.lock, so it is from before the pipeline existed, or the pipeline was not run "
                f"there{since}; name a later revision"
            )
        return revision

    def _commit(self, name: str) -> str:
        for candidate in (name, f"origin/{name}"):
            if commit := self.lines("rev-parse", "--verify", "--quiet", "--end-of-options", f"{candidate}^{{commit}}"):
                return commit[-1]
        experiments = {ref.rpartition("/")[2]: commit for commit, ref in self._experiments()}
        matching = {commit for commit, ref in self._experiments() if ref.endswith(f"/{name}")}
        if len(matching) > 1:
            raise UserError(
                f"{name}: {len(matching)} experiments have this name; name one by its commit: "
                + ", ".join(sorted(commit[:9] for commit in matching))
            )
        if matching:
            return matching.pop()
        if self.lines("rev-parse", "--is-shallow-repository") == ["true"]:
            raise UserError(
                f"{name}: no such revision in this clone, which is shallow; fetch the whole history: "
                "`git fetch --unshallow origin '+refs/heads/*:refs/remotes/origin/*'`, in GitHub Actions "
                "`fetch-depth: 0` of actions/checkout"
            )
        branches = self.lines("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/remotes", "refs/tags")
        near = difflib.get_close_matches(name, [*branches, *experiments], n=3)
        listing = "`git branch -a`, `git tag` and `dvc exp list` list them"
        hint = f"did you mean {' or '.join(near)}?" if near else listing
        raise UserError(f"{name}: no Git revision and no DVC experiment has this name; {hint}")

    def _experiments(self) -> list[tuple[str, str]]:
        """Return (commit, reference) of each finished experiment."""
        lines = self.lines("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps")
        found = (line.split(" ", 1) for line in lines)
        return [(commit, ref) for commit, ref in found if ref.split("/")[2] not in ("exec", "stash", "celery")]

    def experiments(self) -> list["Revision"]:
        """Return every finished experiment of DVC."""
        return [Revision(self, ref.rpartition("/")[2], commit) for commit, ref in self._experiments()]

    def cached(self, md5: str) -> Path | None:
        """Return the cache's file with this MD5, fetched from the remote if need be; None if neither has it.

        Raises UserError if the cache's file is not what its name says.
        """
        path = Path(self.dvc.cache.local.oid_to_path(md5))
        if not path.exists():
            self._fetch(md5)
        if not path.exists():
            return None
        with path.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() != md5.removesuffix(".dir"):
                raise UserError(f"{path}: altered since DVC stored it; remove it, then `dvc pull` or `dvc repro`")
        return path

    def _fetch(self, md5: str) -> None:
        """Copy one file from the default remote into the cache, if there is such a remote and it has the file."""
        from dvc.exceptions import DvcException

        try:
            remote = self.dvc.cloud.get_remote_odb(None, "fetch")
        except DvcException:  # none is configured
            return
        except ImportError as error:  # "s3 is supported, but requires 'dvc-s3' to be installed"
            raise UserError(f"the DVC remote cannot be read: {error}; `pip install` it") from None
        with TemporaryDirectory(prefix="compare-") as folder:
            copy = Path(folder) / "copy"
            try:
                remote.fs.get_file(remote.oid_to_path(md5), str(copy))
            except (FileNotFoundError, DvcException):
                return
            except Exception as error:  # each kind of remote has its own
                reason = " ".join(str(error).split())
                raise UserError(f"the DVC remote cannot be read ({reason}); see `dvc remote list`") from None
            target = Path(self.dvc.cache.local.oid_to_path(md5))
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            shutil.copyfile(copy, partial)
            partial.chmod(0o444)
            partial.replace(target)


@dataclass(frozen=True)
class Revision:
    """One revision: a name as typed, its commit (None: the workspace)."""

    repository: Repository
    name: str
    commit: str | None

    def __str__(self) -> str:
        """Its name and commit, for a person."""
        if self.commit is None:
            return "the workspace"
        return self.name[:9] if self.commit.startswith(self.name) else f"{self.name} ({self.commit[:9]})"

    def read(self, path: str) -> bytes | None:
        """Return a file that Git holds, or that lies in the workspace; None if there is none."""
        if self.commit is not None:
            return self.repository.git("show", f"{self.commit}:{path}")
        with suppress(FileNotFoundError, NotADirectoryError):
            return (self.repository.root / path).read_bytes()
        return None

    def _mapping(self, path: str, load: Any) -> dict[str, Any]:
        try:
            found = load(self.read(path) or b"{}")
        except (yaml.YAMLError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{self}: {path} cannot be read; `git log -- {path}` shows who changed it")
        return found

    @cached_property
    def params(self) -> dict[str, Any]:
        """params.yaml, dotted."""
        return flat(self._mapping("params.yaml", yaml.safe_load))

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages of dvc.lock."""
        return self._mapping("dvc.lock", _yaml_fast).get("stages") or {}

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
        rows = list(csv.DictReader(io.StringIO((self.read(HISTORY) or b"").decode("utf-8", "replace"))))
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
            return self.repository.cached(md5)
        folder, _, name = path.rpartition("/")
        listing = self.repository.cached(md5) if (md5 := self.md5(folder)) else None
        entries = json.loads(listing.read_bytes()) if listing else []
        return next((self.repository.cached(entry["md5"]) for entry in entries if entry["relpath"] == name), None)

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
        return _parse_predictions(path.read_text(encoding="utf-8", errors="surrogateescape"), str(self))

    def uncommitted(self) -> list[str]:
        """Return the workspace's files that differ from the last commit; none for a commit."""
        if self.commit is not None:
            return []
        return [line[3:] for line in self.repository.lines("status", "--porcelain", "--untracked-files=no")]

    def stale(self) -> list[str]:
        """Return the params and source files that are others than those dvc.lock was written with."""
        changed = []
        for stage in self.stages.values():
            recorded = flat((stage.get("params") or {}).get("params.yaml") or {})
            changed += [name for name, value in recorded.items() if name in self.params and self.params[name] != value]
        sources = {path: entry["md5"] for path, entry in self.locked("deps").items() if path.startswith(CODE)}
        blobs = self._blobs(self._code())
        for path, md5 in sources.items():
            inside = {
                name.removeprefix(f"{path}/"): blob for name, blob in blobs.items() if name.startswith(f"{path}/")
            }
            if md5 != (blobs.get(path) or listing_md5(inside)):
                changed.append(path)
        return sorted(set(changed))

    def _code(self) -> list[str]:
        """Return the paths of the scripts and the library."""
        if self.commit is None:
            listed = ("ls-files", "--cached", "--others", "--exclude-standard")
            return self.repository.lines(*listed, "--", *CODE)
        return self.repository.lines("ls-tree", "-r", "--name-only", self.commit, "--", *CODE)

    def _blobs(self, paths: list[str]) -> dict[str, str]:
        """Return the MD5 of each of these files that there is."""
        if self.commit is None:
            contents = {path: self.read(path) for path in paths}
            return {path: hashlib.md5(content).hexdigest() for path, content in contents.items() if content is not None}
        asked = "".join(f"{self.commit}:{path}\n" for path in paths).encode()
        command = ["git", "cat-file", "--batch"]
        stream = io.BytesIO(
            subprocess.run(command, cwd=self.repository.root, input=asked, capture_output=True, check=True).stdout
        )
        found = {}
        for path in paths:
            header = stream.readline().split()
            if header[-1] != b"missing":
                found[path] = hashlib.md5(stream.read(int(header[2]))).hexdigest()
                stream.read(1)
        return found


def _yaml_fast(content: bytes) -> Any:
    """Read dvc.lock with libyaml where there is one: it is 10 times faster."""
    return yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _parse_predictions(content: str, whose: str) -> Predictions:
    header, *rows = csv.reader(io.StringIO(content, newline=""))
    classes = [name[2:-1] for name in header[3:]]
    try:
        probabilities = np.array([row[3:] for row in rows], dtype=np.float64).reshape(len(rows), len(classes))
        ids, labels, predicted = (([row[column] for row in rows]) for column in range(3))
    except (ValueError, IndexError):
        raise UserError(f"{whose}: {PREDICTIONS} was written by another version; run evaluate again there") from None
    if header[:3] != ["id", "label", "predicted"] or not rows or len(set(ids)) < len(ids):
        raise UserError(f"{whose}: {PREDICTIONS} was written by another version; run evaluate again there")
    return Predictions(classes, ids, np.array(labels, dtype=object), np.array(predicted, dtype=object), probabilities)
