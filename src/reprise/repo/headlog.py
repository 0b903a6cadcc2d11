"""What HEAD's log says of DVC: it detaches HEAD and puts it back twice for an experiment in the workspace.

First while it sets the edits aside and commits them with the run's parameters, then for the run itself.
"""

import itertools
import re
from typing import NamedTuple

from reprise.repo.project import Project
from reprise.repo.revisions import experiments

COMMIT = re.compile("[0-9a-f]{40}")  # DVC goes to whole commit ids
MOVE = re.compile(r"checkout: moving from (\S+) to (\S+)|dvc: Restore HEAD to '(.+)'|(rebase|doctor: ).*")


class Move(NamedTuple):
    """One move of HEAD: Unix time, the commits before and after, and the names of both; before: "" if put back."""

    time: int
    commits: tuple[str, str]
    start: str
    end: str

    @property
    def detaches(self) -> bool:
        """Whether it leaves a branch as DVC does."""
        return bool(self.start) and not COMMIT.fullmatch(self.start) and bool(COMMIT.fullmatch(self.end))

    @property
    def restores(self) -> bool:
        """Whether DVC puts HEAD back on a branch with it."""
        return not self.start and not COMMIT.fullmatch(self.end)


def moves(project: Project) -> list[Move]:
    """Return the moves between branches in HEAD's log, the oldest first."""
    log = ("reflog", "show", "--date=unix", "--format=%gd %H %gs", "HEAD")
    entries = [line.split(" ", 2) for line in project.git(*log, check=False).splitlines()][::-1]
    found, before = [], ""
    for name, commit, subject in entries:
        if move := MOVE.fullmatch(subject):
            start, end, restored, other = move.groups()
            found.append(Move(int(name[6:-1]), (before, commit), start or "", end or restored or other))
        before = commit
    return found


def left_by_dvc(project: Project, crashed: bool) -> Move | None:
    """Return the move with which DVC detached HEAD; None if the user did, or the log is silent.

    crashed: DVC's notes say that it was killed. Without them, it is a move to the commit where HEAD was already, or to
    an experiment, as by `dvc exp apply`.
    """
    last = next((move for move in reversed(moves(project)) if not COMMIT.fullmatch(move.start or move.end)), None)
    known = {str(run.commit) for run in experiments(project)}
    still = last and (crashed or last.commits[0] == last.commits[1] or last.commits[1] in known)
    ran = (project.root / ".dvc/tmp/exps").exists()
    return last if last and last.detaches and still and ran else None


def cut_short(project: Project) -> list[tuple[int, int]]:
    """Return when (from, to, Unix times) DVC committed an experiment and then did not begin it in the workspace.

    It begins with the next detaching: one that ends in a commit of DVC's, or is of the same second and not the first of
    another experiment. Where it fails after longer, or runs elsewhere, this is one too many.
    """
    log = moves(project)
    pairs = [(a, b) for a, b in itertools.pairwise(log) if a.detaches and b.restores]
    committed = [restored.commits[0] != first.commits[1] for first, restored in pairs] + [False]
    found, at = [], 0
    while at < len(pairs):
        (first, restored), following = pairs[at], pairs[at + 1 : at + 2]
        same_second = any(each.time == restored.time for each, _ in following)
        began = bool(following) and (committed[at + 1] or (same_second and not any(committed[at + 2 : at + 3])))
        found += [] if began or committed[at] else [(first.time, restored.time)]
        at += 2 if began else 1
    return found
