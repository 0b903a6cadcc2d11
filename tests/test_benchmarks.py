"""What a benchmark claims to prove is proven; the scripts that need no hours run."""

import os
import re
import sys
import time

import pytest

from tests.conftest import ROOT, fresh_clone

sys.path.insert(0, str(ROOT / "benchmarks"))
import same_loss
import timm_models

ONE_EPOCH = ["train.epochs=1", "data.test_fraction=0.8"]


@pytest.mark.slow
def test_equal_and_different_revisions_are_told_apart(tmp_path):
    clone = fresh_clone(tmp_path / "clone")
    clone.set("data.image_size=16")
    clone.commit()
    clone.run("git", "tag", "before")
    loop = clone.path / "src/reprise/training/train.py"
    loop.write_text(loop.read_text() + "\n# a remark\n")
    clone.commit()
    clone.run("git", "tag", "remark")
    clone.set("train.lr=0.0031")
    clone.commit()
    command = ["python", "benchmarks/same_loss.py"]
    done = clone.run(*command, "before", "remark", *ONE_EPOCH)
    assert done.stdout.startswith("identical: before and remark")
    assert re.search(r"the losses of [1-9]\d* steps", done.stdout)
    done = clone.run(*command, "remark", "HEAD", *ONE_EPOCH, check=False)
    assert done.returncode == 1
    assert "step 2: loss: " in done.stderr  # the first is of the same initial weights
    done = clone.run(*command, "remark", "no-such", *ONE_EPOCH, check=False)
    assert (done.returncode, done.stderr) == (1, "error: no-such: fatal: invalid reference: no-such\n")
    assert clone.run("git", "worktree", "list").stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ([("step 1", "0.5")], [("step 1", "0.5")], None),
        ([("step 1", "0.5"), ("step 2", "0.4")], [("step 1", "0.5"), ("step 2", "0.3")], "step 2: 0.4 / 0.3"),
        ([("step 1", "0.5")], [], "step 1 / nothing: 0.5 / -"),
        ([("step 1", "0.5")], [("weights", "ab")], "step 1 / weights: 0.5 / ab"),
    ],
)
def test_the_first_difference_is_named(one, other, said):
    assert same_loss.first_difference(one, other) == said


@pytest.mark.parametrize(
    ("work", "limit", "said"),
    [
        (lambda: {"outcome": "passes"}, 60, "passes"),
        (lambda: 1 / 0, 60, "traceback: ZeroDivisionError: division by zero"),
        (lambda: os._exit(3), 60, "killed"),
        (lambda: time.sleep(60), 1, "no end after 1 s"),
        (lambda: print("a|b", file=sys.stderr) or {"outcome": "not counted"}, 60, "not counted: a\\|b"),
    ],
)
def test_what_befalls_a_model_in_a_process_of_its_own_is_told(work, limit, said):
    assert timm_models.said(timm_models.apart(work, limit=limit)) == said


@pytest.mark.parametrize(("name", "size"), [("test_vit4", 160), ("lambda_resnet26t", 256)])
def test_models_are_built_without_memory(name, size):
    row = timm_models.built(name)
    assert (row["outcome"], row["size"], row["device"]) == ("passes", size, "meta")
    assert "flops" not in row or row["flops"] > row["parameters"] > 0
