"""What a reviewer of a pull request needs to know, as one page: is dvc.lock fresh, do the results come out again, and
what does the change do to the model.
"""

import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from reprise.comparison.compare import compare
from reprise.comparison.report import write
from reprise.repo.cache import cache_path
from reprise.repo.project import Project
from reprise.repo.revisions import PREDICTIONS, WORKSPACE, Revision, workspace
from reprise.repo.verify import Mismatch, stale
from reprise.runtime.errors import UserError
from reprise.runtime.markup import table, text

MOST = 20  # mismatches that are named


@dataclass(frozen=True)
class Gate:
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
    gates: list[Gate] = field(default_factory=list)
    report: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing stands against the change."""
        return all(gate.passed for gate in self.gates)

    def page(self) -> str:
        """Return the page, Markdown."""
        rows = [(gate.name, "passed" if gate.passed else "**failed**", gate.said) for gate in self.gates]
        parts = [
            f"## Review of {text(self.head)} against {text(self.base)}",
            table(["check", "result", ""], rows),
            *(gate.details for gate in self.gates if gate.details),
            self.report.strip(),
            f"Pictures and the whole report: {self.artifact}",
        ]
        return "\n\n".join(filter(None, parts)) + "\n"


def review(
    project: Project, base: Revision, out: Path, artifact: str, reproduce: bool, fail_on_regression: bool
) -> Review:
    """Review what is checked out against the commit `base`, and write the comparison and its pictures.

    Outs come from the DVC remote or, where none is set up, from the pipeline itself.
    """
    head = project.git("rev-parse", "HEAD").strip()
    uncommitted = " with uncommitted changes" if project.changed("HEAD") else ""
    result = Review(f"{str(base.commit)[:7]} ({base.name})", f"{head[:7]}{uncommitted}", artifact)

    remote = project.dvc("remote", "list").strip()
    if missing(project):
        project.dvc_shown("pull" if remote else "checkout", "--allow-missing")  # what lacks now is found below
    mismatches = stale(project)
    result.gates.append(freshness(mismatches))
    before = recorded(workspace(project))
    if reproduce or (not remote and not mismatches and missing(project)):
        done = project.dvc_shown("repro", *(["--force"] if reproduce else []))
        after = recorded(workspace(project)) if done else None
        result.gates.append(reproduction(before, after, fresh=not mismatches))
    predictions = base.md5(PREDICTIONS)
    if (reproduce or not remote) and predictions and not cache_path(project, predictions).exists():
        reproduce_base(project, base)

    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").unlink(missing_ok=True)
    gate, result.report = comparison(project, str(base.commit), out, fail_on_regression)
    result.gates.append(gate)
    return result


def recorded(revision: Revision) -> dict[str, str]:
    """Return {path: MD5} of the outs that dvc.lock records."""
    return {path: str(out.get("md5")) for path, out in revision.locked("outs").items()}


def missing(project: Project) -> list[str]:
    """Return the outs of dvc.lock that are not in the workspace."""
    return [path for path in workspace(project).locked("outs") if not (project.root / path).exists()]


def reproduce_base(project: Project, base: Revision) -> None:
    """Fill the cache with the base's outs by running its pipeline in a clone; the comparison says what still lacks."""
    commit = str(base.commit)
    print(f"review: the outs of the base, {commit[:7]}, are not in the cache: running its pipeline", file=sys.stderr)
    with TemporaryDirectory(prefix="review-") as folder:
        for command in (["clone", "--quiet", "--no-checkout", str(project.top), "."], ["checkout", "--quiet", commit]):
            subprocess.run(["git", *command], cwd=folder, check=True)
        clone = Project(Path(folder) / project.prefix)
        clone.dvc_shown("config", "--local", "cache.dir", project.dvc("cache", "dir").strip())
        clone.dvc_shown("checkout", "--quiet", "--allow-missing")
        clone.dvc_shown("repro")


def artifact_link(out: str, environment: Mapping[str, str]) -> str:
    """Return where a reader of the page finds the folder with report and pictures, Markdown."""
    if "GITHUB_RUN_ID" in environment:
        run = "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}".format_map(environment)
        return f"[artifact of this run]({run}#artifacts)"
    if "CI_JOB_URL" in environment:
        return f"[artifacts of this job]({environment['CI_JOB_URL']}/artifacts/browse)"
    return f"`{out}`"


def freshness(found: list[Mismatch]) -> Gate:
    """Return the gate: dvc.lock is fresh, from what `stale` has found."""
    name = "dvc.lock is fresh"
    if not found:
        return Gate(name, True, "params, code, data and metrics are the recorded ones")
    rows = [(text(each.path), text(each.stage), text(each.what)) for each in found[:MOST]]
    more = f"\n\nand {len(found) - MOST:,} more" if len(found) > MOST else ""
    listed = table(["what", "stage", "why"], rows)
    return Gate(
        name,
        False,
        "the results are not those of this code, these params and these data; "
        "run `make repro` and commit `dvc.lock` and `metrics`",
        f"<details><summary>Why dvc.lock is stale</summary>\n\n{listed}{more}\n</details>",
    )


def reproduction(before: dict[str, str], after: dict[str, str] | None, fresh: bool) -> Gate:
    """Return the gate: the pipeline gives the recorded outs, {path: MD5} before and after; None: a stage failed.

    A lock that was stale has no say in it: `freshness` has failed already.
    """
    name = "reproduced"
    if after is None:
        return Gate(name, False, "a stage failed, see the log")
    other = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if not other:
        return Gate(name, True, "the same bytes in every out")
    if not fresh:
        return Gate(name, True, "the comparison is of the new results")
    return Gate(name, False, "other bytes than dvc.lock records: " + ", ".join(text(path) for path in other))


def comparison(project: Project, base: str, out: Path, fail_on_regression: bool) -> tuple[Gate, str]:
    """Compare with the base; return the gate, passed if that came about and allows the change, and the report."""
    name = "compared"
    try:
        found = compare(project, base, WORKSPACE)
        report = write(found, out).read_text(encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Gate(name, False, text(error)), ""
    except Exception:  # the page says the rest all the same
        traceback.print_exc()
        return Gate(name, False, "it failed, see the log"), ""
    closed = fail_on_regression and found.regressed
    return Gate(name, not closed, "a regression, see below" if closed else "see below"), report


def merge_base(project: Project, remote: str, branch: str) -> Revision:
    """Return the commit at which the branch that is checked out left `branch`, fetched from the remote if there is one.

    Raises UserError for an unknown branch, for a history that does not reach back so far, or for none in common.
    """
    here, there = f"refs/heads/{branch}", f"refs/remotes/{remote}/{branch}"
    if remote in project.git("remote").split():
        project.git("fetch", "--quiet", "--no-tags", remote, f"+{here}:{there}", check=False)
    tips = (project.git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", check=False) for ref in (there, here))
    tip = next(filter(None, map(str.strip, tips)), None)
    if tip is None:
        raise UserError(f"{branch}: no such branch, here or at {remote}; name the base with --base")
    base = project.git("merge-base", tip, "HEAD", check=False).strip()
    if not base and project.is_shallow:
        raise UserError("a shallow clone: the base is not in it; set fetch-depth: 0, or `git fetch --unshallow`")
    if not base:
        raise UserError(f"{branch} and HEAD have no commit in common; name another base with --base")
    return Revision(project, branch, base)
