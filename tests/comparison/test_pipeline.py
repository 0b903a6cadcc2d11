"""From `dvc repro` to the verdict: a longer training against a short one, on the real pipeline."""

import json
import re

import pytest

from tests.conftest import TINY


@pytest.mark.slow
def test_a_longer_training_is_better_and_nothing_is_checked_out_to_say_so(reproduced):
    assert "train.epochs=2" in TINY
    reproduced.run("git", "checkout", "--quiet", "-b", "better")
    reproduced.run("dvc", "exp", "run", "-S", "train.epochs=4", "--name", "longer")
    reproduced.commit()
    reproduced.run("git", "checkout", "--quiet", "main")
    reproduced.run("dvc", "checkout", "--quiet")
    for name in ("longer", "better"):
        command = ("python", "-m", "reprise", "compare", "main", name, "--out", "runs/out", "--fail-on", "regression")
        assert reproduced.run(*command).stdout.startswith("better: accuracy 0.")
    assert reproduced.clean()
    out = reproduced.path / "runs/out"
    report = (out / "report.md").read_text()
    assert report.startswith("# Better: better (")
    assert "| train.epochs | 2 | 4 |" in report
    pictures = set(re.findall(r"!\[.*?\]\((.*?)\)", report))
    assert pictures >= {"fixed.svg", "curves.svg", "classes.svg", "reliability.svg", "confusion.svg"}
    assert all((out / name).stat().st_size > 500 for name in pictures)
    svgs = "".join(path.read_text() for path in out.glob("*.svg"))
    assert "http" not in svgs.replace("http://www.w3.org/2000/svg", "")
    drawn = json.loads(reproduced.run("dvc", "plots", "diff", "main", "better", "--json").stdout)["data"]
    assert any(name.endswith("Loss") for name in drawn)
