"""What a killed DVC leaves behind, found and repaired.

Nothing that a person made is deleted: HEAD moves without touching a file, edits that DVC had set aside come back, a
finished experiment is collected before its temporary folder is removed, and what is ambiguous is left to a person.
Examining only reads; each finding carries its repair.
"""

import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from reprise.repo.headlog import cut_short, left_by_dvc, moves
from reprise.repo.processes import at_rest, git_at_work, owners, rwlocks, scratch
from reprise.repo.project import EXPERIMENT, Project
from reprise.repo.stashes import SEEN, Leftover, applied, dvcs_stashes, forgotten, is_mapping, overwritten, set_aside
from reprise.runtime.atomic import Lock, remove
from reprise.runtime.errors import UserError, listed, say

EXEC = "refs/exps/exec"
# a healthy run leaves EXEC_HEAD and EXEC_APPLY; the others live only while an experiment runs in the workspace
RUNNING = {f"{EXEC}/EXEC_BASELINE", f"{EXEC}/EXEC_BRANCH", f"{EXEC}/EXEC_MERGE"}
WAITING = "refs/exps/stash"
TEMP = "refs/exps/temp"
ALIVE = '"returncode": null'  # in DVC's file on a process
BEFORE = 60  # seconds from the commit of an experiment to the detaching of HEAD for it, at most


def examine(project: Project, published: list[Path]) -> Iterator[Leftover]:
    """Find what crashes left, in the order in which it is to be repaired. published: the folders that hold outs.

    Call it within `at_rest`: whatever is locked then is locked by a dead process.
    """
    # the locks come last: others read them
    for find in (*IN_THE_WAY, _hidden_edits, _queue, _scratch_folders, _rwlocks):
        yield from find(project)
    yield from _partials(project, published)


def repairs(project: Project, published: list[Path]) -> Iterator[Leftover]:
    """Yield each leftover, to be repaired before the next is asked for; what a person has to decide comes last."""
    seen: set[str] = set()
    while True:
        found = (each for each in examine(project, published) if each.repair and each.problem not in seen)
        if (leftover := next(found, None)) is None:
            break
        seen.add(leftover.problem)
        yield leftover
    for left in examine(project, published):  # a repair that did not help, too
        yield Leftover(left.problem, left.remedy, None)
    if scratch(project).exists():
        (scratch(project) / SEEN).touch()


def say_if_needed(project: Project) -> None:
    """Say on stderr if a crash left something that stands in the way of Git, DVC or the user; not while DVC works."""
    with suppress(UserError, FileNotFoundError), at_rest(project):  # without git there is nothing to say
        if any(True for find in IN_THE_WAY for _ in find(project)):
            say("note: a killed DVC left things half done here; `make doctor` repairs them", file=sys.stderr)


def _git_locks(project: Project) -> Iterator[Leftover]:
    """Find lock files of Git, on which each commit and experiment fails. Raises UserError while a git is at work."""
    folders = {project.git_path("."), project.root / project.git("rev-parse", "--git-common-dir").rstrip("\n")}
    locks = sorted({path.resolve() for folder in folders for path in folder.rglob("*.lock") if path.is_file()})
    if locks and (git := git_at_work(project)):
        raise UserError(f"{project.short(locks[0])}: git (process {git[0]}) is at work; wait for it, then try again")
    for lock in locks:
        yield Leftover(f"{project.short(lock)}: no living git process holds it", "remove it", partial(remove, lock))


def _cut_off(project: Project) -> Iterator[Leftover]:
    """Find params.yaml and dvc.lock cut off: DVC was killed when it had opened them to write."""
    for name in ("params.yaml", "dvc.lock"):
        here = project.read(name)
        if is_mapping(here):
            continue
        commits = [*(stash.commit for stash in dvcs_stashes(project)), "HEAD"]
        source = next((commit for commit in commits if is_mapping(project.read(name, commit))), None)
        command = ("restore", f"--source={source}", "--", name)
        if source and here:
            remedy = f"yours to decide: put it right, or `git {' '.join(command)}`"
            yield Leftover(f"{name}: cannot be read as YAML", remedy, None)
        elif source:
            remedy = f"take it from {source[:7]}" + ", your edits that DVC had set aside" * (source != "HEAD")
            yield Leftover(f"{name}: empty or gone", remedy, partial(project.git, *command))


def _killed_run(project: Project) -> Iterator[Leftover]:
    """Find what `dvc exp run` had done to the user's edits, to HEAD and to the index when it was killed.

    HEAD shows what else is DVC's, so it goes back late; the user's edits, with what was staged, come after that.
    """
    exec_refs = project.refs(EXEC)
    steps = {owner.path for path in rwlocks(project) for owner in owners(path) or []}
    running = bool(RUNNING & exec_refs.keys())
    crashed = running or "workspace" in steps  # there: edits stashed, the values of -S being set
    detached = not project.git("symbolic-ref", "-q", "HEAD", check=False)
    left = left_by_dvc(project, crashed) if detached else None
    base = head = project.git("rev-parse", "HEAD").strip()
    if left:
        base = left.commits[0] or left.commits[1]
    elif running:
        base = exec_refs.get(f"{EXEC}/EXEC_HEAD", head)
    branch = f"refs/heads/{left.start}" if left else None if moves(project) else ""
    found = list(_detached_head(project, head, branch, base)) if detached and (crashed or left) else []
    decided = all(finding.repair for finding in found)
    yield from _staged_by_dvc(project, base, everything=bool(found) and decided)
    if EXEC in steps:
        yield from overwritten(project, exec_refs.get(f"{EXEC}/EXEC_MERGE"))
    yield from forgotten(project, [*cut_short(project), *([(left.time - BEFORE, math.inf)] if left else [])])
    yield from found
    yield from set_aside(project)
    if running and decided:
        refs = [ref for ref in exec_refs if not ref.endswith("EXEC_APPLY")]
        problem = f"{EXEC}: DVC's notes on an experiment that was killed; what it had changed is in the working tree"
        drop = "`git checkout . && dvc checkout` drops it with every uncommitted edit"
        remedy = f"remove the notes; then `dvc repro` finishes the work, or {drop}"
        yield Leftover(problem, remedy, partial(_forget_run, project, refs))


def _detached_head(project: Project, head: str, left: str | None, base: str) -> Iterator[Leftover]:
    """Say where HEAD goes back to: the branch that DVC left at `base`; "": unknown; None: the user had detached it."""
    branches = [name for name, tip in project.refs("refs/heads").items() if tip == base]
    candidates = [left] if left in branches else branches if left == "" else []
    problem = f"HEAD is detached at {head[:7]}: DVC had no time to put it back"
    name = (left or "refs/heads/BRANCH").removeprefix("refs/heads/")
    if own := _unreachable(project, head):
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
    elif left:
        yield Leftover(f"{problem}, and {name} is elsewhere by now", f"yours to decide: `git checkout {name}`", None)
    elif head != base:
        yield Leftover(problem, f"back to {base[:7]}", partial(project.git, "update-ref", "--no-deref", "HEAD", base))


def _unreachable(project: Project, head: str) -> list[str]:
    """Return the user's commits behind HEAD that neither a branch, a tag nor a finished experiment holds."""
    scratch = [f"--exclude={name}" for name in ("refs/stash", WAITING, f"{EXEC}/*", f"{TEMP}/*", "refs/exps/celery/*")]
    scratch += ["--exclude=refs/exps/apply/*"]
    own = ("--invert-grep", "--grep=^dvc: commit experiment")
    return project.git("rev-list", *own, head, "--not", *scratch, "--glob=refs/*").split()


def _staged_by_dvc(project: Project, base: str, everything: bool) -> Iterator[Leftover]:
    """Find what DVC staged and, after a run that fails, unstages; what differs on disk may be the user's.

    everything: while HEAD is detached; otherwise what the user stages is not looked at.
    """
    own, apart = str(project.prefix / ".dvc/tmp/"), project.whole.changed()
    staged = project.whole.changed("--cached", base)
    if paths := [path for path in staged if path.startswith(own) or (everything and path not in apart)]:
        unstage = partial(project.whole.git, "reset", "--quiet", base, "--", *paths)
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
    """Find workers of the queue that died, and the experiments that DVC shows as running for ever after that."""
    for path in sorted((scratch(project) / "exps/celery").glob("dvc-exp-worker-*.json")):
        if ALIVE in path.read_text():
            remedy = "note it; `dvc queue start` goes on with the experiments that wait, if there are any"
            yield Leftover(f"{path.stem} of the queue: died", remedy, partial(_note_death, path))
    if not list((scratch(project) / "exps/celery/broker/processed").glob("*.celery.msg")):
        return
    running = r"^([0-9a-f]{7,})\s+(\S*)\s.*\bRunning\s*$"
    for commit, name in re.findall(running, project.dvc("queue", "status"), re.MULTILINE):
        problem = f"experiment {name or commit} of the queue: shown as running, but its worker is dead"
        remedy = "mark it as failed; queue it anew if you still want it"
        yield Leftover(problem, remedy, partial(_fail_task, project, commit))


def _note_death(path: Path) -> None:
    path.write_text(path.read_text().replace(ALIVE, '"returncode": -9'))


def _fail_task(project: Project, commit: str) -> None:
    # without an exit status there, `dvc queue kill` signals the recorded pid, and another process may have that by now
    for path in (scratch(project) / "exps/run").glob(f"{commit}*/{commit}*.json"):
        _note_death(path)
    project.dvc("queue", "kill", commit)


def _hidden_edits(project: Project) -> Iterator[Leftover]:
    """Find changed files that `git status` takes for unchanged: DVC notes their time and size in Git's index."""
    entries = [entry.partition("\t") for entry in project.git("ls-files", "-v", "--stage", "-z").split("\0")[:-1]]
    # "H": not one that a person told Git not to look at
    blobs = {path: stage.split()[2] for stage, _, path in entries if stage.startswith("H 100")}
    files = [path for path in blobs if path.isprintable() and path[0] != '"' and (project.root / path).is_file()]
    names = "".join(f"{path}\n" for path in files)
    # Git keeps CRLF that are in the index already, whatever its filters would make of them
    hashes = partial(project.git, "hash-object", "--stdin-paths", stdin=names, check=False)
    hashed = hashes().split(), hashes("--no-filters").split()
    other = {path for path, *now in zip(files, *hashed, strict=False) if blobs[path] not in now}
    if hidden := sorted(other - set(project.changed())):

        def touch() -> None:
            for path in hidden:
                os.utime(project.root / path)

        problem = f"{listed(hidden)}: changed, and `git status` does not see it, nor does `git checkout` put it back"
        yield Leftover(problem, "make Git look again", touch)


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


IN_THE_WAY = (_git_locks, _cut_off, _killed_run, applied, _scratch_refs)  # of Git, DVC or the user
