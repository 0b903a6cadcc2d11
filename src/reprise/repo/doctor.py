"""What a killed DVC leaves behind, found and repaired.

Nothing that a person made is deleted: HEAD moves without touching a file, edits that DVC had set aside come back, a
finished experiment is collected before its temporary folder is removed, and what is ambiguous is left to a person.
Examining only reads; each finding carries its repair.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reprise.repo.processes import git_at_work, owners, rwlocks, scratch
from reprise.repo.project import EXPERIMENT, Project
from reprise.runtime.atomic import Lock, remove
from reprise.runtime.errors import UserError

EXEC = "refs/exps/exec"
# a healthy run leaves EXEC_HEAD and EXEC_APPLY; the others live only while an experiment runs in the workspace
RUNNING = {f"{EXEC}/EXEC_BASELINE", f"{EXEC}/EXEC_BRANCH", f"{EXEC}/EXEC_MERGE"}
WAITING = "refs/exps/stash"
TEMP = "refs/exps/temp"


@dataclass(frozen=True)
class Leftover:
    """One thing that a crash left: what is wrong, what is done about it, and how; repair None: a person decides."""

    problem: str
    remedy: str
    repair: Callable[[], object] | None


def examine(project: Project, published: list[Path]) -> list[Leftover]:
    """Return what crashes left, in the order in which it is to be repaired. published: the folders that hold outs.

    Call it within `at_rest`: whatever is locked then is locked by a dead process.
    """
    # the locks come last: others read them
    finders = (_git_locks, _killed_run, _scratch_refs, _queue, _scratch_folders, _rwlocks)
    return [*(leftover for find in finders for leftover in find(project)), *_partials(project, published)]


def _git_locks(project: Project) -> Iterator[Leftover]:
    """Find lock files of Git: each commit, checkout and experiment fails on them."""
    paths = [project.git_path(name) for name in ("index.lock", "HEAD.lock", "packed-refs.lock")]
    locks = [path for path in (*paths, *project.git_path("refs/exps").rglob("*.lock")) if path.exists()]
    git = git_at_work(project) if locks else []
    for lock in locks:
        if git:
            yield Leftover(f"{project.short(lock)}: git (process {git[0]}) is at work", "wait for it", None)
        else:
            yield Leftover(f"{project.short(lock)}: no living git process holds it", "remove it", lock.unlink)


def _killed_run(project: Project) -> Iterator[Leftover]:
    """Find what `dvc exp run` had done to the user's edits, to HEAD and to the index when it was killed."""
    exec_refs = project.refs(EXEC)
    steps = {owner.path for path in rwlocks(project) for owner in owners(path) or []}
    preparing = "workspace" in steps  # the user's edits stashed, the values of -S being set
    running = bool(RUNNING & exec_refs.keys())
    if preparing:
        yield from _stashed_edits(project)
    if (preparing or running) and not project.git("symbolic-ref", "-q", "HEAD", check=False):
        if EXEC in steps:
            yield from _overwritten_edits(project, exec_refs)
        head = project.git("rev-parse", "HEAD").strip()
        base = exec_refs.get(f"{EXEC}/EXEC_HEAD", head) if running else head
        detached = list(_detached_head(project, head, base))
        yield from detached
        if any(finding.repair is None for finding in detached):
            return
        yield from _staged_by_dvc(project, base)
    if running:
        refs = [ref for ref in exec_refs if not ref.endswith("EXEC_APPLY")]
        problem = f"{EXEC}: DVC's notes on an experiment that was killed; what it had changed is in the working tree"
        drop = "`git checkout . && dvc checkout` drops it with every uncommitted edit"
        remedy = f"remove the notes; then `dvc repro` finishes the work, or {drop}"
        yield Leftover(problem, remedy, partial(_forget_run, project, refs))


def _stashed_edits(project: Project) -> Iterator[Leftover]:
    """Find the user's uncommitted edits in `git stash`, where DVC puts them while it prepares an experiment."""
    began = (scratch(project) / "exps/rwlock").stat().st_mtime
    log = project.git_path("logs/refs/stash")
    listed = [line.split(" ", 2) for line in project.git("stash", "list", "--format=%gd %ct %s").splitlines()]
    entries = [name for name, time, subject in listed if int(time) >= int(began) and "dvc-exp:" not in subject]
    if not entries or log.stat().st_mtime < began:
        return
    entry = entries[-1]  # newer ones are the user's, from after the crash
    untouched = not Project(project.top).changed("HEAD")
    if untouched and project.git("rev-parse", f"{entry}^") == project.git("rev-parse", "HEAD"):
        problem = f"{entry} of `git stash list`: your uncommitted edits, which DVC had set aside"
        yield Leftover(problem, "give them back", partial(project.git, "stash", "pop", "--index", entry))
    else:
        problem = f"{entry} of `git stash list`: your uncommitted edits as they were before the killed run; "
        problem += "the working tree may have them too, with the run's parameters"
        remedy = f"yours to decide: keep the working tree and `git stash drop '{entry}'`, or go back to your edits: "
        yield Leftover(problem, f"{remedy}`git reset --hard && git stash pop --index '{entry}'`", None)


def _overwritten_edits(project: Project, exec_refs: dict[str, str]) -> Iterator[Leftover]:
    """Find edits that live only in EXEC_MERGE: DVC checks HEAD out by force before it lays them over it again."""
    base, merge = exec_refs.get(f"{EXEC}/EXEC_HEAD"), exec_refs.get(f"{EXEC}/EXEC_MERGE")
    if not base or not merge:
        return
    whole = Project(project.top)
    lost = {}
    for path in whole.changed(base, merge, "--", ".", f":(exclude){project.prefix / '.dvc/tmp'}"):
        patch = whole.git("diff-tree", "-p", "--binary", base, merge, "--", path)
        with suppress(UserError):  # does not apply: it is there already, or the user has gone on from it
            whole.git("apply", "--check", stdin=patch)
            lost[path] = patch
    if lost:
        problem = f"{', '.join(lost)}: changed before the run, or by its -S, and overwritten by DVC when it was killed"
        restore = partial(whole.git, "apply", "--whitespace=nowarn", stdin="".join(lost.values()))
        yield Leftover(problem, "give the changes back", restore)
    if project.refs("refs/stash").get("refs/stash") == merge:  # where DVC applies it from
        yield Leftover("stash@{0} of `git stash list`: DVC's own", "drop it", partial(project.git, "stash", "drop"))


def _detached_head(project: Project, head: str, base: str) -> Iterator[Leftover]:
    """Find out what DVC detached HEAD from, at `base`; one that the user had detached stays so."""
    left = _left_by_dvc(project)
    branches = [name for name, tip in project.refs("refs/heads").items() if tip == base]
    candidates = [left] if left in branches else branches if left == "" else []
    problem = f"HEAD is detached at {head[:7]}: DVC had no time to put it back"
    if own := _unreachable(project, head):
        name = (left or "refs/heads/BRANCH").removeprefix("refs/heads/")
        apart = f"`git branch NEW {head[:7]}` keeps them apart"
        remedy = f"yours to decide: `git checkout -B {name}` puts them on {name}, {apart}"
        yield Leftover(f"{problem}, and commits were made there that no branch has: {len(own)}", remedy, None)
    elif len(candidates) == 1:
        remedy = f"back to {candidates[0].removeprefix('refs/heads/')}, without touching a file"
        attach = partial(project.git, "symbolic-ref", "-m", "doctor: back to the branch", "HEAD", candidates[0])
        yield Leftover(problem, remedy, attach)
    elif candidates:
        commands = " or ".join(f"`git symbolic-ref HEAD {name}`" for name in candidates)
        yield Leftover(f"{problem}, and {len(candidates)} branches are there", f"yours to decide: {commands}", None)
    elif head != base:
        yield Leftover(problem, f"back to {base[:7]}", partial(project.git, "update-ref", "--no-deref", "HEAD", base))


def _left_by_dvc(project: Project) -> str | None:
    """Return the branch from which DVC detached HEAD, by HEAD's log; "" if the log is silent, None if the user did."""
    for line in project.git("reflog", "show", "--format=%gs", "HEAD", check=False).splitlines():
        move = re.fullmatch(r"checkout: moving from (\S+) to (\S+)", line)
        if move and not re.fullmatch("[0-9a-f]{40}", move[2]):  # DVC moves to whole commit ids
            return None
        if move and not re.fullmatch("[0-9a-f]{40}", move[1]):
            return f"refs/heads/{move[1]}"
    return ""


def _unreachable(project: Project, head: str) -> list[str]:
    """Return the commits behind HEAD that neither a branch, a tag nor a finished experiment holds."""
    scratch = [f"--exclude={name}" for name in ("refs/stash", WAITING, f"{EXEC}/*", f"{TEMP}/*", "refs/exps/celery/*")]
    return project.git("rev-list", head, "--not", *scratch, "--glob=refs/*").split()


def _staged_by_dvc(project: Project, base: str) -> Iterator[Leftover]:
    """Find what DVC staged and, after a run that fails, unstages; what differs on disk may be the user's."""
    whole = Project(project.top)
    apart = whole.changed("--", ".", f":(exclude){project.prefix / '.dvc/tmp'}")
    if paths := [path for path in whole.changed("--cached", base) if path not in apart]:
        unstage = partial(whole.git, "reset", "--quiet", "--", *paths)
        yield Leftover(f"{', '.join(paths)}: staged by DVC", "unstage, the files stay as they are", unstage)


def _forget_run(project: Project, refs: list[str]) -> None:
    for ref in refs:  # --no-deref: EXEC_BRANCH is a symbolic ref to a finished experiment
        project.git("update-ref", "--no-deref", "-d", ref)
    shutil.rmtree(scratch(project) / "exps/run/workspace", ignore_errors=True)


def _scratch_refs(project: Project) -> Iterator[Leftover]:
    """Find refs of runs that died between their steps."""
    if project.refs(WAITING):
        entries = project.git("reflog", "show", "--format=%h %gs", WAITING).splitlines()
        names = [f"{entry.rpartition(':')[2]} ({entry.partition(' ')[0]})" for entry in entries]
        problem = f"{WAITING}: {', '.join(names)}, killed before it began; the next `dvc exp run` would run it too"
        remedy = "forget it; `git stash show -p COMMIT` shows its changes"
        yield Leftover(problem, remedy, partial(project.git, "update-ref", "-d", WAITING))
    if refs := project.refs(TEMP):
        delete = partial(project.git, "update-ref", "--stdin", stdin="".join(f"delete {ref}\n" for ref in refs))
        yield Leftover(f"{TEMP}: {len(refs)} refs of a run that was killed while it was set up", "remove them", delete)


def _queue(project: Project) -> Iterator[Leftover]:
    """Find queued experiments that DVC shows as running for ever: their worker is dead."""
    if not list((scratch(project) / "exps/celery/broker/processed").glob("*.celery.msg")):
        return
    listed = project.dvc("queue", "status")
    for commit, name in re.findall(r"^([0-9a-f]{7,})\s+(\S*)\s.*\bRunning\s*$", listed, re.MULTILINE):
        problem = f"experiment {name or commit} of the queue: shown as running, but its worker is dead"
        remedy = "mark it as failed; queue it anew if you still want it"
        yield Leftover(problem, remedy, partial(_fail_task, project, commit))


def _fail_task(project: Project, commit: str) -> None:
    # without an exit status there, `dvc queue kill` signals the recorded pid, and another process may have that by now
    for path in (scratch(project) / "exps/run").glob(f"{commit}*/{commit}*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "returncode": -9}))
    project.dvc("queue", "kill", commit)


def _scratch_folders(project: Project) -> Iterator[Leftover]:
    """Find folders of `--temp` and queued runs; a finished experiment that DVC had no time to collect comes first."""
    exps = scratch(project) / "exps"
    known = project.refs("refs/exps")
    for folder in sorted([*exps.glob("tmp*"), *exps.glob("standalone/tmp*")]):
        git_dir = folder / ".git"
        listed = project.git(f"--git-dir={git_dir}", "for-each-ref", "--format=%(refname)", check=False).split()
        if finished := [ref for ref in listed if EXPERIMENT.fullmatch(ref) and ref not in known]:
            problem = f"{project.short(folder)}: {finished[0].rpartition('/')[2]}, finished but not collected"
            refs = [f"{ref}:{ref}" for ref in finished]
            collect = partial(project.git, "fetch", "--no-tags", str(git_dir), *refs)
            yield Leftover(problem, "collect it, see `dvc exp show`", collect)
        problem = f"{project.short(folder)}: the folder of a killed run, in which no process works"
        yield Leftover(problem, "remove it", partial(shutil.rmtree, folder))


def _rwlocks(project: Project) -> Iterator[Leftover]:
    """Find locks of dead processes: DVC believes them where the pid is in use again, or still a zombie's."""
    for path in rwlocks(project):
        held = owners(path)
        dead = ", ".join(sorted({f"`{owner.command}` (process {owner.pid})" for owner in held or []}))
        if held != []:
            what = "cut off, and DVC fails on it" if held is None else f"locks of {dead}, which is dead"
            yield Leftover(f"{project.short(path)}: {what}", "remove it", path.unlink)


def _partials(project: Project, published: list[Path]) -> Iterator[Leftover]:
    """Find outs that were half written, or half replaced, when their process died (see `reprise.runtime.atomic`)."""
    for path in sorted(path for folder in published for path in folder.glob(".*.partial")):
        name = path.name.removeprefix(".").removesuffix(".partial").removesuffix(".replaced")
        lock = Lock(path.with_name(name))
        if lock.acquire(wait=False):  # otherwise a living process is at it
            lock.release()
            yield Leftover(f"{project.short(path)}: half written", "remove it", partial(remove, path))
