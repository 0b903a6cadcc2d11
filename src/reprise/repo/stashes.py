"""Uncommitted edits that DVC sets aside, in stashes, and what of them the working tree lacks after a crash."""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import yaml

from reprise.repo.project import Project
from reprise.repo.revisions import Revision, experiments, parse_yaml
from reprise.runtime.errors import UserError, listed

APPLIED = "refs/exps/apply/stash"
SEEN = "doctor"  # below .dvc/tmp: when doctor has last looked at what no ref holds


class Leftover(NamedTuple):
    """One thing that a crash left: what is wrong, what is done about it, and how; repair None: a person decides."""

    problem: str
    remedy: str
    repair: Callable[[], object] | None


class Stash(NamedTuple):
    """A stash by the name that Git takes, its commit and its message."""

    name: str
    commit: str
    message: str

    @property
    def is_experiment(self) -> bool:
        """Whether it is an experiment: the user's edits with the parameters of the run in them."""
        return "dvc-exp:" in self.message


def dvcs_stashes(project: Project) -> list[Stash]:
    """Return the entries of `git stash list` that DVC made, the newest first."""
    listed = project.git("log", "-g", "--format=%H %B%x00", "refs/stash", "--", check=False).split("\0")[:-1]
    parts = (entry.removeprefix("\n").partition(" ") for entry in listed)
    stashes = [Stash(f"stash@{{{number}}}", commit, text) for number, (commit, _, text) in enumerate(parts)]
    # libgit2 ends the line, git does not
    own = re.compile(r"WIP on .*\n", re.DOTALL)
    return [stash for stash in stashes if own.fullmatch(stash.message) or stash.is_experiment]


def lost(project: Project, commit: str) -> dict[str, str]:
    """Return what a stash changes and is other in the working tree: {path from Git's root: commit that has it}.

    Its untracked files count; dvc.lock and outs, which DVC makes anew, do not, nor does a params.yaml that was cut off.
    """
    whole = project.whole
    made = ["dvc.lock", ".dvc/tmp/"]
    with suppress(UserError):  # dvc.lock is unreadable
        made += Revision(project).locked("outs")
    untracked = whole.git("ls-tree", "-r", "--name-only", "-z", f"{commit}^3", check=False).split("\0")[:-1]
    held = dict.fromkeys(whole.changed(f"{commit}^", commit), commit) | dict.fromkeys(untracked, f"{commit}^3")
    other = [path for path, tree in held.items() if whole.read(path) != whole.read(path, tree)]
    made += [] if is_mapping(project.read("params.yaml", commit)) else ["params.yaml"]
    left_out = tuple(str(project.prefix / path) for path in made)
    return {path: held[path] for path in other if not path.startswith(left_out)}


def is_mapping(text: str) -> bool:
    """Return whether a text is YAML with keys, as params.yaml and dvc.lock are unless writing them was cut off."""
    with suppress(yaml.YAMLError):
        return isinstance(parse_yaml(text), dict)
    return False


def way_back(project: Project, commit: str, paths: Iterable[str]) -> Callable[[], None] | None:
    """Return what brings paths of a stash back without overwriting anything; None if there is no such way."""
    whole = project.whole
    patches = {path: _patch(project, commit, path) for path in paths}
    gone = [path for path, patch in patches.items() if not _applies(project, patch)]
    patch = "".join(patch for path, patch in patches.items() if path not in gone)

    def restore() -> None:
        if patch:
            whole.git("apply", "--whitespace=nowarn", stdin=patch)
        if gone:
            whole.git("restore", f"--source={commit}", "--", *gone)

    return None if any(map(whole.read, gone)) else restore


def _patch(project: Project, commit: str, path: str) -> str:
    return project.whole.git("diff-tree", "-p", "--binary", f"{commit}^", commit, "--", path)


def _applies(project: Project, patch: str, *options: str) -> bool:
    return bool(project.whole.git("apply", "--check", "--numstat", *options, stdin=patch, check=False))


def set_aside(project: Project) -> Iterator[Leftover]:
    """Find the user's edits in `git stash list`, where DVC puts them while it prepares or applies an experiment."""
    stashes = dvcs_stashes(project)
    trees = [project.git("rev-parse", f"{stash.commit}^{{tree}}") for stash in stashes]
    for number, stash in enumerate(stashes):
        shown, missing = f"{stash.name} of `git stash list` ({stash.commit[:7]})", lost(project, stash.commit)
        drop = partial(project.git, "stash", "drop", stash.name)
        is_copy = stash.is_experiment and any(not other.is_experiment for other in stashes[number + 1 :])
        if is_copy or not missing or trees[number] in trees[:number]:
            has = "another stash has" if missing else "the working tree has"
            yield Leftover(f"{shown}: edits that DVC had set aside; {has} them", "drop it", drop)
            continue
        problem = f"{shown}: your uncommitted edits of {listed([*missing])}, which DVC had set aside"
        if not stash.is_experiment and (restore := _give_back(project, stash, missing, drop)):
            yield Leftover(problem, "give them back; a run since then went without them", restore)
            continue
        paths = " ".join(shlex.quote(f":/{path}") for path in missing)
        remedy = f"yours to decide: keep the working tree and `git stash drop '{stash.name}'`, or go back to your "
        remedy += f"edits: `git restore --source='{stash.name}' -- {paths}`"
        yield Leftover(f"{problem}; they differ from the working tree", remedy, None)


def _give_back(
    project: Project, stash: Stash, missing: Iterable[str], drop: Callable[[], object]
) -> Callable[[], object] | None:
    head, base = project.git("rev-parse", "HEAD", f"{stash.commit}^").split()
    whole = project.whole
    new = whole.changed(base, stash.commit, "--diff-filter=A")
    if head == base and not (whole.changed("HEAD") or whole.changed("--cached") or any(map(whole.read, new))):
        return partial(project.git, "stash", "pop", "--index", stash.name)
    restore = way_back(project, stash.commit, missing)
    return restore and (lambda: (restore(), drop()))


def overwritten(project: Project, merge: str | None) -> Iterator[Leftover]:
    """Find edits that live only in EXEC_MERGE: DVC checks HEAD out by force before it lays them over it again."""
    if merge is None or not (missing := [*lost(project, merge)]):
        return
    problem = f"{listed(missing)}: changed before the run, or by its -S, and overwritten by DVC when it was killed"
    if restore := way_back(project, merge, missing):
        yield Leftover(problem, "give the changes back", restore)
    elif all(stash.commit != merge for stash in dvcs_stashes(project)):
        yield Leftover(problem, "keep them in `git stash list`", partial(project.git, "stash", "store", merge))


def forgotten(project: Project, cut_short: Sequence[tuple[float, float]]) -> Iterator[Leftover]:
    """Find edits that no ref holds any more: those of a killed experiment, after the next ones made DVC forget it.

    cut_short: when (from, to) experiments were committed that may not have begun. Doctor looks at each but once.
    """
    mark = project.root / ".dvc/tmp" / SEEN
    last = mark.stat().st_mtime if mark.exists() else 0
    if not any(end >= last for _, end in cut_short):
        return
    found = project.git("fsck", "--unreachable", "--no-reflogs", "--connectivity-only", check=False)
    commits = "\n".join(re.findall(r"\bcommit ([0-9a-f]{40,})", found))  # the words before it may be translated
    show = ("log", "--no-walk", "--stdin", "--format=%ct %H %s")
    lines = [line.split(" ", 2) for line in project.git(*show, stdin=commits).splitlines()] if commits else []
    finished = {run.name for run in experiments(project)}
    for time, experiment, subject in lines:
        name = subject.rpartition(":")[2]
        if "dvc-exp:" in subject and name not in finished and any(a <= int(time) <= b for a, b in cut_short):
            earlier = [(at, commit) for at, commit, what in lines if what.startswith("WIP on ") and at <= time]
            # of one second: that which the working tree lacks most of
            edits = max(earlier, key=lambda each: (each[0], len(lost(project, each[1]))))[1] if earlier else None
            if not edits or int(time) < last or not lost(project, experiment):
                continue
            patches = {path: _patch(project, edits, path) for path in lost(project, edits)}
            if missing := [path for path, patch in patches.items() if not _applies(project, patch, "--reverse")]:
                problem = f"{listed(missing)}: edits from before the experiment {name}, which was killed"
                yield Leftover(problem, "put them into `git stash list`", partial(project.git, "stash", "store", edits))


def applied(project: Project) -> Iterator[Leftover]:
    """Find uncommitted edits that `dvc exp apply` replaced: they are in a ref of its own, and its next call drops it.

    A version that a finished experiment has is no loss.
    """
    whole, known = project.whole, [run.commit for run in experiments(project)]
    for path, tree in lost(project, APPLIED).items() if APPLIED in project.refs(APPLIED) else ():
        names = "".join(f"{commit}:{path}\n" for commit in (tree, *known))
        own, *others = whole.git("cat-file", "--batch-check", stdin=names).splitlines()
        if own not in others:
            give = f"`git restore --source={shlex.quote(tree)} -- {shlex.quote(f':/{path}')}`"
            remedy = f"yours to decide: {give} gives it back, `git update-ref -d {APPLIED}` forgets it"
            yield Leftover(f"{path}: your uncommitted edits, which `dvc exp apply` replaced", remedy, None)
