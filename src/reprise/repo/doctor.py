"""What a killed DVC leaves behind, found and put right.

Nothing that a person made is deleted: HEAD moves without touching a file, edits that DVC had set aside come back, a
finished experiment leaves its scratch folder before the folder goes, and what is ambiguous is left to a person.
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

from reprise.repo.workspace import Workspace, git_at_work, owners
from reprise.runtime.atomic import Lock, remove
from reprise.runtime.errors import UserError

EXEC = "refs/exps/exec"
# a healthy run leaves EXEC_HEAD and EXEC_APPLY; the others live only while an experiment runs in the workspace
RUNNING = {f"{EXEC}/EXEC_BASELINE", f"{EXEC}/EXEC_BRANCH", f"{EXEC}/EXEC_MERGE"}
WAITING = "refs/exps/stash"
TEMP = "refs/exps/temp"
EXPERIMENT = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/.+")


@dataclass(frozen=True)
class Finding:
    """One thing that a crash left: what is wrong, what is done about it, and how; None leaves it to a person."""

    problem: str
    remedy: str
    repair: Callable[[], object] | None


def examine(workspace: Workspace, published: list[Path]) -> list[Finding]:
    """Return what crashes left, in the order in which it is to be repaired; `published` are folders that hold outs.

    Call it `at_rest`: whatever looks taken then is taken by the dead.
    """
    return [
        *_git_locks(workspace),
        *_killed_run(workspace),
        *_scratch_refs(workspace),
        *_queue(workspace),
        *_scratch_folders(workspace),
        *_rwlocks(workspace),  # after all that reads them
        *_partials(workspace, published),
    ]


def _git_locks(workspace: Workspace) -> Iterator[Finding]:
    """Find lock files of Git: each commit, checkout and experiment fails on them."""
    paths = [workspace.git_path(name) for name in ("index.lock", "HEAD.lock", "packed-refs.lock")]
    locks = [path for path in (*paths, *workspace.git_path("refs/exps").rglob("*.lock")) if path.exists()]
    git = git_at_work(workspace) if locks else []
    for lock in locks:
        if git:
            yield Finding(f"{workspace.short(lock)}: git (process {git[0]}) is at work", "wait for it", None)
        else:
            yield Finding(f"{workspace.short(lock)}: no git lives that could hold it", "remove it", lock.unlink)


def _killed_run(workspace: Workspace) -> Iterator[Finding]:
    """Find what `dvc exp run` had done to the user's edits, HEAD and the index when it was killed."""
    exec_refs = workspace.refs(EXEC)
    steps = {owner.path for path in workspace.rwlocks for owner in owners(path) or []}
    preparing = "workspace" in steps  # the user's edits stashed, the values of -S being set
    if not preparing and not RUNNING & exec_refs.keys():
        return
    to_decide = False
    if preparing:
        yield from _stashed_edits(workspace)
    if not workspace.git("symbolic-ref", "-q", "HEAD", check=False):
        if EXEC in steps:
            yield from _overwritten_edits(workspace, exec_refs)
        head = workspace.git("rev-parse", "HEAD").strip()
        base = exec_refs.get(f"{EXEC}/EXEC_HEAD", head) if RUNNING & exec_refs.keys() else head
        for finding in _detached_head(workspace, head, base):
            to_decide = finding.repair is None
            yield finding
        if not to_decide:
            yield from _staged_by_dvc(workspace, base)
    if RUNNING & exec_refs.keys() and not to_decide:
        yield Finding(
            f"{EXEC}: DVC's notes on an experiment that was killed; what it had changed is in the working tree",
            "remove the notes; then `dvc repro` finishes the work, or `git checkout . && dvc checkout` drops it with "
            "every uncommitted edit",
            partial(_forget_run, workspace, [ref for ref in exec_refs if not ref.endswith("EXEC_APPLY")]),
        )


def _stashed_edits(workspace: Workspace) -> Iterator[Finding]:
    """Find the user's uncommitted edits in `git stash`, where DVC puts them while it prepares an experiment."""
    began = (workspace.tmp / "exps/rwlock").stat().st_mtime
    log = workspace.git_path("logs/refs/stash")
    listed = workspace.git("stash", "list", "--format=%gd %ct %s").splitlines()
    entries = [
        name
        for name, time, subject in (line.split(" ", 2) for line in listed)
        if int(time) >= int(began) and "dvc-exp:" not in subject
    ]
    if not entries or log.stat().st_mtime < began:
        return
    entry = entries[-1]  # newer ones are the user's, from after the crash
    untouched = not workspace.changed("HEAD")
    if untouched and workspace.git("rev-parse", f"{entry}^") == workspace.git("rev-parse", "HEAD"):
        yield Finding(
            f"{entry} of `git stash list`: your uncommitted edits, which DVC had set aside",
            "give them back",
            partial(workspace.git, "stash", "pop", "--index", entry),
        )
    else:
        yield Finding(
            f"{entry} of `git stash list`: your uncommitted edits as they were before the killed run; the working tree "
            "may have them too, with the run's parameters",
            f"yours to decide: keep the working tree and `git stash drop '{entry}'`, or go back to your edits: "
            f"`git reset --hard && git stash pop --index '{entry}'`",
            None,
        )


def _overwritten_edits(workspace: Workspace, exec_refs: dict[str, str]) -> Iterator[Finding]:
    """Find edits that live only in EXEC_MERGE: DVC checks HEAD out by force before it lays them over it again."""
    base, merge = exec_refs.get(f"{EXEC}/EXEC_HEAD"), exec_refs.get(f"{EXEC}/EXEC_MERGE")
    if not base or not merge:
        return
    lost = {}
    for path in sorted(workspace.changed(base, merge, "--", ".", ":(exclude).dvc/tmp")):
        patch = workspace.git("diff-tree", "-p", "--binary", base, merge, "--", path)
        with suppress(UserError):  # does not apply: it is there already, or the user has gone on from it
            workspace.git("apply", "--check", stdin=patch)
            lost[path] = patch
    if lost:
        yield Finding(
            f"{', '.join(lost)}: changed before the run, or by its -S, and overwritten by DVC when it was killed",
            "give the changes back",
            partial(workspace.git, "apply", "--whitespace=nowarn", stdin="".join(lost.values())),
        )
    if workspace.refs("refs/stash").get("refs/stash") == merge:  # where DVC applies it from
        yield Finding("stash@{0} of `git stash list`: DVC's own", "drop it", partial(workspace.git, "stash", "drop"))


def _detached_head(workspace: Workspace, head: str, base: str) -> Iterator[Finding]:
    """Find out what DVC detached HEAD from, at `base`; one that the user had detached stays so."""
    left = _left_by_dvc(workspace)
    tips = workspace.refs("refs/heads")
    branches = [name for name, tip in tips.items() if tip == base]
    candidates = [left] if left in branches else branches if left == "" else []
    problem = f"HEAD is detached at {head[:7]}: DVC had no time to put it back"
    if own := _unreachable(workspace, head):
        name = (left or "refs/heads/BRANCH").removeprefix("refs/heads/")
        yield Finding(
            f"{problem}, and commits were made there that no branch has: {len(own)}",
            f"yours to decide: `git checkout -B {name}` puts them on {name}, `git branch NEW {head[:7]}` keeps them "
            "apart",
            None,
        )
    elif len(candidates) == 1:
        yield Finding(
            problem,
            f"back to {candidates[0].removeprefix('refs/heads/')}, without touching a file",
            partial(workspace.git, "symbolic-ref", "-m", "doctor: back to the branch", "HEAD", candidates[0]),
        )
    elif candidates:
        commands = " or ".join(f"`git symbolic-ref HEAD {name}`" for name in candidates)
        yield Finding(f"{problem}, and {len(candidates)} branches are there", f"yours to decide: {commands}", None)
    elif head != base:
        yield Finding(problem, f"back to {base[:7]}", partial(workspace.git, "update-ref", "--no-deref", "HEAD", base))


def _left_by_dvc(workspace: Workspace) -> str | None:
    """Return the branch that DVC took HEAD off, by HEAD's log; empty if the log is silent, None if the user did it."""
    for line in workspace.git("reflog", "show", "--format=%gs", "HEAD", check=False).splitlines():
        move = re.fullmatch(r"checkout: moving from (\S+) to (\S+)", line)
        if move and not re.fullmatch("[0-9a-f]{40}", move[2]):  # DVC moves to whole commit ids
            return None
        if move and not re.fullmatch("[0-9a-f]{40}", move[1]):
            return f"refs/heads/{move[1]}"
    return ""


def _unreachable(workspace: Workspace, head: str) -> list[str]:
    """Return the commits behind HEAD that neither a branch, a tag nor a finished experiment holds."""
    scratch = [f"--exclude={name}" for name in ("refs/stash", WAITING, f"{EXEC}/*", f"{TEMP}/*", "refs/exps/celery/*")]
    return workspace.git("rev-list", head, "--not", *scratch, "--glob=refs/*").split()


def _staged_by_dvc(workspace: Workspace, base: str) -> Iterator[Finding]:
    """Find what DVC staged and, after a run that fails, unstages; what differs on disk may be the user's."""
    apart = {name for name in workspace.changed() if not name.startswith(".dvc/tmp/")}
    if paths := sorted(workspace.changed("--cached", base) - apart):
        yield Finding(
            f"{', '.join(paths)}: staged by DVC",
            "unstage, the files stay as they are",
            partial(workspace.git, "reset", "--quiet", "--", *paths),
        )


def _forget_run(workspace: Workspace, refs: list[str]) -> None:
    for ref in refs:  # --no-deref: EXEC_BRANCH is a symbolic ref to a finished experiment
        workspace.git("update-ref", "--no-deref", "-d", ref)
    shutil.rmtree(workspace.tmp / "exps/run/workspace", ignore_errors=True)


def _scratch_refs(workspace: Workspace) -> Iterator[Finding]:
    """Find refs of runs that died between their steps."""
    if workspace.refs(WAITING):
        entries = workspace.git("reflog", "show", "--format=%h %gs", WAITING).splitlines()
        names = [f"{entry.rpartition(':')[2]} ({entry.partition(' ')[0]})" for entry in entries]
        yield Finding(
            f"{WAITING}: {', '.join(names)}, killed before it began; the next `dvc exp run` would run it too, and "
            "leave its values in the workspace",
            "forget it; `git stash show -p COMMIT` shows its changes",
            partial(workspace.git, "update-ref", "-d", WAITING),
        )
    if refs := workspace.refs(TEMP):
        yield Finding(
            f"{TEMP}: {len(refs)} refs of a run that was killed while it was set up",
            "remove them",
            partial(workspace.git, "update-ref", "--stdin", stdin="".join(f"delete {ref}\n" for ref in refs)),
        )


def _queue(workspace: Workspace) -> Iterator[Finding]:
    """Find queued experiments that DVC shows as running for ever: their worker is dead."""
    if not list((workspace.tmp / "exps/celery/broker/processed").glob("*.celery.msg")):
        return
    listed = workspace.dvc("queue", "status")
    for commit, name in re.findall(r"^([0-9a-f]{7,})\s+(\S*)\s.*\bRunning\s*$", listed, re.MULTILINE):
        yield Finding(
            f"experiment {name or commit} of the queue: shown as running, but its worker is dead",
            "mark it as failed; queue it anew if you still want it",
            partial(_fail_task, workspace, commit),
        )


def _fail_task(workspace: Workspace, commit: str) -> None:
    # without an exit status there, `dvc queue kill` signals the recorded pid, and another process may have that by now
    for path in (workspace.tmp / "exps/run").glob(f"{commit}*/{commit}*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "returncode": -9}))
    workspace.dvc("queue", "kill", commit)


def _scratch_folders(workspace: Workspace) -> Iterator[Finding]:
    """Find folders of `--temp` and queued runs; a finished experiment that DVC had no time to collect comes first."""
    exps = workspace.tmp / "exps"
    known = workspace.refs("refs/exps")
    for folder in sorted([*exps.glob("tmp*"), *exps.glob("standalone/tmp*")]):
        git_dir = folder / ".git"
        listed = workspace.git(f"--git-dir={git_dir}", "for-each-ref", "--format=%(refname)", check=False).split()
        finished = [ref for ref in listed if EXPERIMENT.fullmatch(ref) and ref not in known]
        if finished:
            yield Finding(
                f"{workspace.short(folder)}: {finished[0].rpartition('/')[2]}, finished but not collected",
                "collect it, see `dvc exp show`",
                partial(workspace.git, "fetch", "--no-tags", str(git_dir), *(f"{ref}:{ref}" for ref in finished)),
            )
        yield Finding(
            f"{workspace.short(folder)}: the folder of a killed run, in which no process works",
            "remove it",
            partial(shutil.rmtree, folder),
        )


def _rwlocks(workspace: Workspace) -> Iterator[Finding]:
    """Find locks of dead processes: DVC takes them for real where the pid is in use again, or still a zombie's."""
    for path in workspace.rwlocks:
        held = owners(path)
        if held is None:
            yield Finding(f"{workspace.short(path)}: cut off, and DVC fails on it", "remove it", path.unlink)
        elif held:
            dead = ", ".join(sorted({f"`{owner.command}` (process {owner.pid})" for owner in held}))
            yield Finding(f"{workspace.short(path)}: locks of {dead}, which is dead", "remove it", path.unlink)


def _partials(workspace: Workspace, published: list[Path]) -> Iterator[Finding]:
    """Find outs that were half written, or half replaced, when their process died (see `reprise.runtime.atomic`)."""
    for path in sorted(path for folder in published for path in folder.glob(".*.partial")):
        name = path.name.removeprefix(".").removesuffix(".partial").removesuffix(".replaced")
        lock = Lock(path.with_name(name))
        if lock.acquire(wait=False):  # otherwise a living process is at it
            lock.release()
            yield Finding(f"{workspace.short(path)}: half written", "remove it", partial(remove, path))
