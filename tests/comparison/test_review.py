"""`make review`: what CI does on a pull request, here against a bare Git remote on disk."""

import html
import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest

from reprise.comparison.review import bars, merge_base
from reprise.repo.project import Project
from reprise.runtime.errors import UserError
from tests.comparison.test_comments import Site, serving
from tests.conftest import ROOT, Workspace, fresh_clone
from tests.test_pipeline import refused

# stand in for the real ones, which have tests of their own: a comparison that finds a regression, and its report
STAND_INS = {
    "compare": """
from types import SimpleNamespace

def compare(project, base, head):
    return SimpleNamespace(base=base, regressed=True)
""",
    "report": """
def write(found, folder):
    page = folder / "report.md"
    page.write_text(f"# compared with {found.base}")
    return page
""",
}


# a pipeline of two stages in place of the real one: what the review does with stages does not depend on their work
PIPELINE = """
stages:
  train:
    cmd: cp params.yaml model
    params: [train.lr]
    outs: [model]
  evaluate:
    cmd:
    - cp model data/predictions.csv
    - echo {} > metrics/test.json
    deps: [model]
    params: [evaluate.batch_size]
    outs: [data/predictions.csv]
    metrics:
    - metrics/test.json: {cache: false}
"""


@pytest.fixture(scope="session")
def branch_once(once):
    """A branch with a change and its results; beside it a bare remote with its main."""
    return Workspace(once("review", make_branch), shared=True)


def make_branch(path):
    branch = fresh_clone(path)
    for name, code in STAND_INS.items():
        (branch.path / f"src/reprise/comparison/{name}.py").write_text(code)
    (branch.path / "dvc.yaml").write_text(PIPELINE)
    branch.run("dvc", "repro")
    branch.commit()
    branch.run("git", "init", "--quiet", "--bare", "--initial-branch", "main", "../remote.git")
    branch.run("git", "remote", "add", "origin", "../remote.git")
    branch.run("git", "push", "--quiet", "origin", "main")
    branch.run("git", "checkout", "--quiet", "-b", "try")
    branch.set("train.lr=0.5")
    branch.run("dvc", "repro")
    branch.commit()


@pytest.fixture
def branch(branch_once, tmp_path):
    """A private copy of the branch and its remote."""
    shutil.copytree(branch_once.path.parent / "remote.git", tmp_path / "remote.git")
    return branch_once.copy(tmp_path / "clone")


def review(workspace, *arguments, **environment):
    """Return what the page says and how the script ended."""
    done = workspace.run("python", "-m", "reprise", "review", *arguments, check=False, **environment)
    page = (workspace.path / "runs/review/comment.md").read_text()
    assert done.stdout == f"{page}\n"
    assert done.returncode == (1 if "**failed**" in page else 0)
    return page


def results(page):
    """Return {check: whether it passed} of the page's first table."""
    rows = re.findall(r"^\| ([\w. ]+) \| (passed|\*\*failed\*\*) \|", page, re.MULTILINE)
    return {name: said == "passed" for name, said in rows}


def commit(workspace, revision):
    return workspace.run("git", "rev-parse", revision).stdout.strip()


def test_a_branch_is_compared_with_where_it_left_the_remotes_main(branch, tmp_path):
    left = commit(branch, "main")
    branch.run("git", "clone", "--quiet", str(tmp_path / "remote.git"), str(tmp_path / "other"))
    other = Workspace(tmp_path / "other")
    other.run("git", "-c", "user.name=T", "-c", "user.email=t@example.invalid", "commit", "-qm", "on", "--allow-empty")
    other.run("git", "push", "--quiet", "origin", "main")
    page = review(branch)
    assert results(page) == {"dvc.lock is fresh": True, "files are intact": True, "compared": True}
    assert page.startswith(f"## Review of {commit(branch, 'HEAD')[:7]} against {left[:7]} ")
    assert commit(branch, "refs/remotes/origin/main") == commit(other, "HEAD") != left  # it was fetched
    assert f"# compared with {left}" in page
    assert branch.clean()


def test_a_stale_lock_fails_and_says_why(branch):
    branch.set("train.lr=0.002")
    branch.commit()
    page = review(branch)
    assert results(page)["dvc.lock is fresh"] is False
    assert "| params.yaml train.lr | train | modified since dvc.lock was written |" in page
    assert "run `make repro` and commit" in page
    assert "reproduced" not in results(page)


def test_a_base_without_results_is_no_failure_and_what_there_is_is_shown(branch):
    branch.run("git", "checkout", "--quiet", "-b", "begun", "main")
    branch.run("git", "rm", "--quiet", "--cached", "dvc.lock")
    branch.run("git", "commit", "--quiet", "--message", "no results")
    branch.run("git", "checkout", "--quiet", "--force", "try")
    branch.run("git", "merge", "--quiet", "--strategy", "ours", "--message", "merge", "begun")
    (branch.path / "models").mkdir()
    (branch.path / "models/README.md").write_text("# Card of the model")
    page = review(branch, "--base", "begun", "--remote", "none", "--fail-on", "regression")
    assert results(page)["compared"] is True
    assert "first data: nothing to compare with, begun has no image" in html.unescape(page)
    assert "# Card of the model" in page


def test_an_altered_file_of_the_cache_is_named(branch):
    stored = max((branch.path / ".dvc/cache/files").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    stored.chmod(0o644)
    stored.write_bytes(b"other")
    page = review(branch)
    assert results(page)["files are intact"] is False
    assert "altered in the cache" in page


@pytest.mark.parametrize(
    ("bar", "missed"),
    [
        ("accuracy >= 0.9", None),
        ("accuracy>=0.95", "but it is 0.9"),
        ("data.dropped.corrupt <= 0", None),
        ("train.val_loss <= 0.1", "but it is 0.2"),
        ("auroc >= 0", "it is not measured"),
        ("loss <= 10", "but it is nan"),
    ],
)
def test_a_bar_is_reached_or_missed(bar, missed):
    measured = {"accuracy": 0.9, "data.dropped.corrupt": 0, "train.val_loss": 0.2, "auroc": None, "loss": float("nan")}
    (gate,) = bars(SimpleNamespace(all_metrics=measured, params={}), [bar], SimpleNamespace(params={}))
    assert gate.passed is (missed is None)
    assert (missed or bar.partition(" ")[0]) in html.unescape(gate.said)


def test_a_bar_that_the_branch_takes_away_is_named():
    base = SimpleNamespace(params={"review.require": ["accuracy >= 0.9"], "review.fail_on": "regression"})
    (gate,) = bars(SimpleNamespace(all_metrics={}, params={"review.fail_on": None}), [], base)
    said = html.unescape(gate.said)
    assert "review.fail_on is no longer regression" in said
    assert "accuracy >= 0.9 is no longer asked for" in said


@pytest.mark.slow
def test_without_a_remote_what_a_fresh_clone_lacks_is_reproduced_on_both_sides(branch, tmp_path):
    branch.run("git", "push", "--quiet", "origin", "try")
    branch.run("git", "clone", "--quiet", "--branch", "try", str(tmp_path / "remote.git"), str(tmp_path / "runner"))
    runner = Workspace(tmp_path / "runner")
    page = review(runner, GITHUB_BASE_REF="main")
    assert results(page) == {
        "dvc.lock is fresh": True,
        "reproduced": True,
        "files are intact": True,
        "compared": True,
    }
    assert "the same bytes in every out" in page
    assert runner.clean()


def test_results_that_do_not_come_out_again_fail(branch):
    (metrics,) = branch.path.glob("metrics/test.json")
    written = json.loads(metrics.read_text())
    lock = branch.path / "dvc.lock"
    before = branch.run("md5sum", str(metrics)).stdout.split()[0]
    metrics.write_text(json.dumps(written | {"accuracy": 0.999}, indent=2) + "\n")  # too good, and recorded as such
    lock.write_text(lock.read_text().replace(before, branch.run("md5sum", str(metrics)).stdout.split()[0]))
    branch.commit()
    page = review(branch, "--reproduce")
    assert results(page) == {
        "dvc.lock is fresh": True,
        "reproduced": False,
        "files are intact": True,
        "compared": True,
    }
    assert "other bytes than dvc.lock records: metrics/test.json" in page


def test_the_base_must_be_there(branch, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such branch, here or at origin"):
        merge_base(Project(branch.path), "origin", "nowhere")
    branch.run("git", "push", "--quiet", "origin", "try")
    address = f"file://{tmp_path}/remote.git"  # by a path, Git would copy the whole history
    branch.run("git", "clone", "--quiet", "--branch", "try", "--depth=1", address, str(tmp_path / "shallow"))
    shallow = Workspace(tmp_path / "shallow")
    said = refused(shallow.run("python", "-m", "reprise", "review", check=False))
    assert "shallow clone" in said
    assert "fetch-depth: 0" in said
    branch.run("git", "checkout", "--quiet", "--orphan", "alone")
    branch.commit()
    with pytest.raises(UserError, match="no commit in common"):
        merge_base(Project(branch.path), "origin", "main")


@pytest.mark.slow
def test_a_regression_fails_where_that_is_asked_for_and_a_comparison_that_fails_always(branch):
    assert results(review(branch))["compared"] is True
    page = review(branch, "--fail-on", "regression")
    assert results(page)["compared"] is False
    assert "# compared with" in page
    failing = "from reprise.runtime.errors import UserError\n\ndef compare(*_):\n    raise {}"
    for error, said in (
        ("UserError('no @predictions there')", "no &#64;&#8203;predictions there"),
        ("ValueError('a bug')", "it failed, see the log"),
    ):
        (branch.path / "src/reprise/comparison/compare.py").write_text(failing.format(error))
        page = review(branch)
        assert results(page)["compared"] is False
        assert said in page
        assert "# compared with" not in page  # of the review before


def test_posting_needs_no_packages_and_updates_the_comment(tmp_path):
    here = Workspace(ROOT)
    page = tmp_path / "page.md"
    page.write_text("## Review\n\n@everyone\n")
    site = Site("github")
    # -S: without any installed package, as in the job that holds the token
    command = (sys.executable, "-S", "-m", "reprise", "review", "--post", str(page))
    known = {"GITHUB_REPOSITORY": "own/er", "PULL_REQUEST": "7", "GITHUB_TOKEN": "secret"}
    with serving(site.answer) as api:
        for _ in range(2):
            here.run(*command, GITHUB_API_URL=api, **known)
        said = refused(here.run(*command, GITHUB_API_URL=api, **known | {"GITHUB_TOKEN": ""}, check=False))
    assert "GITHUB_TOKEN: not set" in said
    (comment,) = site.comments
    assert comment["text"].endswith("@\u200beveryone\n")
