"""A version is given to what is verified, new and not worse than the last release, and to nothing else."""

import re

import pytest

PREDICTIONS = "data/predictions.csv"


def release(workspace, *arguments):
    return workspace.reprise("release", *arguments, check=False)


def refused(workspace, *arguments):
    """Return the message of a release that fails, with no tag made."""
    tags = workspace.run("git", "tag").stdout
    done = release(workspace, *arguments)
    assert done.returncode == 1, done.stdout
    assert workspace.run("git", "tag").stdout == tags
    return done.stderr


def train(workspace, *overrides):
    workspace.set(*overrides)
    workspace.run("dvc", "repro")
    workspace.commit()


@pytest.mark.slow
def test_a_release_is_a_tag_that_gto_lists_and_a_worse_model_gets_none_unless_asked_for(reproduced):
    assert "models/export, which a release hands out, has no model" in refused(reproduced, "v1.1.0")
    assert "without an exported model" in release(reproduced, "v1.1.0", "--anyway").stdout
    train(reproduced, "export.enabled=true")
    done = release(reproduced, "v1.2.0")
    assert done.returncode == 0, done.stderr
    assert re.search(r"Release v1.2.0 of model: test accuracy 0\.\d+, loss \d+\.\d+; no difference shown", done.stdout)
    assert "git push origin model@v1.2.0" in done.stdout
    assert reproduced.run("git", "cat-file", "-t", "model@v1.2.0").stdout == "tag\n"
    assert "v1.2.0" in reproduced.run("gto", "show").stdout
    assert "is that of model@v1.2.0" in refused(reproduced, "1.3.0")

    train(reproduced, "evaluate.calibration=temperature")
    assert "no difference shown against model@v1.2.0" in release(reproduced, "v1.2.1").stdout  # the same weights

    train(reproduced, "train.lr=1e-8", "export.enabled=false")  # an export takes long
    assert re.search(r"worse against model@v1.2.1: -0\.\d+ accuracy", refused(reproduced, "1.10.0"))
    for version in ("1.2.0", "nonsense", "-1"):
        assert f"{version}: " in refused(reproduced, "--anyway", "--", version)
    assert release(reproduced, "1.10.0", "--anyway").returncode == 0
    message = reproduced.run("git", "tag", "--list", "--format=%(contents)", "model@v1.10.0").stdout
    assert "worse against model@v1.2.1" in message

    for version, is_that_of_head in (("v1.2.0", False), ("v1.10.0", True)):
        reproduced.run("dvc", "artifacts", "get", ".", "model", "--rev", version, "--out", f"runs/{version}")
        same = reproduced.run("diff", "-r", f"runs/{version}", "models/export", check=False).returncode == 0
        assert same is is_that_of_head
    assert (reproduced.path / "runs/v1.2.0/model.onnx").exists()

    train(reproduced, "evaluate.calibration=none")
    said = release(reproduced, "2.0.0", "--anyway").stdout
    assert "no difference shown against model@v1.10.0" in said  # 10 is after 2


@pytest.mark.slow
def test_what_is_not_recorded_is_not_released(reproduced):
    reproduced.run("git", "config", "user.name", "")
    assert "a tag needs Git's user.name" in refused(reproduced, "v1.0.0", "--anyway")
    reproduced.run("git", "config", "user.name", "Test")
    (reproduced.path / "metrics/test.json").write_text("{}")
    assert "uncommitted changes (metrics/test.json)" in refused(reproduced, "v1.0.0")
    reproduced.commit()
    assert "not what dvc.lock records: metrics/test.json" in refused(reproduced, "v1.0.0")
    reproduced.run("git", "revert", "--no-edit", "HEAD")
    path = reproduced.path / PREDICTIONS
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"9")
    assert f"not what dvc.lock records: {PREDICTIONS}" in refused(reproduced, "v1.0.0")
