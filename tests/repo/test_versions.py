"""A clone becomes a project of its own and takes newer versions in, and what is the team's stays as it is."""

import json
import re
import shutil

import pytest
from ruamel.yaml import YAML

from reprise.params.presets import edited
from reprise.params.reset import parse
from reprise.repo.versions import merge_defaults
from tests.conftest import Workspace, new_repository

CODE, NEW, PAGE = "src/reprise/training/optim.py", "src/reprise/new.py", "docs/page.md"
DEFAULTS, SCHEMA, STAGE = "src/reprise/params/defaults.yaml", "src/reprise/params/schema.py", "stages/evaluate.py"
CORRECTIONS = "data/corrections.csv"
THEIRS = ["dvc.lock", "metrics/test.json", "models/README.md", "README.md", "project/parts.py", CORRECTIONS]
THEIRS += ["data/own/cat/1.jpg"]


def write(workspace, path, text):
    (workspace.path / path).parent.mkdir(parents=True, exist_ok=True)
    (workspace.path / path).write_text(text)


def read(workspace, path):
    return (workspace.path / path).read_text()


def git(workspace, *arguments):
    return workspace.run("git", *arguments).stdout.strip()


def reprise(workspace, *arguments):
    return workspace.reprise(*arguments).stdout.splitlines()


def refused(workspace, *arguments):
    """Return the message of a command that fails."""
    done = workspace.reprise(*arguments, check=False)
    assert done.returncode == 1
    return done.stderr[done.stderr.index("error: ") :]


def state(workspace):
    return git(workspace, "rev-parse", "HEAD"), git(workspace, "status", "--porcelain", ".")


def cloned(upstream, path, folder="."):
    """Clone the first version or, with a folder, put its files there, in a repository with a history of its own."""
    upstream.run("git", "clone", "--quiet", ".", str(path / folder))
    clone = new_repository(path / folder)
    git(clone, "reset", "--quiet", "--hard", "v0.0.1")
    if folder != ".":
        shutil.rmtree(clone.path / ".git")
        write(new_repository(path), "README.md", "of all\n")
        clone.commit()
    return clone


def begun(clone):
    """Return a clone as a project that was started, with results, edits and files of its own."""
    reprise(clone, "start", "Blüten & co")
    git(clone, "checkout", "HEAD~1", "--", *THEIRS[:3])
    for path in THEIRS[1:]:
        write(clone, path, "ours\n")
    write(clone, "params.yaml", read(clone, "params.yaml").replace("  lr: 0.003", "  # we tried 0.7\n  lr: 0.5"))
    write(clone, CODE, "# a line of ours\n" + read(clone, CODE))
    clone.commit()
    return clone


@pytest.fixture(scope="module")
def upstream(reproduced_once, tmp_path_factory):
    """Reprise with its results, at the present version and two later ones."""
    up = reproduced_once.copy(tmp_path_factory.mktemp("versions") / "reprise")
    write(up, "README.md", "# Reprise\n[pages](docs/) and [all](https://a.b) [here](#x)\n")
    write(up, PAGE, "a\nb\nc\n")
    up.commit()
    git(up, "tag", "v0.0.1")
    for path in (SCHEMA, "params.yaml", DEFAULTS):
        field = "    rounds: int" if path == SCHEMA else "  rounds: 2 # how often"
        text = re.sub(r"^ +title:.*\n", "", read(up, path), flags=re.MULTILINE)
        write(up, path, re.sub(r"^ +backbone_lr:", rf"{field}\n\g<0>", text, flags=re.MULTILINE))
    write(up, STAGE, read(up, STAGE).replace("params.evaluate.title", "None"))
    for path in [*THEIRS[:-1], "data/own/.gitkeep"]:
        write(up, path, "# Reprise 2\n[pages](docs/)\n")
    write(up, CODE, read(up, CODE) + "\nSECOND = 2\n")
    write(up, PAGE, "a\nB\nc\n")
    write(up, NEW, "")
    up.commit()
    git(up, "tag", "--annotate", "--message", "second", "v2.9.0")
    write(up, NEW, '"""Newer."""\n')
    up.commit()
    git(up, "tag", "v2.10.0")
    return up


def test_a_clone_becomes_a_project_in_one_commit(upstream, tmp_path):
    clone = cloned(upstream, tmp_path / "clone")
    first = git(clone, "rev-parse", "HEAD")
    reprise(clone, "start", "Blüten & co")
    assert git(clone, "log", "--format=%P", "-1") == first
    assert state(clone)[1] == ""
    record = json.loads(read(clone, "reprise.json"))
    assert (record["commit"], record["tree"]) == (first, git(clone, "rev-parse", f"{first}^{{tree}}"))
    assert f'\nversion = "{record["version"]}"\n' in read(clone, "pyproject.toml")
    assert git(clone, "ls-files", *THEIRS[:3], "metrics") == ""
    assert read(clone, "README.md").startswith("# Blüten & co\n")
    assert read(clone, "README.md").count("\n\n") == 3  # of a title and three paragraphs
    assert read(clone, "docs/reprise.md").endswith("[pages](../docs/) and [all](https://a.b) [here](#x)\n")
    assert parse(read(clone, "params.yaml"))["evaluate"]["title"] == "Blüten & co"
    assert "started already" in refused(clone, "start", "Flowers")


@pytest.mark.parametrize("folder", [".", "a b/flowers"])
def test_an_update_brings_what_is_new_and_leaves_what_is_theirs(upstream, tmp_path, folder):
    project = begun(cloned(upstream, tmp_path / "clone", folder))
    source = [] if folder == "." else [str(upstream.path)]  # of a clone, the address is recorded
    first, before = git(project, "rev-parse", "HEAD"), read(project, "params.yaml")
    theirs = {path: read(project, path) for path in [*THEIRS, "data/own/.gitkeep"]}
    said = reprise(project, "update", *source, "--to", "2.9.0")
    assert {path: read(project, path) for path in theirs} == theirs
    assert state(project)[1] == git(project, "for-each-ref", "refs/reprise") == ""
    assert git(project, "log", "--format=%P", "-1") == first
    assert re.fullmatch("# a line of ours\n.*\nSECOND = 2\n", read(project, CODE), re.DOTALL)
    assert read(project, PAGE) == "a\nB\nc\n"
    assert read(project, "docs/reprise.md") == "# Reprise 2\n[pages](../docs/)\n"
    then = [line for line in before.splitlines() if line and "title:" not in line]
    now = list(filter(None, read(project, "params.yaml").splitlines()))
    assert [line for line in now if line not in then] == ["  rounds: 2 # how often"]
    assert [line for line in now if line in then] == then
    assert now[now.index("  rounds: 2 # how often") + 1].startswith("  backbone_lr:")
    assert "update: params.yaml: train.rounds is new, at its default 2" in said
    assert "update: params.yaml: evaluate.title is gone, it was Blüten & co" in said
    assert "`dvc repro` has to run check, download, preprocess, train, evaluate, export again" in said[-2]
    # the next one, where neither of the two versions is known yet
    project.run("git", "clone", "--quiet", git(project, "rev-parse", "--show-toplevel"), str(tmp_path / "second"))
    second = Workspace(new_repository(tmp_path / "second").path / folder)
    git(second, "rm", "--quiet", CORRECTIONS)  # as a project of a version that had none
    second.commit()
    command = ("python", "-m", "reprise", "update", *source)  # by its own code, which knows the new parameter
    assert "2.9.0 to 2.10.0" in second.run(*command).stdout.splitlines()[0]
    assert read(second, CORRECTIONS) == "id,sha256,label,by,why\n"
    assert read(second, NEW) == '"""Newer."""\n'
    assert json.loads(read(second, "reprise.json"))["commit"] == git(upstream, "rev-parse", "v2.10.0")
    assert "here already" in second.run(*command, check=False).stderr


def test_conflicts_are_named_and_undone_or_resolved_without_a_loss(upstream, tmp_path):
    project = begun(cloned(upstream, tmp_path / "clone"))
    write(project, CODE, read(project, CODE) + "\nOURS = 1\n")
    git(project, "rm", "--quiet", PAGE)
    project.commit()
    before, files = (
        state(project),
        {path: read(project, path) for path in (CODE, "params.yaml", "reprise.json", *THEIRS)},
    )
    assert f"conflicts in {PAGE}, {CODE}: " in refused(project, "update")
    assert "<<<<<<<" in read(project, CODE)
    git(project, "cherry-pick", "--abort")
    assert state(project) == before
    assert {path: read(project, path) for path in files} == files
    refused(project, "update")
    git(project, "checkout", "--ours", CODE)
    git(project, "rm", "--quiet", PAGE)
    git(project, "add", CODE)
    project.run("git", "cherry-pick", "--continue", GIT_EDITOR="true")
    assert state(project)[1] == ""
    assert json.loads(read(project, "reprise.json"))["version"] == "2.10.0"
    assert parse(read(project, "params.yaml"))["train"]["rounds"] == 2


def test_what_cannot_be_updated_is_refused_and_nothing_changes(upstream, tmp_path):
    project = cloned(upstream, tmp_path / "clone")
    assert "`reprise start NAME`" in refused(project, "update")
    record = json.loads(read(begun(project), "reprise.json"))
    cases = [
        ({}, None, "--to=7", "has no version 7; it has 2.10.0, 2.9.0, "),
        ({}, None, str(tmp_path / "nowhere"), "nowhere' does not"),
        ({}, NEW, "--to=2.10.0", NEW),
        ({}, "README.md", "--to=2.10.0", "uncommitted changes (README.md)"),
        ({"tree": "0" * 40}, None, "--to=2.10.0", "is not here"),
        ({"source": ""}, None, "--to=2.10.0", "`reprise update ADDRESS`"),
    ]
    for recorded, edit, argument, message in cases:
        git(project, "stash", "--include-untracked")
        write(project, "reprise.json", json.dumps(record | recorded))
        project.commit()
        write(project, edit or "runs/x", "mine")
        before = state(project)
        assert message in refused(project, "update", argument)
        assert state(project) == before
        assert read(project, edit or "runs/x") == "mine"


OLD = "b: 3\na:\n  one: 1 # first\n  two: 2\n  kwargs: {x: 1}\n"
ADDED = "  c:\n    d: [1] # why\n"


@pytest.mark.parametrize(
    ("mine", "new", "after", "said"),
    [
        (OLD.replace("1 #", "9 #"), OLD.replace("2", "5"), OLD.replace("1 #", "9 #"), []),
        (OLD, OLD + ADDED, OLD + ADDED, ["a.c"]),
        (OLD.replace("b: 3", "z: 1"), OLD, OLD.replace("b: 3", "z: 1"), []),  # a key that the team has replaced
        (OLD.replace("x: 1", "y: 4"), OLD.replace("x: 1", "w: 5"), OLD.replace("x: 1", "y: 4"), []),
        ("# top\n" + OLD, "b: 3\n", "# top\nb: 3\n", ["a"]),
    ],
)
def test_params_gain_and_lose_keys_and_keep_their_values(mine, new, after, said):
    lines = []
    assert edited(mine, lambda tree: lines.extend(merge_defaults(tree, *map(YAML().load, (new, OLD))))) == after
    assert [line.split()[1] for line in lines] == said
