"""A model answers as its evaluation did, whatever it is handed and however many at once."""

import json
import shutil
from itertools import repeat

import numpy as np
import pytest
import torch

import reprise.inference.sources as sources
from reprise import load_model
from reprise.model.artifact import load_card
from reprise.runtime.checksums import write_sealed
from reprise.runtime.errors import UserError
from tests.conftest import new_repository

EVALUATED = """
import csv, json, sys
from pathlib import Path
from zipfile import ZipFile
from reprise import load_model
own, names = Path("data/own"), json.loads(sys.argv[1])
with ZipFile("test.zip", "w") as archive:
    for name in names:
        Path("test", name).parent.mkdir(parents=True, exist_ok=True)
        Path("test", name).write_bytes((own / name).read_bytes())
        archive.write(own / name, name)
Path("data/own/test.csv").write_text("id;x\\n" + "".join(f"{name};\\n" for name in names))
model = load_model("models")
paths = [str(own / name) for name in names]
given = [paths, "test", "test.zip", "data/own/test.csv", *paths[:5]]
answers = [[(each.name, each.label, each.probabilities.tolist()) for each in model.predict(one)] for one in given]
print(json.dumps([[[name, label, *(f"{p:.6g}" for p in row)] for name, label, row in one] for one in answers]))
"""
LIGHT = """
import sys
for name in "torch torchvision timm scipy sklearn lightning torchmetrics dvc onnx".split():
    sys.modules[name] = None
from reprise import load_model
(answer,) = load_model("models").predict(sys.argv[1])
print(*(f"{p:.6f}" for p in answer.probabilities.tolist()))
"""


def test_list_folder_archive_csv_and_single_images_give_the_rows_of_evaluation(project, expected, tmp_path):
    clone = project.copy(tmp_path / "clone")
    names = sorted(expected, key=lambda name: name.split("/"))
    done = clone.run("python", "-c", EVALUATED, json.dumps(names))
    listed, folder, archive, table, *single = json.loads(done.stdout)
    rows = [[name, *(cell.lstrip("'") for cell in expected[name])] for name in names]
    assert len(rows) % 16 and len(rows) > 64  # the last batch is filled up, in evaluation too
    assert folder == archive == table == rows
    assert listed == [[f"data/own/{name}", *row] for name, *row in rows]
    assert [row for (row,) in single] == listed[:5]


def test_the_exported_model_needs_no_torch(project, expected):
    name = next(iter(expected))
    done = project.run("python", "-c", LIGHT, f"data/own/{name}")
    digits = [float(cell) for cell in expected[name][1:]]
    assert [float(p) for p in done.stdout.split()] == pytest.approx(digits, abs=3e-6)


@pytest.fixture(scope="module")
def model(project):
    return load_model(project.path / "models", runtime="torch")


def test_an_answer_has_the_likeliest_classes_first(model, project, expected):
    name = next(iter(expected))
    (answer,) = model.predict(project.path / "data/own" / name, top=2)
    assert answer.label == expected[name][0].lstrip("'") == answer.top[0][0]
    assert [p for _, p in answer.top] == sorted(answer.probabilities.tolist())[:0:-1]
    assert answer.probability == answer.top[0][1] and not answer.reason
    assert answer.probabilities.sum() == pytest.approx(1)


def test_a_bad_image_is_a_reason_among_the_others_in_their_order(model):
    good = np.zeros((9, 7), np.uint8)
    answers = model.predict([good, b"no image", good.astype(float), None, "no such.jpg", good])
    assert [(each.name, bool(each.label)) for each in answers] == [
        *(("0", True), ("1", False), ("2", False), ("3", False), ("no such.jpg", False), ("5", True))
    ]
    assert [each.reason for each in answers[1:5]] == [
        "not an image, or its beginning is damaged",
        "an array float64 (9, 7); uint8 (H, W) or (H, W, 1 to 4) is needed",
        "NoneType: a path, bytes, an image of Pillow's or an array is needed",
        "No such file or directory",
    ]
    assert np.array_equal(answers[0].probabilities, answers[5].probabilities)
    assert "not a number" in model.prediction("a", np.full(3, np.nan, np.float32)).reason
    assert answers[1].label is answers[1].probability is answers[1].probabilities is None


def test_a_stream_reads_a_few_batches_ahead_and_no_more(model):
    read = 0

    def endless():
        nonlocal read
        for image in repeat(np.zeros((4, 4), np.uint8)):
            read += 1
            yield image

    stream = model.stream(endless())
    for _ in range(1000):
        next(stream)
    assert read <= 1000 + 256 + 2 * 64
    stream.close()


def test_more_processes_change_no_answer(model, project, monkeypatch):
    folder = project.path / "data/own"
    alone = model.predict(folder)
    monkeypatch.setattr(sources, "FIRST_TASKS", 1)
    monkeypatch.setattr(sources, "TASK_IMAGES", 10)
    spread = model.predict(folder, workers=2)
    assert [each.name for each in spread] == [each.name for each in alone]
    assert len(alone) == 135
    assert np.array_equal([each.probabilities for each in spread], [each.probabilities for each in alone])


def test_torch_is_left_as_it_was(model):
    def settings():
        cudnn = torch.backends.cudnn
        return torch.get_num_threads(), torch.is_grad_enabled(), cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    torch.set_num_threads(2)
    before = settings()
    model.probabilities(np.zeros((3, 32, 32, 3), np.uint8))
    after = settings()
    torch.set_num_threads(1)
    assert after == before


def test_a_release_is_fetched_from_another_repository(project, expected, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = project.path / "data/own" / next(iter(expected))
    for source, runtime in (("models", "torch"), ("models/model.safetensors", None), ("models/export", "onnx")):
        fetched = load_model(source, repo=str(project.path), rev="model@v1.0.0", runtime=runtime)
        assert fetched.card == model.card
        assert fetched.predict(image)[0].probabilities == pytest.approx(model.predict(image)[0].probabilities, abs=1e-6)
    for source, rev in (("models", "v9"), ("nothing", None)):
        with pytest.raises(UserError, match=f"{source} of .*, at {rev or 'its work tree'}: "):
            load_model(source, repo=str(project.path), rev=rev)


def test_a_project_in_a_folder_of_a_repository_has_revisions_too(project, model, tmp_path, monkeypatch):
    shutil.copytree(project.path, tmp_path / "flow/ers", ignore=shutil.ignore_patterns(".git"))
    new_repository(tmp_path / "flow").commit()
    monkeypatch.chdir(tmp_path / "flow/ers/data")
    for repo, source in ((None, "models"), ("..", "models/export"), ("../..", "ers/models/export/model.onnx")):
        assert load_model(source, repo=repo, rev="HEAD", runtime="onnx").card == model.card


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda weights, card: weights.unlink(), "models: no model there that torch can run; name a folder"),
        (lambda weights, card: shutil.rmtree(card.parent), "models: no such file or folder; name a folder"),
        (lambda weights, card: resealed(card, classes=["a"]), "of another version of Reprise"),
        (lambda weights, card: card.unlink(), "model.json: no model there"),
        (lambda weights, card: weights.write_bytes(weights.read_bytes()[:-1]), "altered since it was published"),
        (lambda weights, card: resealed(card, temperature=1.5), "of another version of Reprise"),
        (lambda weights, card: resealed(card, architecture=OWN_CODE), "needs project/net.py; `project=FOLDER`"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_a_line(spoil, said, project, tmp_path):
    folder = shutil.copytree(project.path / "models", tmp_path / "models", ignore=shutil.ignore_patterns("export"))
    spoil(folder / "model.safetensors", folder / "model.json")
    with pytest.raises(UserError, match=said) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_an_exported_model_of_other_weights_is_refused(project, tmp_path):
    folder = shutil.copytree(project.path / "models", tmp_path / "models")
    assert load_model(folder / "export/model.onnx").predict([]) == []
    resealed(folder / "model.json", weights_sha256="0" * 64)
    for source in (folder, folder / "export", folder / "export/model.onnx"):
        with pytest.raises(UserError, match="exported from other weights"):
            load_model(source, runtime="onnx")


OWN_CODE = {"model_name": "project/net.py:N", "num_classes": 3, "in_chans": 3, "image_size": 32, "kwargs": {}}
OWN_CODE |= {"code_sha256": "0" * 64}


def resealed(card, **changes):
    write_sealed(card, load_card(card).model_dump(mode="json") | changes)
