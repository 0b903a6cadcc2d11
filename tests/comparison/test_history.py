"""`reprise history`: the metrics of each commit, in order, also where some are missing, broken or not committed."""

import json
import re
import xml.etree.ElementTree

import pytest

from reprise.comparison.history import chosen, history, picture, table
from reprise.repo.project import Project
from reprise.runtime.errors import UserError
from tests.conftest import Workspace


@pytest.fixture
def branch(project):
    """A project without metrics."""
    project.write("dvc.yaml", "")
    project.commit()
    return project


def write(branch, content, message=None):
    branch.write("metrics/test.json", content if isinstance(content, str) else json.dumps(content))
    if message:
        branch.git("add", "--all")
        branch.git("commit", "--quiet", "--message", message)


def show(branch, *names):
    points = history(Project.find(branch.path))
    svg = picture(points, chosen(points, names))
    return table(points, chosen(points, names)).splitlines(), xml.etree.ElementTree.fromstring(svg), svg


def test_each_change_of_the_metrics_is_a_line_and_a_dot_in_the_order_of_the_commits(branch):
    write(branch, {"accuracy": 0.5, "loss": 1.25, "images": 100}, "first <script>")
    write(branch, "{", "broken")
    branch.write("README.md", "x")
    branch.commit()
    write(branch, '{"accuracy": 0.75, "loss": NaN, "ece": null, "images": 100}', "second" + "x" * 80)
    write(branch, {"accuracy": 0.9, "loss": 0.5, "images": 100})
    lines, svg, text = show(branch)
    assert lines[0].split() == ["commit", "accuracy", "loss"]
    assert [line.split()[1:4] for line in lines[1:]] == [
        ["0.5000", "1.2500", "first"],
        ["0.7500", "nan", f"second{'x' * 41}..."],
        ["0.9000", "0.5000", "not"],
    ]
    assert lines[-1].startswith("workspace ")
    circles = svg.findall(".//{*}circle")
    assert len(circles) == 3 + 2  # NaN is no dot
    assert "<script>" not in text and ">test accuracy<" in text
    assert len(svg.findall(".//{*}line")) == 3  # intervals, of accuracy only
    named = [label.text for label in svg.findall(".//{*}text") if "rotate" in label.get("transform", "")]
    assert named == [line.split()[0] for line in lines[1:]]
    heights = [float(circle.get("cy")) for circle in circles[:3]]
    assert heights == sorted(heights, reverse=True)
    assert not re.search(r"href|http(?!://www\.w3\.org/2000/svg)", text)


def test_a_branch_shows_merges_as_one_commit_and_only_metrics_that_are_asked_for(branch):
    write(branch, {"accuracy": 0.5, "ece": 0.1}, "base")
    branch.git("checkout", "--quiet", "-b", "side")
    write(branch, {"accuracy": 0.6, "ece": 0.1}, "one try")
    write(branch, {"accuracy": 0.7, "ece": 0.2}, "another")
    branch.git("checkout", "--quiet", "main")
    branch.git("merge", "--quiet", "--no-ff", "--message", "merge side", "side")
    lines, _, _ = show(branch, "ece")
    assert [line.split()[1:] for line in lines] == [["ece"], ["0.1000", "base"], ["0.2000", "merge", "side"]]
    with pytest.raises(UserError, match="recal: no such metric; there are accuracy, ece"):
        show(branch, "recal")


def test_no_metrics_and_a_shallow_clone_are_said(branch, tmp_path):
    with pytest.raises(UserError, match="no commit of this branch has it"):
        show(branch)
    write(branch, {"accuracy": 0.5}, "one")
    write(branch, {"accuracy": 0.6}, "two")
    branch.git("clone", "--quiet", "--depth=1", f"file://{branch.path}", str(tmp_path / "shallow"))
    shallow = Workspace(tmp_path / "shallow")
    done = shallow.reprise("history")
    assert "shallow clone" in done.stderr
    assert "0.6000" in done.stdout
    assert done.stdout.splitlines()[-1] == "history: test metrics, 1 point -> runs/history.svg"
    assert (shallow.path / "runs/history.svg").read_text().startswith("<svg")
