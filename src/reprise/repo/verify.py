"""Whether the bytes in the workspace and in DVC's cache are the ones that dvc.lock records.

DVC trusts a corrupted cache file, and takes a file for unchanged as long as its time and size are. Here every byte is
read and hashed anew: the stages' deps and outs, the files in folders one by one, and the cache objects behind the outs.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import Stage

from reprise.params.dependencies import load_record, record_path
from reprise.params.load import load_params
from reprise.repo.project import Project
from reprise.repo.revisions import CODE
from reprise.runtime.checksums import listing_md5, md5_listing
from reprise.runtime.errors import UserError, reason

COMMITS = 10  # of a folder of code, among which the recorded state is looked for
UNKNOWN = " (which file: unknown, the cache has no intact list of them)"  # of code it never has one


@dataclass(frozen=True)
class Mismatch:
    """One thing that is not as dvc.lock records it."""

    path: str
    stage: str
    what: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.path}, stage {self.stage}: {self.what}"


@dataclass
class Verification:
    """What was hashed, what differs, and the commands that put it right, in the order in which to run them."""

    stages: int = 0
    files: int = 0
    bytes: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)


def verify(project: Project) -> Verification:
    """Hash everything anew that dvc.lock refers to. Raises UserError without it, or if it or dvc.yaml is unreadable."""
    with _verifier(project) as verifier:
        return verifier.run()


def stale(project: Project) -> list[Mismatch]:
    """Return why `dvc repro` would run a stage that dvc.lock records as done; nothing if dvc.lock is fresh.

    Needs no data: an out that is in DVC's cache or remote may be missing here, not the others, which Git holds.
    `dvc repro --dry --allow-missing` is no such check, it succeeds either way. Raises what `verify` raises.
    """
    with _verifier(project) as verifier:
        return verifier.stale()


def stale_code(project: Project, commit: str | None = None) -> list[str]:
    """Return what `stale` finds of code, params and commands, for a commit too, by DVC's own word; needs no data."""
    with _verifier(project, commit) as verifier:
        return verifier.stale_code()


@contextmanager
def _verifier(project: Project, commit: str | None = None) -> "Iterator[_Verifier]":
    if not project.read("dvc.lock", commit):
        raise UserError("dvc.lock: no such file; `dvc repro` writes it, `git checkout HEAD -- dvc.lock` brings it back")
    try:
        with Repo(str(project.root)) as repo, repo.switch(commit or "workspace"):
            yield _Verifier(project, repo)
    except DvcException as error:
        raise UserError(
            f"{reason(error)}; `git diff HEAD -- dvc.yaml dvc.lock params.yaml` shows what was edited"
        ) from None


class _Verifier:
    """Collects the findings stage by stage, and the repairs by the order in which they have to run."""

    def __init__(self, project: Project, repo: Repo) -> None:
        self.project, self.root, self.repo = project, project.root, repo
        self.result = Verification()
        self.hashes: dict[Path, str] = {}
        self.steps: tuple[list[str], ...] = ([], [], [], [])  # clear the cache, restore files, refill the cache, repro

    def run(self) -> Verification:
        stages = self.repo.index.stages
        made = {out.fs_path: out.hash_info.value for stage in stages for out in stage.outs}
        for stage in stages:
            name = self._relative(Path(stage.path)) if stage.is_data_source else stage.name
            current = self._check_inputs(stage, name, made)
            if current and not stage.is_data_source:
                current = self._check_record(stage, name)
            refills = {self._check_out(stage, out, name) for out in stage.outs} - {None}
            if refills:  # `dvc commit` would record changed inputs or a bad out as good
                by = "dvc commit --force" if current and refills == {"commit"} else "dvc repro --force --single-item"
                self.steps[2].append(f"dvc pull {name}" if refills == {"pull"} else f"{by} {shlex.quote(name)}")
        self.result.stages = len(stages)
        self.result.files = len(self.hashes)
        self.result.repairs = [command for step in self.steps for command in dict.fromkeys(step)]
        return self.result

    def stale(self) -> list[Mismatch]:
        stages = self.repo.index.stages
        made = {out.fs_path: out.hash_info.value for stage in stages for out in stage.outs}
        for stage in stages:
            name = self._relative(Path(stage.path)) if stage.is_data_source else stage.name
            if not any(out.hash_info.value for out in stage.outs):
                self._find("dvc.lock", name, "not recorded: the stage has not run yet")
                continue
            if not stage.is_data_source and self._check_inputs(stage, name, made):
                self._check_record(stage, name)
            for out in stage.outs:
                oid, path = out.hash_info.value, Path(out.fs_path)
                if oid is None:
                    self._find(out.def_path, name, "added since dvc.lock was written")
                elif path.exists() or not out.use_cache:
                    listing = self._cached_listing(out) if out.hash_info.isdir else None
                    for file, state in self._workspace(path, oid, listing):
                        self._find(file, name, f"{state}, not what dvc.lock records")
        return self.result.mismatches

    def stale_code(self) -> list[str]:
        found = set()
        for stage in self.repo.index.stages:
            found |= {path for path, _ in self._changed_terms(stage)}
            found |= {dep.def_path for dep in stage.deps if dep.def_path.startswith(CODE) and dep.status()}
        return sorted(found)

    def _changed_terms(self, stage: Stage) -> list[tuple[str, str]]:
        """Return (what, how) of the command and the params that have changed since the stage ran."""
        changed = [("dvc.yaml", "command modified")] if getattr(stage, "cmd_changed", False) else []
        for dep in stage.deps:
            if isinstance(dep, ParamsDependency):
                for states in dep.status().values():
                    values = states if isinstance(states, dict) else {"": states}
                    changed += [(f"{dep.def_path} {key}".strip(), state) for key, state in values.items()]
        return changed

    def _check_inputs(self, stage: Stage, name: str, made: dict[str, str]) -> bool:
        """Name what has changed since the stage ran; say whether nothing has."""
        changed = self._changed_terms(stage)
        for dep in (dep for dep in stage.deps if not isinstance(dep, ParamsDependency)):
            if dep.hash_info.value is None:
                changed.append((dep.def_path, "added"))
            elif dep.fs_path not in made:
                listing = self._cached_listing(dep) or self._committed_listing(dep) if dep.hash_info.isdir else None
                changed += self._workspace(Path(dep.fs_path), dep.hash_info.value, listing)
            elif made[dep.fs_path] != dep.hash_info.value:
                changed.append((dep.def_path, "made anew"))
        for path, what in changed:
            self._find(path, name, f"{what.removesuffix(UNKNOWN)} since dvc.lock was written")
            self.steps[3].append("dvc repro")
        return not changed

    def _check_record(self, stage: Stage, name: str) -> bool:
        """Compare what dvc.lock says that a stage was run with, which is what there is here, with what it recorded.

        DVC hashes deps and params after a command: an edit that came meanwhile stands in dvc.lock, and is not in the
        outs. Says whether nothing differs; a record that is neither here nor in the cache has no say.
        """
        out = next((out for out in stage.outs if self._relative(Path(out.fs_path)) == record_path(name)), None)
        oid = out.hash_info.value if out else None
        places = [Path(out.fs_path), Path(out.cache.oid_to_path(oid))] if out and oid else []
        found = next((place for place in places if self._state(place, str(oid)) is None), None)
        if found is None:
            return True
        inputs = {out.def_path: out.hash_info.value for other in self.repo.index.stages for out in other.outs
                  if not other.is_data_source}  # fmt: skip
        try:
            record = load_record(found)
        except ValueError:  # recorded by `dvc commit` after it was altered
            record = None
        for path in record.inputs.keys() - inputs if record else ():  # the user's, of which DVC ignores other files
            if (self.root / path).exists():
                inputs[path] = listing_md5(md5_listing(self.root / path))
        params = load_params(self.root / "params.yaml")
        other = record.differences(self.root, name, params, inputs) if record else [record_path(name)]
        for what in other:
            self._find(what, name, "not what its outs were made with")
            self.steps[3].append(f"dvc repro --force --single-item {shlex.quote(name)}; dvc repro")
        return not other

    def _check_out(self, stage: Stage, out: Output, name: str) -> str | None:
        """Compare one out with its record, here and in the cache; say how to get it back where checking out cannot."""
        oid, quoted = out.hash_info.value, shlex.quote(self._relative(Path(out.fs_path)))
        if oid is None:
            self._find(out.def_path, name, "not recorded in dvc.lock: the stage has not run yet")
            self.steps[3].append("dvc repro")
            return None
        listing = self._cached_listing(out) if out.hash_info.isdir else None
        here = self._workspace(Path(out.fs_path), oid, listing)
        if out.hash_info.isdir and listing is None and not here:
            listing = self._listing(Path(out.fs_path))
        cached = self._cache(out, oid, listing)
        if [state for _, state in here] == ["missing"] and cached and {state for *_, state in cached} == {"missing"}:
            self._find(here[0][0], name, "missing here and in the cache: not pulled or not reproduced yet")
            self.steps[3].append("make repro  # or `dvc pull`, from a remote that has them")
            return None
        for path, state in here:
            self._find(path, name, state)
        for path, stored, state in cached:
            self._find(path, name, f"{state} in the cache, {self._relative(stored)}")
            if state != "missing":
                self.steps[0].append(f"rm -f {shlex.quote(self._relative(stored))}")
        if cached and out.use_cache:
            return "commit" if not here else "pull" if stage.is_data_source else "repro"
        if here and stage.is_data_source:
            self.steps[1].append(f"dvc add {quoted}  # if the change is meant; `dvc checkout {quoted}` undoes it")
        elif here and out.use_cache:
            self.steps[1].append(f"rm -rf {quoted} && dvc checkout {quoted}")
        elif here and self._committed(out.def_path) == oid:
            self.steps[1].append(f"git checkout HEAD -- {quoted}")
        elif here:
            return "repro"
        return None

    def _workspace(self, path: Path, oid: str, listing: dict[str, str] | None) -> list[tuple[str, str]]:
        """Return (path, what is wrong) for each file of a dep or an out; of a folder as a whole without its listing."""
        name = self._relative(path)
        if not oid.endswith(".dir"):
            state = "a folder, not a file" if path.is_dir() else self._state(path, oid)
            return [(name, state)] if state else []
        if not path.is_dir():
            return [(name, "a file, not a folder" if path.exists() else "missing")]
        here = self._listing(path)
        if listing is None:
            return [] if listing_md5(here) == oid else [(name, f"altered{UNKNOWN}")]
        wrong = []
        for file in sorted(here.keys() | listing.keys()):
            state = "extra" if file not in listing else self._state(path / file, listing[file])
            if state:
                wrong.append((f"{name}/{file}", state))
        return wrong

    def _cache(self, out: Output, oid: str, listing: dict[str, str] | None) -> list[tuple[str, Path, str]]:
        """Return (path, cache object, what is wrong) for each bad cache object behind an out."""
        name = self._relative(Path(out.fs_path))
        objects = {f"{name} (its list of files)" if out.hash_info.isdir else name: oid}
        objects |= {f"{name}/{file}": md5 for file, md5 in (listing or {}).items()}
        stored = [(name, Path(out.cache.oid_to_path(md5)), md5) for name, md5 in objects.items()]
        states = [(name, path, self._state(path, md5)) for name, path, md5 in stored]
        # of a `cache: false` out, the cache may have a copy, from which DVC repeats a known run
        return [(name, path, state) for name, path, state in states if state and (out.use_cache or state != "missing")]

    def _cached_listing(self, item: Output) -> dict[str, str] | None:
        """Return {file: md5} of a folder as DVC's cache lists it; None if the list is missing or altered."""
        stored = Path(item.cache.oid_to_path(item.hash_info.value))
        if self._state(stored, item.hash_info.value):
            return None
        entries: list[dict[str, Any]] = json.loads(stored.read_bytes())
        return {entry["relpath"]: entry["md5"] for entry in entries}

    def _committed_listing(self, item: Output) -> dict[str, str] | None:
        """Return {file: md5} of a folder of code by the newest of some commits that has it as recorded, if one has."""
        git, folder = self.project.git, self._relative(Path(item.fs_path))
        for commit in git("log", f"-{COMMITS}", "--format=%H", "--", folder, check=False).split():
            names = git("ls-tree", "-r", "--name-only", "-z", commit, "--", folder, check=False).split("\0")[:-1]
            contents = {name: self.project.read(name, commit).encode("utf-8", "surrogateescape") for name in names}
            listing = {
                name.removeprefix(f"{folder}/"): hashlib.md5(code).hexdigest() for name, code in contents.items()
            }
            if listing_md5(listing) == item.hash_info.value:
                return listing
        return None

    def _listing(self, folder: Path) -> dict[str, str]:
        """Return {file: md5} of a folder as it is, without what .dvcignore excludes."""
        found = {}
        for parent, _, names in self.repo.dvcignore.walk(self.repo.fs, str(folder)):
            for path in (Path(parent) / name for name in names):
                found[path.relative_to(folder).as_posix()] = self._md5(path)
        return found

    def _state(self, path: Path, oid: str) -> str | None:
        """Say what is wrong with one file; None if nothing is."""
        md5 = self._md5(path)
        return None if md5 == oid.removesuffix(".dir") else "altered" if len(md5) == 32 else md5

    def _md5(self, path: Path) -> str:
        """Hash a file's bytes, once; a file that cannot be read has the reason in place of a hash."""
        if path not in self.hashes:
            try:
                with path.open("rb") as file:
                    self.hashes[path] = hashlib.file_digest(file, "md5").hexdigest()
                    self.result.bytes += file.tell()
            except FileNotFoundError:
                return "missing"
            except OSError as error:
                return f"unreadable ({error.strerror})"
        return self.hashes[path]

    def _committed(self, name: str) -> str | None:
        """Return the MD5 of a file in Git's HEAD, None if it is not there."""
        content = self.project.read(name, "HEAD").encode("utf-8", "surrogateescape")
        return hashlib.md5(content).hexdigest() if content else None

    def _find(self, path: str, stage: str, what: str) -> None:
        self.result.mismatches.append(Mismatch(path, stage, what))

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
