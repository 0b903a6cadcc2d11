"""A stranger's path: own photographs, a kept idea, a remote, a colleague's clone, an update, and both gates green."""

import re

import pytest

from tests.conftest import ROOT, Workspace, blocks
from tests.test_commands import make
from tests.test_pipeline import photos, ran

IDENTITY = {"user.name": "Test", "user.email": "test@example.invalid"}


def gate(workspace, *arguments):
    """Run the user's gate; return its page."""
    done = workspace.run("python", "-m", "reprise", "review", *arguments)
    assert workspace.clean()
    return done.stdout


@pytest.mark.slow
def test_own_photographs_reach_a_second_clone_where_both_gates_are_green(reproduced, tmp_path):
    upstream = reproduced.copy(tmp_path / "reprise")
    upstream.run("git", "tag", "v0.0.1")
    reproduced.run("git", "remote", "add", "origin", str(upstream.path))
    reproduced.run("python", "-m", "reprise", "start", "Our photographs")
    reproduced.run("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(tmp_path / "remote.git"))
    reproduced.run("git", "remote", "set-url", "origin", str(tmp_path / "remote.git"))
    reproduced.run("git", "push", "--quiet", "origin", "main")

    reproduced.run("git", "checkout", "--quiet", "-b", "own")
    photos(reproduced.path / "data/own", each=40)
    (recipe,) = re.findall(r"`(git rm .*?)`", (ROOT / "README.md").read_text())
    reproduced.run("sh", "-ec", recipe)
    reproduced.run("dvc", "exp", "run", "-S", "data.name=folder", "-S", "data.test_fraction=0.25")
    reproduced.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    reproduced.commit()
    make(reproduced, "push")
    reproduced.run("git", "push", "--quiet", "origin", "own")
    first = gate(reproduced)
    assert "first data&#58; nothing to compare with" in first
    assert "# Data: folder" in first

    reproduced.run("git", "clone", "--quiet", "--branch", "own", str(tmp_path / "remote.git"), str(tmp_path / "second"))
    second = Workspace(tmp_path / "second")
    for name, value in IDENTITY.items():
        second.run("git", "config", name, value)
    assert gate(second).partition("Pictures")[0] == first.partition("Pictures")[0]
    second.run("git", "push", "--quiet", "origin", "own:main")
    make(second, "pull")
    assert ran(second.run("dvc", "repro")) == [] and second.clean()
    assert "test images of folder" in second.run("python", "src/eval.py").stdout
    assert list((second.path / ".dvc/cache/runs").iterdir())  # a run that somebody has done is not done again

    second.run("git", "checkout", "--quiet", "-b", "idea")
    second.run("dvc", "exp", "run", "-S", "train.lr=0.004")
    second.commit()
    page = gate(second, "--fail-on", "regression")
    assert re.search(r"\| compared \| passed \|", page)
    assert re.search("no difference shown|better", page)

    code = upstream.path / "src/reprise/training/optim.py"
    code.write_text(code.read_text() + "\nNEW = 1\n")
    upstream.commit()
    upstream.run("git", "tag", "v9.0.0")
    weights = (second.path / "models/model.safetensors").read_bytes()
    second.run("git", "checkout", "--quiet", "-b", "newer")
    said = second.run("python", "-m", "reprise", "update").stdout
    assert "has to run check, train again" in said
    (page,) = blocks("docs/updating.md", "bash")
    second.run("bash", "-ec", page.replace("make keep", "python -m reprise keep --epochs 1"))
    assert (second.path / "models/model.safetensors").read_bytes() == weights
    gate(second, "--fail-on", "regression")
    hermetic = ("tests/params", "tests/test_structure.py", "tests/test_workflows.py")  # of the quick ones
    second.run("python", "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *hermetic)
    assert second.clean()
