"""What a stage records is what it was run with, whatever is edited meanwhile."""

import hashlib
import os
import shutil
import subprocess

import pytest

from reprise.params import dependencies
from reprise.params.dependencies import Dependencies
from reprise.repo.project import Project
from reprise.repo.verify import stale
from reprise.runtime.code import read_code
from reprise.runtime.errors import UserError
from tests.conftest import PARAMS, ROOT, blocks

SCRIPT = "stages/preprocess.py"
SPLITS, ERRORS = "src/reprise/data/prepare/splits.py", "src/reprise/runtime/errors.py"


@pytest.fixture
def root(tmp_path):
    """Code, params and one folder of inputs."""
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/images.zip").write_bytes(b"images")
    return tmp_path


@pytest.fixture
def begun(root):
    """The dependencies of a preprocessing that has begun."""
    dependencies = Dependencies(SCRIPT, ["data/raw"], ["data.val_fraction", "evaluate"], root)
    dependencies.begin()
    return dependencies


def replace(path, old, new):
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


CODE = "\n\n\n", "\n\n\nEDITED = 1\n\n\n"
EDITS = {
    "its value": ("params.yaml", "val_fraction: 0.1", "val_fraction: 0.2", "data.val_fraction (was 0.1, is 0.2)"),
    "its section": ("params.yaml", "calibration_bins: 15", "calibration_bins: 9", "calibration_bins (was 15, is 9)"),
    "its value, not allowed": ("params.yaml", "val_fraction: 0.1", "val_fraction: many", "val_fraction = 'many'"),
    "its value, written otherwise": ("params.yaml", "val_fraction: 0.1", "val_fraction: 1e-1", None),
    "another stage's": ("params.yaml", "epochs: 12", "epochs: 13", None),
    "another stage's, not allowed": ("params.yaml", "epochs: 12", "epochs: many", None),
    "a comment": ("params.yaml", "# ", "# more ", None),
    "its code": (SPLITS, *CODE, SPLITS),
    "code behind": (ERRORS, *CODE, ERRORS),
    "its script": (SCRIPT, "def main", "EDITED = 1\n\n\ndef main", SCRIPT),
    "a docstring": (SPLITS, '"""', '"""More. ', None),
    "other code": ("src/reprise/training/train.py", *CODE, None),
    "its input": ("data/raw/images.zip", "images", "imageZ", "data/raw/images.zip"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_that_matters_stops_it_by_name_and_no_other_does(edit, begun, root):
    path, old, new, named = EDITS[edit]
    status = (root / path).stat()
    replace(root / path, old, new)
    os.utime(root / path, ns=(status.st_atime_ns, status.st_mtime_ns))
    if named is None:
        begun.check()
        return
    with pytest.raises(UserError) as refused:
        begun.check()
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
    replace(root / path, new, old)
    begun.check()


def test_a_key_beside_others_of_the_users_own_is_another_value(root):
    replace(root / "params.yaml", "optimizer_kwargs: {}", "optimizer_kwargs: {eps: 1.0e-8}")
    begun = Dependencies("stages/train.py", [], ["train"], root)
    begun.begin()
    replace(root / "params.yaml", "{eps: 1.0e-8}", "{eps: 1.0e-8, amsgrad: true}")
    with pytest.raises(UserError, match=r"optimizer_kwargs \(was {'eps': 1e-08}, is {'eps': 1e-08, 'amsgrad': True}"):
        begun.check()


def test_an_editors_lock_file_is_no_code(begun, root):
    (root / "src/reprise/.#history.py").symlink_to("me@host.1:2")
    begun.check()


def test_new_files_and_lost_ones_are_named_too(begun, root):
    (root / "data/raw/images.zip").rename(root / "data/raw/other.zip")
    (root / SPLITS).unlink()
    with pytest.raises(UserError, match=f"{SPLITS}, data/raw/images.zip, data/raw/other.zip; nothing"):
        begun.check()


def test_what_an_altered_input_may_have_left_is_forgotten_and_nothing_else(begun, root):
    forgotten = []
    begun.forget, begun.kept = lambda: forgotten.append(True), "It is kept. "
    replace(root / "params.yaml", "val_fraction: 0.1", "val_fraction: 0.2")
    with pytest.raises(UserError, match=r"It is kept\."):
        begun.check()
    assert not forgotten
    for name, seen in (("images.zip", False), ("train_images.npy", True)):
        (root / "data/raw" / name).write_bytes(b"other")
        with pytest.raises(UserError) as refused:
            begun.check()
        assert bool(forgotten) == seen
        assert ("It is kept" in str(refused.value)) == (not seen)


def test_code_that_was_edited_after_it_was_loaded_is_noticed_at_once(root, monkeypatch):
    for name, more in (("a comment", b"# more\n"), ("code", b"EDITED = 1\n")):
        loaded = read_code(root)
        monkeypatch.setattr(dependencies, "ROOT", root)
        monkeypatch.setattr(dependencies, "LOADED", loaded | {ERRORS: loaded[ERRORS] + more})
        begun = Dependencies(SCRIPT, [], [], root)
        if name == "a comment":
            begun.begin()
        else:
            with pytest.raises(UserError, match=r"changed while this ran: src/reprise/runtime/errors\.py; nothing"):
                begun.begin()


def test_a_record_keeps_the_params_of_the_stage_and_the_inputs_as_dvc_names_them(begun):
    record = begun.record()
    listing = f'[{{"md5": "{hashlib.md5(b"images").hexdigest()}", "relpath": "images.zip"}}]'
    assert record.params == {
        "data.val_fraction": 0.1, "evaluate.batch_size": 256, "evaluate.calibration_bins": 15, "evaluate.metrics": [],
        "evaluate.calibration": "none", "evaluate.coverage": None, "evaluate.coverage_by": "all", "evaluate.risk": None,
        "evaluate.title": None, "evaluate.budget.parameters": None, "evaluate.budget.flops": None,
        "evaluate.budget.size_mb": None, "evaluate.gates": {}, "evaluate.gate_confidence": 0.95,
    }  # fmt: skip
    assert record.inputs == {"data/raw": f"{hashlib.md5(listing.encode()).hexdigest()}.dir"}


@pytest.mark.slow
@pytest.mark.parametrize("command", [("dvc", "repro"), ("python", "src/train.py")])
def test_an_edit_during_the_training_publishes_nothing_and_undone_it_publishes_without_training(command, reproduced):
    workspace = reproduced
    expected = workspace.path / "models/model.safetensors"
    bits = expected.read_bytes()
    workspace.run("rm", "-rf", ".dvc/cache", "models/model.safetensors")
    code = workspace.path / "src/reprise/training/optim.py"
    before = code.read_text()
    process = subprocess.Popen(
        command,
        cwd=workspace.path,
        env=workspace.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("epoch 1/"):
            code.write_text(before + "\nEDITED = 1\n")
    assert process.wait() not in (0, -9)
    errors = [line for line in said if "changed while this ran" in line]
    assert len(errors) == 1, "".join(said)
    shown = " ".join(blocks("docs/reproducibility.md", "text")[0].split())
    assert shown.replace("params.yaml train.epochs (was 5, is 9)", "src/reprise/training/optim.py") in errors[0]
    assert not expected.exists()
    code.write_text(before)
    again = workspace.run(*command)
    assert "epoch 1/" not in again.stdout + again.stderr
    assert "epoch 2/" not in again.stdout + again.stderr
    published = workspace.path / "runs/latest" if "src/train.py" in command else workspace.path / "models"
    assert (published / "model.safetensors").read_bytes() == bits


LIES = {
    "a param of the training": ("train", "params.yaml", "weight_decay: 0.01", "weight_decay: 0.02"),
    "code of the training": ("train", "src/reprise/training/optim.py", *CODE),
    "a script": ("train", "stages/train.py", "params.train,", "params.train.model_copy(),"),
    "a key beside another": ("train", "params.yaml", "kwargs: {}      ", "kwargs: {drop_rate: 0.1}  # "),
    "a param of the evaluation": ("evaluate", "params.yaml", "calibration_bins: 15", "calibration_bins: 9"),
    "a param of the preparation": ("preprocess", "params.yaml", "val_fraction: 0.1", "val_fraction: 0.11"),
}


@pytest.mark.slow
def test_a_lock_that_says_what_the_outs_are_not_made_with_passes_no_check(reproduced):
    def refuses(stage):
        done = reproduced.run("dvc", "repro", "--force", "--single-item", stage, check=False)
        return done.returncode and "made with something else than there is now: " in done.stderr

    for lie, (stage, file, old, new) in LIES.items():
        reproduced.run("git", "checkout", "--quiet", ".")
        replace(reproduced.path / file, old, new)
        reproduced.run("dvc", "commit", "--force")  # as an edit between a stage's last look and DVC's first
        wrong = {found.stage: found.what for found in stale(Project(reproduced.path))}
        assert "not what its outs were made with" in wrong[stage], lie
        if lie == "code of the training":
            assert refuses("evaluate")
            reproduced.run("sh", "-ec", "git checkout --quiet .; dvc checkout --quiet")
    assert "up to date" in reproduced.run("dvc", "status").stdout
    reproduced.commit()
    verified = reproduced.reprise("verify", check=False)
    assert verified.returncode == 1
    assert "stage preprocess: not what its outs were made with" in verified.stdout
    assert "dvc repro --force --single-item preprocess; dvc repro" in verified.stdout
    reviewed = reproduced.reprise("review", "--base", "main", check=False)
    assert reviewed.returncode == 1
    assert "dvc.lock is fresh | **failed**" in reviewed.stdout
    assert refuses("train")
    reproduced.run("sh", "-c", "dvc repro --force --single-item preprocess && dvc repro")
    assert reproduced.reprise("verify").returncode == 0


def test_the_record_of_the_stage_before_is_checked_unless_it_is_frozen_or_there_is_none(begun, root):
    shutil.copy(ROOT / "dvc.yaml", root)
    training = Dependencies("stages/train.py", [], [], root)
    training.begin()
    training.check_earlier("preprocess")  # it has recorded nothing
    begun.record().save(root / "data/records/preprocess.json")
    training.check_earlier("preprocess")
    replace(root / "params.yaml", "val_fraction: 0.1", "val_fraction: 0.2")
    replace(root / SPLITS, *CODE)
    training.begin()
    with pytest.raises(UserError, match=r"made with something else .*val_fraction \(was 0.1, is 0.2\), its code; `dvc"):
        training.check_earlier("preprocess")
    replace(root / "dvc.yaml", "  preprocess:\n", "  preprocess:\n    frozen: true\n")
    training.check_earlier("preprocess")
