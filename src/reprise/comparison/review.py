"""What a reviewer of a pull request needs to know, as one page: is dvc.lock fresh, do the results come out again, and
what does the change do to the model.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from reprise.repo.verify import Finding
from reprise.repo.workspace import Workspace
from reprise.runtime.errors import UserError
from reprise.runtime.markup import table, text

MOST = 20  # findings that are named


@dataclass(frozen=True)
class Check:
    """One line of the page. said: Markdown; details: Markdown that folds away."""

    name: str
    passed: bool
    said: str
    details: str = ""


@dataclass
class Review:
    """base, head: commits. report: the comparison, Markdown. artifact: where the pictures are."""

    base: str
    head: str
    artifact: str
    checks: list[Check] = field(default_factory=list)
    report: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing stands against the change."""
        return all(check.passed for check in self.checks)

    def page(self) -> str:
        """Return the page, Markdown."""
        rows = [(check.name, "passed" if check.passed else "**failed**", check.said) for check in self.checks]
        parts = [
            f"## Review of {text(self.head)} against {text(self.base)}",
            table(["check", "result", ""], rows),
            *(check.details for check in self.checks if check.details),
            self.report.strip(),
            f"Pictures and the whole report: {self.artifact}",
        ]
        return "\n\n".join(filter(None, parts)) + "\n"


def freshness(findings: list[Finding]) -> Check:
    """Return the check that dvc.lock is fresh, from what `stale` has found."""
    name = "dvc.lock is fresh"
    if not findings:
        return Check(name, True, "params, code, data and metrics are the recorded ones")
    rows = [(text(finding.path), text(finding.stage), text(finding.what)) for finding in findings[:MOST]]
    more = f"\n\nand {len(findings) - MOST:,} more" if len(findings) > MOST else ""
    listed = table(["what", "stage", "why"], rows)
    return Check(
        name,
        False,
        "the results are not those of this code, these params and these data; "
        "run `make repro` and commit `dvc.lock` and `metrics`",
        f"<details><summary>Why dvc.lock is stale</summary>\n\n{listed}{more}\n</details>",
    )


def reproduction(before: dict[str, str], after: dict[str, str] | None, fresh: bool) -> Check:
    """Return the check that the pipeline gave the recorded outs, {path: MD5} before and after; None: a stage failed.

    A lock that was stale has no say in it: `freshness` has failed already.
    """
    name = "reproduced"
    if after is None:
        return Check(name, False, "a stage failed, see the log")
    other = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if not other:
        return Check(name, True, "the same bytes in every out")
    if not fresh:
        return Check(name, True, "the comparison is of the new results")
    return Check(name, False, "other bytes than dvc.lock records: " + ", ".join(text(path) for path in other))


def comparison(code: int, written: bool, errors: str) -> Check:
    """Return the check that the comparison came about and, where it is a gate, lets the change pass."""
    name = "compared"
    if written:
        return Check(name, code == 0, "see below" if code == 0 else "a regression, see below")
    said = [line.removeprefix("error: ") for line in errors.splitlines() if line.startswith("error: ")]
    return Check(name, False, text(said[-1]) if said else "it failed, see the log")


def merge_base(workspace: Workspace, remote: str, branch: str) -> str:
    """Return the commit at which the branch that is checked out left `branch`, fetched from the remote if there is one.

    Raises UserError for an unknown branch, for a history that does not reach back so far, or for none in common.
    """
    here, there = f"refs/heads/{branch}", f"refs/remotes/{remote}/{branch}"
    if remote in workspace.git("remote").split():
        workspace.git("fetch", "--quiet", "--no-tags", remote, f"+{here}:{there}", check=False)
    tips = (
        workspace.git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", check=False) for ref in (there, here)
    )
    tip = next(filter(None, map(str.strip, tips)), None)
    if tip is None:
        raise UserError(f"{branch}: no such branch, here or at {remote}; name the base with --base")
    base = workspace.git("merge-base", tip, "HEAD", check=False).strip()
    if not base and workspace.git("rev-parse", "--is-shallow-repository").strip() == "true":
        raise UserError("a shallow clone: the base is not in it; set fetch-depth: 0, or `git fetch --unshallow`")
    if not base:
        raise UserError(f"{branch} and HEAD have no commit in common; name another base with --base")
    return base


def recorded(workspace: Workspace, revision: str | None = None) -> dict[str, str]:
    """Return {path: MD5} of the outs that dvc.lock records, of a commit or, without one, of the workspace."""
    if revision:
        lock = workspace.git("show", f"{revision}:dvc.lock", check=False)
    else:
        path = workspace.root / "dvc.lock"
        lock = path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        stages: dict[str, Any] = (yaml.safe_load(lock) or {}).get("stages", {})
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        raise UserError("dvc.lock: not readable; `git checkout HEAD -- dvc.lock` brings it back") from None


def missing(workspace: Workspace) -> list[str]:
    """Return the outs of dvc.lock that are not in the workspace."""
    return [path for path in recorded(workspace) if not (workspace.root / path).exists()]


def lacks(cache: Path, outs: dict[str, str], path: str) -> bool:
    """Say whether an out is recorded that DVC's cache does not hold."""
    md5 = outs.get(path)
    return md5 is not None and not (cache / "files/md5" / md5[:2] / md5[2:]).exists()
