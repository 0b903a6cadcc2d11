"""What a benchmark claims to prove is proven; the scripts that need no hours run."""

import re
import sys

import pytest

from tests.conftest import ROOT, fresh_clone

sys.path.insert(0, str(ROOT / "benchmarks"))
import same_loss

ONE_EPOCH = ["train.epochs=1", "data.test_fraction=0.8"]


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
