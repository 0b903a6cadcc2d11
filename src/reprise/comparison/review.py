"""The review of a pull request, on one page: is dvc.lock fresh, are the results reproduced, is the model better."""

import math
import re
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from reprise.comparison.changes import different
from reprise.comparison.compare import compare
from reprise.comparison.pairing import OtherDataError
from reprise.comparison.report import write
from reprise.params.load import load_params
from reprise.repo.project import Project
from reprise.repo.revisions import PREDICTIONS, WORKSPACE, Revision
from reprise.repo.verify import Mismatch, stale, verify
from reprise.runtime.errors import UserError, say
from reprise.runtime.markup import table, text

MOST = 20  # mismatches that are named


@dataclass(frozen=True)
class Gate:
    """The result of one check. said: one line of Markdown; details: Markdown that folds away."""

    name: str
    passed: bool
    said: str
    details: str = ""


def review(
    project: Project, base: Revision, out: Path, artifact: str, reproduce: bool, fail_on_regression: bool
) -> tuple[str, bool]:
    """Review what is checked out against the commit `base`; write the comparison and its pictures into a folder.

    Returns the page, Markdown, and whether every check has passed. Outs come from the DVC remote or, where none is set
    up, from the pipeline itself. artifact: where a reader finds the pictures, Markdown.
    """
    head = project.git("rev-parse", "HEAD")[:7] + " with uncommitted changes" * bool(project.changed("HEAD"))
    remote = project.dvc("remote", "list").strip()
    if missing(project):
        project.dvc_shown("pull" if remote else "checkout", "--allow-missing")  # what lacks now is found below
    mismatches = stale(project)
    gates = [freshness(mismatches)]
    before = Revision(project).md5s("outs")
    if reproduce or (not remote and not mismatches and missing(project)):
        done = project.dvc_shown("repro", *["--force"] * reproduce)
        after = Revision(project).md5s("outs") if done else None
        gates.append(reproduction(before, after, fresh=not mismatches))
    predictions = base.md5(PREDICTIONS)
    if (reproduce or not remote) and predictions and not project.cache_path(predictions).exists():
        reproduce_base(project, str(base.commit))  # the comparison says what still lacks

    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").unlink(missing_ok=True)
    params = load_params(project.root / "params.yaml").review
    fail_on_regression |= params.fail_on == "regression"
    gate, report = comparison(project, base, out, fail_on_regression)
    gates += [intact(verify(project).mismatches), *bars(Revision(project), params.require, base), gate]
    rows = [[each.name, "passed" if each.passed else "**failed**", each.said] for each in gates]
    parts = [
        f"## Review of {text(head)} against {text(f'{str(base.commit)[:7]} ({base.name})')}",
        table(["check", "result", ""], rows),
        *(each.details for each in gates),
        report.strip(),
        f"Pictures and the whole report: {artifact}",
    ]
    return "\n\n".join(filter(None, parts)) + "\n", all(each.passed for each in gates)


def missing(project: Project) -> bool:
    """Return whether an out of dvc.lock is not in the workspace."""
    return not all((project.root / path).exists() for path in Revision(project).locked("outs"))


def reproduce_base(project: Project, commit: str) -> None:
    """Fill the cache with the outs of a commit by running its pipeline in a clone."""
    say(f"review: the outs of the base, {commit[:7]}, are not in the cache: running its pipeline", file=sys.stderr)
    with TemporaryDirectory(prefix="review-") as folder:
        for command in (["clone", "--quiet", "--no-checkout", str(project.top), "."], ["checkout", "--quiet", commit]):
            subprocess.run(["git", *command], cwd=folder, check=True)
        clone = Project(Path(folder) / project.prefix)
        clone.dvc_shown("config", "--local", "cache.dir", project.dvc("cache", "dir").strip())
        clone.dvc_shown("checkout", "--quiet", "--allow-missing")
        clone.dvc_shown("repro")


def artifact_link(out: str, environment: Mapping[str, str]) -> str:
    """Return where a reader of the page finds the folder `out` with report and pictures: Markdown, a link within CI."""
    if "GITHUB_RUN_ID" in environment:
        run = "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}".format_map(environment)
        return f"[artifact of this run]({run}#artifacts)"
    if "CI_JOB_URL" in environment:
        return f"[artifacts of this job]({environment['CI_JOB_URL']}/artifacts/browse)"
    return f"`{out}`"


def freshness(found: list[Mismatch]) -> Gate:
    """Return the check whether dvc.lock is fresh, from what `stale` has found."""
    if not found:
        return Gate("dvc.lock is fresh", True, "params, code, data and metrics are the recorded ones")
    rows = [[*map(text, mismatch)] for mismatch in found[:MOST]]
    more = f"\n\nand {len(found) - MOST:,} more" if len(found) > MOST else ""
    listed = table(["what", "stage", "why"], rows)
    why = f"<details><summary>Why dvc.lock is stale</summary>\n\n{listed}{more}\n</details>"
    said = "the results are not those of this code, these params and these data; "
    said += "run `make repro` and commit `dvc.lock` and `metrics`"
    return Gate("dvc.lock is fresh", False, said, why)


def reproduction(before: dict[str, str | None], after: dict[str, str | None] | None, fresh: bool) -> Gate:
    """Return the check whether the pipeline gives the recorded outs, {path: MD5} before and after.

    after: None if a stage failed. fresh: whether dvc.lock was; if not, `freshness` has failed already, not this.
    """
    if after is None:
        return Gate("reproduced", False, "a stage failed, see the log")
    other = [path for path, _, _ in different(before, after)]
    if not other:
        return Gate("reproduced", True, "the same bytes in every out")
    if not fresh:
        return Gate("reproduced", True, "the comparison is of the new results")
    return Gate("reproduced", False, f"other bytes than dvc.lock records: {', '.join(map(text, other))}")


def intact(found: list[Mismatch]) -> Gate:
    """Return the check whether every file is what dvc.lock records, from what `verify` has found."""
    if not found:
        return Gate("files are intact", True, "workspace and cache hold the recorded bytes")
    named = ", ".join(text(f"{path} ({what})") for path, _, what in found[:MOST])
    return Gate("files are intact", False, f"`make verify` says the way out: {named}")


def bars(head: Revision, required: list[str], base: Revision) -> list[Gate]:
    """Return the check whether the metrics reach the bars of `review.require`, and what of base's is gone."""
    missed, measured = [], head.all_metrics if required else {}
    gone = [f"{bar} is no longer asked for" for bar in base.params.get("review.require") or [] if bar not in required]
    if base.params.get("review.fail_on") and not head.params.get("review.fail_on"):
        gone.insert(0, f"review.fail_on is no longer {base.params['review.fail_on']}")
    for bar in required:
        name, sign, number = re.split(r" *(>=|<=) *", bar)
        value = measured.get(name)
        distance = float(value) - float(number) if isinstance(value, int | float) else math.nan
        if not (distance >= 0 if sign == ">=" else distance <= 0):
            missed.append(f"{bar}, but {'it is not measured' if value is None else f'it is {value}'}")
    said = ", ".join(map(text, [*(missed or required), *gone]))
    return [Gate("bars", not missed, f"missed: {said}" if missed else said)] if required or gone else []


def first_data(project: Project, base: Revision) -> tuple[Gate, str]:
    """Return the check for data that the base has not, and in place of a comparison the data's report and the card."""
    verdict = f"first data: nothing to compare with, {base.name} has no image of this test split"
    pages = {"Data": "data/report/report.md", "Model": "models/README.md"}
    # of a page without what stands before its title, such as a metadata block
    read = {name: f"\n{project.read(path)}".partition("\n# ")[2] for name, path in pages.items()}
    shown = [f"<details><summary>{name}</summary>\n\n# {said}\n</details>" for name, said in read.items()]
    return Gate("compared", True, text(verdict)), "\n\n".join(shown)


def comparison(project: Project, base: Revision, out: Path, fail_on_regression: bool) -> tuple[Gate, str]:
    """Compare with the base; return the check whether that worked and allows the change, and the report."""
    passed, said, report = False, "it failed, see the log", ""
    if not base.read("dvc.lock"):
        return first_data(project, base)
    try:
        found = compare(project, str(base.commit), WORKSPACE)
        report = write(found, out).read_text(encoding="utf-8")
        passed = not (fail_on_regression and found.regressed)
        said = "see below" if passed else "a regression, see below"
    except OtherDataError:
        return first_data(project, base)
    except UserError as error:
        names = [revision.params.get("data.name") for revision in (base, Revision(project))]
        if names[0] == "digits" != names[1]:  # which a clone of Reprise begins with, and nobody has pushed
            return first_data(project, base)
        say(f"error: {error}", file=sys.stderr)
        said = text(error)
    except Exception:  # the page says the rest all the same
        traceback.print_exc()
    return Gate("compared", passed, said), report


def merge_base(project: Project, remote: str, branch: str) -> Revision:
    """Return the last commit that HEAD and `branch`, which is fetched from the remote if there is one, have in common.

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
