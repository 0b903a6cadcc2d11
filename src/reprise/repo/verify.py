"""Whether the bytes in the workspace and in DVC's cache are the ones that dvc.lock records.

DVC trusts a corrupted cache file, and takes a file for unchanged as long as its time and size are. Here every byte is
read and hashed anew: the deps and outs of the stages, the files in folders one by one, and the cache's files of outs.
"""

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import Stage
from dvc.utils import dict_sha256
from dvc.utils.serialize import load_yaml

from reprise.params.dependencies import load_record, record_path
from reprise.params.load import load_params
from reprise.repo.project import Project
from reprise.repo.revisions import CODE
from reprise.runtime.checksums import listing_md5, md5_listing
from reprise.runtime.errors import UserError, reason

COMMITS = 10  # newest commits of a folder of code, among which the recorded state is looked for
UNKNOWN = " (which file: unknown, the cache has no intact list of them)"


T = TypeVar("T")


class Mismatch(NamedTuple):
    """One thing that is not as dvc.lock records it."""

    path: str
    stage: str
    what: str


def verify(project: Project) -> "Verification":
    """Hash everything anew that dvc.lock refers to. Raises UserError without it, or if it or dvc.yaml is unreadable."""
    return _with_dvc(project, Verification.run)


def stale(project: Project) -> list[Mismatch]:
    """Return why `dvc repro` would run a stage that dvc.lock records as done; [] if dvc.lock is fresh.

    Needs no data: an out that is in DVC's cache or remote may be missing here, not the others, which Git holds.
    (`dvc repro --dry --allow-missing` is no such check: it succeeds either way.) Raises UserError as `verify` does.
    """
    return _with_dvc(project, Verification.stale)


def stale_code(project: Project, commit: str | None = None) -> dict[str, list[str]]:
    """Return by stage the code, params and commands that have changed since it ran, in the workspace or at a commit.

    Needs no data, and takes DVC's word: a file of unchanged time and size is not hashed. Raises UserError as `verify`.
    """
    return _with_dvc(project, Verification.stale_code, commit)


def _with_dvc(project: Project, work: Callable[["Verification"], T], commit: str | None = None) -> T:
    if not project.read("dvc.lock", commit):
        raise UserError("dvc.lock: no such file; `dvc repro` writes it, `git checkout HEAD -- dvc.lock` brings it back")
    try:
        with Repo(str(project.root)) as repo, repo.switch(commit or "workspace"):
            return work(Verification(project, repo))
    except DvcException as error:
        edits = "`git diff HEAD -- dvc.yaml dvc.lock params.yaml` shows what was edited"
        raise UserError(f"{reason(error)}; {edits}") from None


class Verification:
    """What was hashed, {path: MD5} and bytes; what differs; and the commands that put it right, in their order."""

    def __init__(self, project: Project, repo: Repo) -> None:
        self.project, self.repo = project, repo
        self.hashes: dict[Path, str] = {}
        self.bytes = 0
        self.mismatches: list[Mismatch] = []
        self.checkouts: list[str] = []
        self.steps: tuple[list[str], ...] = ([], [], [], [])  # clear the cache, restore files, refill the cache, repro
        stages = repo.index.stages
        self.stages = [(self._relative(stage.path) if stage.is_data_source else stage.name, stage) for stage in stages]
        self.made = {out.fs_path: out for stage in stages for out in stage.outs}

    @property
    def repairs(self) -> list[str]:
        """The commands, each once."""
        clear, restore, refill, repro = self.steps
        outs = " ".join(self.checkouts)
        checkout = [f"rm -rf {outs} && dvc checkout {outs}"] if outs else []
        return list(dict.fromkeys([*clear, *checkout, *restore, *refill, *repro]))

    def run(self) -> Self:
        """Check deps, outs and cache."""
        for name, stage in self.stages:
            current = self._is_current(name, stage)
            refills = {self._check_out(name, stage, out) for out in stage.outs} - {None}
            if refills == {"pull"}:
                self.steps[2].append(f"dvc pull {name}")
            elif refills:  # `dvc commit` would record changed inputs or a bad out as good
                by = "dvc commit --force" if current and refills == {"commit"} else "dvc repro --force --single-item"
                self.steps[2].append(f"{by} {shlex.quote(name)}")
        self._check_runs()
        return self

    def stale(self) -> list[Mismatch]:
        """Check deps and outs; see the function `stale`."""
        for name, stage in self.stages:
            if not any(out.hash_info.value for out in stage.outs):
                self._find("dvc.lock", name, "not recorded: the stage has not run yet")
                continue
            if not stage.is_data_source:
                self._is_current(name, stage)
            for out in stage.outs:
                if out.hash_info.value is None:
                    self._find(out.def_path, name, "added since dvc.lock was written")
                elif Path(out.fs_path).exists() or not out.use_cache:
                    for file, state in self._changed_files(out):
                        self._find(file, name, f"{state}, not what dvc.lock records")
        return self.mismatches

    def stale_code(self) -> dict[str, list[str]]:
        """Check code, params and commands; see the function `stale_code`."""
        found = {}
        for name, stage in self.stages:
            code = [dep.def_path for dep in stage.deps if dep.def_path.startswith(CODE) and dep.status()]
            found[name] = [path for path, _ in self._changed_params(stage)] + code
        return {name: changed for name, changed in found.items() if changed}

    def _changed_params(self, stage: Stage) -> list[tuple[str, str]]:
        """Return (what, how) of the command and the params that have changed since the stage ran."""
        changed = [("dvc.yaml", "command modified")] if getattr(stage, "cmd_changed", False) else []
        for dep in (dep for dep in stage.deps if isinstance(dep, ParamsDependency)):
            for states in dep.status().values():
                values = states if isinstance(states, dict) else {"": states}
                changed += [(f"{dep.def_path} {key}".strip(), state) for key, state in values.items()]
        return changed

    def _is_current(self, name: str, stage: Stage) -> bool:
        """Name what has changed since the stage ran, or else while it ran; return whether nothing has."""
        changed = self._changed_params(stage)
        for dep in (dep for dep in stage.deps if not isinstance(dep, ParamsDependency)):
            if dep.hash_info.value is None:
                changed.append((dep.def_path, "added"))
            elif dep.fs_path not in self.made:
                changed += self._changed_files(dep)
            elif self.made[dep.fs_path].hash_info.value != dep.hash_info.value:
                changed.append((dep.def_path, "made anew"))
        for path, what in changed:
            self._find(path, name, f"{what.removesuffix(UNKNOWN)} since dvc.lock was written")
            self.steps[3].append("dvc repro")
        if changed or stage.is_data_source:
            return not changed
        for what in (other := self._changed_meanwhile(name, stage)):
            self._find(what, name, "not what its outs were made with")
            self.steps[3].append(f"dvc repro --force --single-item {shlex.quote(name)}; dvc repro")
        return not other

    def _changed_meanwhile(self, name: str, stage: Stage) -> list[str]:
        """Return what is other in dvc.lock, and so here, than in the record that the stage has made of its run.

        DVC hashes deps and params after a command: an edit that came meanwhile stands in dvc.lock, and is not in the
        outs. A record that is neither here nor in the cache has no say.
        """
        out = next((out for out in stage.outs if self._relative(out.fs_path) == record_path(name)), None)
        oid = out.hash_info.value if out else None
        places = [Path(out.fs_path), Path(out.cache.oid_to_path(oid))] if out and oid else []
        found = next((place for place in places if self._state(place, str(oid)) is None), None)
        if found is None:
            return []
        try:
            record = load_record(found)
        except ValueError:  # recorded by `dvc commit` after it was altered
            record = None
        if record is None:
            return [record_path(name)]
        root, made = self.project.root, [out for out in self.made.values() if not out.stage.is_data_source]
        inputs = {out.def_path: out.hash_info.value for out in made}
        for path in record.inputs.keys() - inputs:  # the user's, of which DVC ignores other files
            if (root / path).exists():
                inputs[path] = listing_md5(md5_listing(root / path))
        return record.differences(root, name, load_params(root / "params.yaml"), inputs)

    def _check_out(self, name: str, stage: Stage, out: Output) -> str | None:
        """Compare one out with its record, here and in the cache; return how the cache is refilled, None if it is not.

        "commit": from the file here; "pull": from the remote; "repro": by the stage.
        """
        quoted = shlex.quote(self._relative(out.fs_path))
        if out.hash_info.value is None:
            self._find(out.def_path, name, "not recorded in dvc.lock: the stage has not run yet")
            self.steps[3].append("dvc repro")
            return None
        here = self._changed_files(out)
        files = self._recorded(out) or ({} if here else self._listing(Path(out.fs_path)))
        cached = self._bad_objects(out.cache, self._relative(out.fs_path), out.hash_info.value, files)
        if not out.use_cache:  # the cache may have a copy, from which DVC repeats a known run
            cached = [each for each in cached if each[-1] != "missing"]
        if [state for _, state in here] == ["missing"] and cached and {state for *_, state in cached} == {"missing"}:
            self._find(here[0][0], name, "missing here and in the cache: not pulled or not reproduced yet")
            self.steps[3].append("make repro  # or `dvc pull`, from a remote that has them")
            return None
        for path, state in here:
            self._find(path, name, state)
        for path, stored, state in cached:
            self._find(path, name, f"{state} in the cache, {stored}")
            if state != "missing":
                self.steps[0].append(f"rm -f {shlex.quote(stored)}")
        if cached and out.use_cache:
            return "commit" if not here else "pull" if stage.is_data_source else "repro"
        if here and stage.is_data_source:
            self.steps[1].append(f"dvc add {quoted}  # if the change is meant; `dvc checkout {quoted}` undoes it")
        elif here and out.use_cache:
            self.checkouts.append(quoted)
        elif here and self._in_head(out):
            self.steps[1].append(f"rm -f {quoted} && git checkout HEAD -- {quoted}")  # Git may take it for unchanged
        elif here:
            return "repro"
        return None

    def _in_head(self, out: Output) -> bool:
        """Return whether the last commit has a file as it is recorded."""
        exists = self.project.git("ls-tree", "HEAD", "--", out.def_path, check=False)
        return bool(exists) and _md5_of(self.project.read(out.def_path, "HEAD")) == out.hash_info.value

    def _check_runs(self) -> None:
        """Check the runs that DVC would repeat from its cache, by the digests in their names, and their outs."""
        cache = self.repo.cache.local
        for path in sorted(Path(self.repo.stage_cache.cache_dir).glob("*/*/*")):
            place = self._relative(path)
            try:
                self._md5(path)
                run = load_yaml(path)
                if dict_sha256(run, exclude=["size", "nfiles"]) != path.name:
                    raise ValueError
                outs = [(out["path"], out["md5"], self._cached_listing(cache, out["md5"]) or {}) for out in run["outs"]]
                bad = [each for out in outs for each in self._bad_objects(cache, *out)]
            except (DvcException, OSError, ValueError, TypeError, KeyError):
                bad = [(place, place, "altered")]
            for name, stored, state in bad:  # one that is missing is no harm
                if state != "missing" and not any(stored in found.what for found in self.mismatches):
                    self._find(name, "of an earlier run", f"{state} in the cache, {stored}")
                    self.steps[0].append(f"rm -f {shlex.quote(stored)}")

    def _changed_files(self, item: Output) -> list[tuple[str, str]]:
        """Return (path, what is wrong) for each file of a dep or an out; of a folder as a whole without its listing."""
        path, name = Path(item.fs_path), self._relative(item.fs_path)
        if not path.exists():
            return [(name, "missing")]
        if path.is_dir() != item.hash_info.isdir:
            return [(name, "a folder, not a file" if path.is_dir() else "a file, not a folder")]
        here, recorded = self._listing(path), self._recorded(item)
        if recorded is None:
            return [] if listing_md5(here) == item.hash_info.value else [(name, f"altered{UNKNOWN}")]
        wrong = []
        for file in sorted(here.keys() | recorded):
            state = self._state(path / file, recorded[file]) if file in recorded else "extra"
            if state:
                wrong.append((f"{name}/{file}" if file else name, state))
        return wrong

    def _bad_objects(self, cache: Any, name: str, oid: str, files: dict[str, str]) -> list[tuple[str, str, str]]:
        """Return (path, path in the cache, what is wrong) for each bad one of an out's files in one of DVC's caches."""
        objects = {f"{name} (its list of files)": oid} if oid.endswith(".dir") else {}
        objects |= {f"{name}/{file}" if file else name: md5 for file, md5 in files.items()}
        stored = [(path, Path(cache.oid_to_path(md5)), md5) for path, md5 in objects.items()]
        states = [(path, self._relative(place), self._state(place, md5)) for path, place, md5 in stored]
        return [(path, place, state) for path, place, state in states if state]

    def _cached_listing(self, cache: Any, oid: str) -> dict[str, str] | None:
        """Return {file: md5} of a folder, or None if the cache has no intact list of its files; of a file {"": md5}."""
        if not oid.endswith(".dir"):
            return {"": oid}
        if self._state(stored := Path(cache.oid_to_path(oid)), oid):
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(stored.read_bytes())}

    def _recorded(self, item: Output) -> dict[str, str] | None:
        """Return {file: md5} of a folder as DVC's cache or Git has it, or None if neither has; of a file, {"": md5}."""
        oid, folder = item.hash_info.value, self._relative(item.fs_path)
        if (listing := self._cached_listing(item.cache, oid)) is not None:
            return listing
        git, read = self.project.git, self.project.read
        for commit in git("log", f"-{COMMITS}", "--format=%H", "--", folder, check=False).split():
            names = git("ls-tree", "-r", "--name-only", "-z", commit, "--", folder, check=False).split("\0")[:-1]
            listing = {name.removeprefix(f"{folder}/"): _md5_of(read(name, commit)) for name in names}
            if listing_md5(listing) == oid:
                return listing
        return None

    def _listing(self, path: Path) -> dict[str, str]:
        """Return {file: md5} of a folder as it is, without what .dvcignore excludes; of a file {"": md5}."""
        if not path.is_dir():
            return {"": self._md5(path)}
        walk = self.repo.dvcignore.walk(self.repo.fs, str(path))
        files = [Path(parent, name) for parent, _, names in walk for name in names]
        return {file.relative_to(path).as_posix(): self._md5(file) for file in files}

    def _state(self, path: Path, oid: str) -> str | None:
        """Return what is wrong with one file; None if nothing is."""
        md5 = self._md5(path)
        return None if md5 == oid.removesuffix(".dir") else "altered" if len(md5) == 32 else md5

    def _md5(self, path: Path) -> str:
        """Return the MD5 of a file, hashed once; of one that cannot be read, the reason."""
        if path not in self.hashes:
            try:
                with path.open("rb") as file:
                    self.hashes[path] = hashlib.file_digest(file, "md5").hexdigest()
                    self.bytes += file.tell()
            except FileNotFoundError:
                return "missing"
            except OSError as error:
                return f"unreadable ({error.strerror})"
        return self.hashes[path]

    def _find(self, path: str, stage: str, what: str) -> None:
        self.mismatches.append(Mismatch(path, stage, what))

    def _relative(self, path: Path | str) -> str:
        """Return a path relative to the project, if it lies in it."""
        return str(path).removeprefix(f"{self.project.root}/")


def _md5_of(content: str) -> str:
    """Return the MD5 of a text that Git has printed."""
    return hashlib.md5(content.encode("utf-8", "surrogateescape")).hexdigest()
