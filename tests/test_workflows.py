"""What CI runs is well formed, keeps its secrets, and holds no logic: the Makefile and the scripts have it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

WORKFLOWS = ROOT / ".github/workflows"
BIN = Path(sys.prefix, "bin")


def lint(*command):
    """Run a linter of this environment; return whether it passed, and what it said."""
    done = subprocess.run([BIN / command[0], *map(str, command[1:])], capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def github_schema(path):
    return lint("check-jsonschema", "--builtin-schema", "vendor.github-workflows", path)


def gitlab_schema(path):
    return lint("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci", path)


def security(path):
    return lint("zizmor", "--offline", "--config", ROOT / ".github/zizmor.yml", path)


@pytest.mark.parametrize(
    ("check", "path"),
    [
        (github_schema, WORKFLOWS / "test.yml"),
        (github_schema, WORKFLOWS / "review.yml"),
        (gitlab_schema, ROOT / ".gitlab-ci.yml"),
        (security, WORKFLOWS),
    ],
)
def test_the_linters_find_nothing(check, path):
    passed, said = check(path)
    assert passed, said


@pytest.mark.parametrize(
    ("check", "name", "old", "new"),
    [
        (github_schema, ".github/workflows/test.yml", "runs-on: ubuntu-latest", "run-on: ubuntu-latest"),
        (gitlab_schema, ".gitlab-ci.yml", "    when: always", "    when: allways"),
        (security, ".github/workflows/review.yml", "pull_request:\n", "pull_request_target:\n"),
        (security, ".github/workflows/review.yml", '"$REPRODUCE"', "${{ github.event.pull_request.title }}"),
        (security, ".github/workflows/review.yml", "contents: read\nconcurrency", "contents: write\nconcurrency"),
    ],
)
@pytest.mark.slow
def test_the_linters_would_find_it(tmp_path, check, name, old, new):
    text = (ROOT / name).read_text()
    assert old in text
    path = tmp_path / ".github/workflows" / Path(name).name
    path.parent.mkdir(parents=True)
    path.write_text(text.replace(old, new))
    assert not check(path)[0]


def jobs(name):
    return yaml.safe_load((WORKFLOWS / name).read_text())["jobs"]


def test_only_the_job_that_runs_the_bases_code_may_write_and_not_for_forks():
    assert yaml.safe_load((WORKFLOWS / "review.yml").read_text())["permissions"] == {"contents": "read"}
    review, comment = jobs("review.yml")["review"], jobs("review.yml")["comment"]
    assert "permissions" not in review
    assert comment["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert "head.repo.full_name == github.repository" in comment["if"]
    (checkout,) = (step for step in comment["steps"] if "checkout" in step.get("uses", ""))
    assert checkout["with"]["ref"] == "${{ github.event.pull_request.base.sha }}"
    assert [step["run"] for step in comment["steps"] if "run" in step] == [
        "python3 -m reprise review --post runs/review/comment.md"
    ]
    assert "secrets." not in str(jobs("review.yml")) + str(jobs("test.yml"))


@pytest.mark.parametrize("name", ["test.yml", "review.yml"])
def test_an_action_is_pinned_to_a_commit(name):
    used = re.findall(r"uses: (\S+)", (WORKFLOWS / name).read_text())
    assert used
    assert [action for action in used if not re.fullmatch(r"actions/[a-z/-]+@[0-9a-f]{40}", action)] == []


def test_both_sites_run_the_gate_and_the_review_on_the_whole_history():
    steps = [step for name in ("test.yml", "review.yml") for job in jobs(name).values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    gitlab = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text())
    assert {"make check", 'make check ARGS="$REPRODUCE"', ".ci/run"} <= set(commands)
    assert (gitlab["check"]["script"], gitlab["test"]["script"]) == (["make check"], [".ci/run"])
    assert gitlab["review"]["script"] == ['make check ARGS="$REPRODUCE"']
    assert gitlab["variables"]["GIT_DEPTH"] == "0"
    for name in ("test.yml", "review.yml"):
        first, *_ = next(iter(jobs(name).values()))["steps"]
        assert first["with"]["fetch-depth"] == 0


def test_the_token_of_gitlab_is_for_the_job_that_runs_the_bases_code_alone():
    gitlab = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text())
    assert [name for name, job in gitlab.items() if isinstance(job, dict) and "environment" in job] == ["comment"]
    assert gitlab["comment"]["environment"]["name"] == "review-comment"
    assert "extends" not in gitlab["comment"]
    for name in ("check", "test", "review"):
        assert gitlab[name]["extends"] == ".prepared"
        assert "REVIEW_TOKEN" not in str(gitlab[name])
    guard = gitlab[".prepared"]["before_script"][0]
    for token, code in (("secret", 1), ("", 0)):
        done = subprocess.run(["sh", "-c", guard], env={"REVIEW_TOKEN": token}, capture_output=True, text=True)
        assert done.returncode == code
        assert ("environment scope" in done.stderr) == bool(token)
        assert "secret" not in done.stderr + done.stdout
