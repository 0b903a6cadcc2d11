"""A trained model outlives a change of the code exactly where a short training shows that no bit changes."""

import hashlib
import json
import re

import pytest
import yaml

CODE = "src/reprise/training/optim.py"
WEIGHTS, CARD, PAGE = "models/model.safetensors", "models/model.json", "models/README.md"


def edit(workspace, path, before, after):
    """Change one place of a file, and commit."""
    text = (workspace.path / path).read_text()
    assert text.count(before) == 1
    (workspace.path / path).write_text(text.replace(before, after))
    workspace.commit()


def add(workspace, line):
    (workspace.path / CODE).write_text((workspace.path / CODE).read_text() + line)
    workspace.commit()


def keep(workspace, *arguments):
    return workspace.run("python", "-m", "reprise", "keep", *arguments, check=False)


def state(workspace):
    """Return what is recorded of the training, the model's card and page, and its weights."""
    recorded = yaml.safe_load((workspace.path / "dvc.lock").read_text())["stages"]["train"]
    return [recorded, *((workspace.path / path).read_bytes() for path in (CARD, PAGE, WEIGHTS))]


@pytest.mark.slow
def test_a_model_is_kept_where_both_codes_train_the_same_bits(reproduced):
    add(reproduced, "\nSECOND = 2\n")
    before, card = state(reproduced), json.loads((reproduced.path / CARD).read_text())
    done = keep(reproduced)
    assert done.returncode == 0, done.stderr
    assert "train the same bits for 2 epochs" in done.stdout
    after = json.loads((reproduced.path / CARD).read_text())
    assert after["kept"] == [card["record"]["code_sha256"]] != [after["record"]["code_sha256"]]
    assert {key for key in card if card[key] != after[key]} == {"record", "kept", "checksum"}
    said = reproduced.run("dvc", "repro").stdout
    assert "'train' didn't change" in said
    assert (reproduced.path / WEIGHTS).read_bytes() == before[3]
    assert f"gives the same bits as {card['record']['code_sha256']}" in (reproduced.path / PAGE).read_text()
    reproduced.commit()
    reproduced.run("python", "-m", "reprise", "verify")
    reproduced.run("git", "worktree", "prune")
    assert len(reproduced.run("git", "worktree", "list").stdout.splitlines()) == 1
    # and once more: what was kept is the base of the next proof
    add(reproduced, "\nTHIRD = 3\n")
    assert keep(reproduced, "--epochs", "1").returncode == 0
    kept = json.loads((reproduced.path / CARD).read_text())["kept"]
    assert kept == [card["record"]["code_sha256"], after["record"]["code_sha256"]]


def test_comments_need_no_training(reproduced):
    add(reproduced, "# a remark\n")
    done = keep(reproduced)
    assert "nothing but comments" in done.stdout
    assert "epoch" not in done.stderr
    assert "'train' didn't change" in reproduced.run("dvc", "repro").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "before", "after", "message"),
    [
        ("params.yaml", "seed: 0", "seed: 1", "train.seed (was 0, is 1)"),
        ("src/reprise/training/losses.py", "import", "import sys\n\nsys.exit(3)\nimport", "failed in a tree"),
    ],
)
def test_nothing_is_recorded_where_it_is_not_shown(reproduced, path, before, after, message):
    text = (reproduced.path / path).read_text()
    if path == "params.yaml":
        reproduced.set("train.seed=1")
    else:
        (reproduced.path / path).write_text(text.replace(before, after, 1))
    reproduced.commit()
    old = state(reproduced)
    done = keep(reproduced)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr.rpartition("error: ")[2]
    assert state(reproduced) == old


@pytest.mark.slow
def test_the_epochs_reach_beyond_a_frozen_backbone_and_a_merge_commit_is_a_base(reproduced):
    reproduced.run("git", "checkout", "--quiet", "-b", "side")
    reproduced.commit()
    reproduced.run("git", "checkout", "--quiet", "main")
    reproduced.run("git", "merge", "--quiet", "--no-ff", "--no-commit", "side")
    reproduced.set("train.epochs=3", "train.freeze_epochs=2")
    reproduced.run("dvc", "repro", "train")
    reproduced.commit()
    assert len(reproduced.run("git", "log", "-1", "--format=%P").stdout.split()) == 2
    add(reproduced, "\nSECOND = 2\n")
    assert "train the same bits for 3 epochs" in keep(reproduced, "--epochs", "1").stdout


def test_weights_that_are_not_there_are_named_before_anything_is_trained(reproduced):
    add(reproduced, "\nSECOND = 2\n")
    (reproduced.path / WEIGHTS).unlink()
    assert "`dvc checkout models/model.safetensors`" in keep(reproduced).stderr


@pytest.mark.slow
def test_another_card_and_other_bits_are_named_and_a_refusal_does_not_stand_in_the_way_of_the_next(reproduced):
    old, seed = state(reproduced), ("seed=made.params.seed,", "seed=made.params.seed + 1,")
    edit(reproduced, "src/reprise/training/result.py", *seed)
    done = keep(reproduced, "--epochs", "1")
    assert done.returncode == 1
    assert "first in models/model.json: its training" in done.stderr
    edit(reproduced, "src/reprise/training/result.py", *reversed(seed))
    text = (reproduced.path / CODE).read_text()
    found = re.search(r"^def create_optimizer\(.*?\n    \"\"\".*?\"\"\"\n", text, re.DOTALL | re.MULTILINE)
    edit(reproduced, CODE, found[0], found[0] + "    params = params.model_copy(update={'lr': params.lr * 1.0001})\n")
    done = keep(reproduced)
    assert done.returncode == 1
    assert "the trainings differ, first in models/model.safetensors: tensor " in done.stderr
    assert state(reproduced) == old
    assert hashlib.md5(old[3]).hexdigest() in str(old[0])


@pytest.mark.slow
def test_the_code_that_trained_it_has_to_be_in_the_commit_that_has_it(reproduced):
    code = (reproduced.path / CODE).read_text()
    add(reproduced, "\nSECOND = 2\n")
    (reproduced.path / CODE).write_text(code + "\nTHIRD = 3\n")
    reproduced.run("dvc", "repro", "train")
    (reproduced.path / CODE).write_text(code)
    reproduced.commit()
    assert "dvc.lock got this model, has not the code that trained it" in keep(reproduced).stderr
