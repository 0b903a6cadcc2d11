"""Review the branch that is checked out, as CI does on a pull request, and write one page about it.

    python src/review.py                                   against main: runs/review/comment.md, report and pictures
    python src/review.py --base develop --reproduce        against another branch; run the whole pipeline anew first
    python src/review.py --post runs/review/comment.md     post the page as a comment, or update the one that is there

Outs come from the DVC remote or, where none is set up, from the pipeline itself. Exits with 1 if dvc.lock is stale, if
the results do not come out again, or if the comparison fails. Posting needs no packages, and these variables, which CI
sets: on GitHub GITHUB_API_URL, GITHUB_REPOSITORY, GITHUB_TOKEN and PULL_REQUEST (its number), on GitLab CI_API_V4_URL,
CI_MERGE_REQUEST_PROJECT_ID, CI_MERGE_REQUEST_IID and REVIEW_TOKEN.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from reprise.runtime.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parent.parent
PREDICTIONS = "data/predictions.csv"
# the stages call `python`: let it be this one, also where the environment is not activated
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def main() -> None:
    """Review and write, or post what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    base = os.environ.get("GITHUB_BASE_REF") or os.environ.get("CI_MERGE_REQUEST_TARGET_BRANCH_NAME") or "main"
    parser.add_argument("--base", default=base, metavar="BRANCH", help="the branch to merge into (here: %(default)s)")
    parser.add_argument("--remote", default="origin", help="the Git remote that has it (default: %(default)s)")
    parser.add_argument("--reproduce", action="store_true", help="run every stage anew")
    parser.add_argument("--fail-on", choices=["regression"], help="exit with 1 also if the model is worse")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/review", help="folder to write to (runs/review)")
    parser.add_argument("--post", type=Path, metavar="PAGE", help="only post this page")
    options = parser.parse_args()
    if options.post:
        post_page(options.post)
    elif not review(options):
        sys.exit(1)


def review(options: argparse.Namespace) -> bool:
    """Write the page, print it, say whether everything passed."""
    from reprise.comparison import review as pages
    from reprise.repo.verify import stale
    from reprise.repo.workspace import Workspace

    workspace = Workspace.at(ROOT)
    base = pages.merge_base(workspace, options.remote, options.base)
    head = workspace.git("rev-parse", "HEAD").strip()
    uncommitted = " with uncommitted changes" if workspace.changed("HEAD") else ""
    result = pages.Review(f"{base[:7]} ({options.base})", f"{head[:7]}{uncommitted}", artifact(options.out))

    remote = workspace.dvc("remote", "list").strip()
    if pages.missing(workspace):
        dvc(ROOT, "pull" if remote else "checkout", "--allow-missing")
    findings = stale(ROOT)
    result.checks.append(pages.freshness(findings))
    before = pages.recorded(workspace)
    if options.reproduce or (not remote and not findings and pages.missing(workspace)):
        done = dvc(ROOT, "repro", *(["--force"] if options.reproduce else []))
        after = pages.recorded(workspace) if done else None
        result.checks.append(pages.reproduction(before, after, fresh=not findings))
    cache = Path(workspace.dvc("cache", "dir").strip())
    if (options.reproduce or not remote) and pages.lacks(cache, pages.recorded(workspace, base), PREDICTIONS):
        reproduce_base(base, cache)

    options.out.mkdir(parents=True, exist_ok=True)
    report, page = options.out / "report.md", options.out / "comment.md"
    report.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "src/compare.py"), base, "--out", str(options.out)]
    command += ["--fail-on", options.fail_on] if options.fail_on else []
    compared = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    sys.stderr.write(compared.stderr)
    result.report = report.read_text(encoding="utf-8") if report.exists() else ""
    result.checks.append(pages.comparison(compared.returncode, bool(result.report), compared.stderr))
    page.write_text(result.page(), encoding="utf-8")
    print(result.page())
    print(f"review: {'passed' if result.passed else 'FAILED'} -> {page}", file=sys.stderr)
    return result.passed


def dvc(folder: Path, *arguments: str) -> bool:
    """Run DVC, its output on stderr; say whether it succeeded. What it could not get is found missing later."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, stdout=sys.stderr).returncode == 0


def reproduce_base(base: str, cache: Path) -> None:
    """Fill the cache with the base's outs by running its pipeline in a clone; the comparison says what still lacks."""
    print(f"review: the outs of the base, {base[:7]}, are not in the cache: running its pipeline", file=sys.stderr)
    with TemporaryDirectory(prefix="review-") as clone:
        for command in (["clone", "--quiet", "--no-checkout", str(ROOT), "."], ["checkout", "--quiet", base]):
            subprocess.run(["git", *command], cwd=clone, check=True)
        dvc(Path(clone), "config", "--local", "cache.dir", str(cache))
        dvc(Path(clone), "checkout", "--quiet", "--allow-missing")
        dvc(Path(clone), "repro")


def artifact(out: Path) -> str:
    """Return where a reader of the page finds the folder with report and pictures, Markdown."""
    found = os.environ
    if "GITHUB_RUN_ID" in found:
        address = f"{found['GITHUB_SERVER_URL']}/{found['GITHUB_REPOSITORY']}/actions/runs/{found['GITHUB_RUN_ID']}"
        return f"[artifact of this run]({address}#artifacts)"
    if "CI_JOB_URL" in found:
        return f"[artifacts of this job]({found['CI_JOB_URL']}/artifacts/browse)"
    return f"`{os.path.relpath(out, ROOT)}`"


def post_page(page: Path) -> None:
    """Post a page as a comment, or update the one that is there."""
    from reprise.comparison.comments import GitHub, GitLab, post

    if not page.exists():
        raise UserError(f"{page}: no such page; `make review` writes it")
    names = {
        GitHub: ("GITHUB_API_URL", "GITHUB_REPOSITORY", "PULL_REQUEST", "GITHUB_TOKEN"),
        GitLab: ("CI_API_V4_URL", "CI_MERGE_REQUEST_PROJECT_ID", "CI_MERGE_REQUEST_IID", "REVIEW_TOKEN"),
    }
    site = GitLab if "CI_API_V4_URL" in os.environ else GitHub
    if lacking := [name for name in names[site] if not os.environ.get(name)]:
        raise UserError(f"{', '.join(lacking)}: not set; posting needs {', '.join(names[site])} in the environment")
    api, project, number, token = (os.environ[name] for name in names[site])
    print(f"review: posted, {post(site(api, project, int(number), token), page.read_text(encoding='utf-8'))}")


if __name__ == "__main__":
    with one_line_errors():
        main()
