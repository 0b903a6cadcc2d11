"""Set, "unknown" and energy come with each answer, the same from torch, ONNX, command and service; else with none."""

import csv
import io
import json
import shutil

import jsonschema
import numpy as np
import pytest
from starlette.testclient import TestClient

from reprise import load_model
from reprise.evaluation.confidence import Confidence, log_odds
from reprise.export.onnx import export_onnx
from reprise.inference.serve import application
from reprise.model import backbone
from reprise.runtime.checksums import write_sealed
from reprise.runtime.errors import UserError
from tests.inference.test_serve import asked_at_once


@pytest.fixture(scope="module")
def models(project, tmp_path_factory):
    """The project's models with a confidence.json, exported with it."""
    folder = tmp_path_factory.mktemp("confidence") / "models"
    shutil.copytree(project.path / "models", folder)
    network, card = backbone.load_model(folder / "model.safetensors", folder / "model.json")
    bare = np.array([each.probabilities for each in load_model(folder).predict(project.path / "data/own")])
    odds = log_odds(bare**2 / (bare**2).sum(axis=1, keepdims=True))
    rows = np.sort(np.c_[odds, odds.max(axis=1)], axis=0)
    *sets, least = rows[66:68].mean(axis=0).tolist()  # between two images, so that a last digit decides nothing
    found = {"images": 50, "temperature": 0.5, "coverage": 0.5, "risk": 0.5}
    found |= {"weights_sha256": card.weights_sha256, "set_log_odds": sets, "answer_log_odds": least}
    fitted = Confidence.model_validate(found)
    write_sealed(folder / "confidence.json", fitted.model_dump())
    export_onnx(network, card, folder / "export/model.onnx", fitted)
    return folder


def test_torch_and_onnx_answer_alike_at_the_temperature_and_classes_stay(models, project):
    images = project.path / "data/own"
    bare = load_model(project.path / "models").predict(images)
    assert all("energy" not in each.plain() for each in bare)
    for runtime in ("torch", "onnx"):
        model = load_model(models, runtime=runtime)
        found, fitted = model.predict(images), model.confidence
        assert [each.label for each in found] == [each.label for each in bare]
        powers = np.array([each.probabilities for each in bare]) ** 2  # at 0.5
        expected = powers / powers.sum(axis=1, keepdims=True)
        assert np.array([each.probabilities for each in found]) == pytest.approx(expected, abs=1e-5)
        for each in found:
            p, judged = np.array(each.probabilities, float), each.judged
            odds = np.log(p / (1 - p))
            assert judged["unknown"] == (odds.max() <= fitted.answer_log_odds)
            inside = zip(["=emu", "cat", "dog"], odds, fitted.set_log_odds, strict=True)
            assert judged["prediction_set"] == [name for name, share, least in inside if share >= least]
        assert {True, False} == {each.judged["unknown"] for each in found}
    energies = [
        [each.judged["energy"] for each in load_model(models, runtime=r).predict(images)] for r in ("torch", "onnx")
    ]
    assert energies[0] == pytest.approx(energies[1], abs=1e-4) and np.ptp(energies[0]) > 0.01


def test_the_service_answers_the_same_in_the_form_that_is_described(models, project):
    model, image = load_model(models, runtime="onnx"), project.path / "data/own/cat/0.jpg"
    (answer,) = asked_at_once(model, [image.read_bytes()])[0].json()["predictions"]
    (expected,) = model.predict([image], top=3)
    assert answer == json.loads(json.dumps(expected.plain() | {"name": "0"})) and answer["energy"]
    described = json.loads((project.path / "src/reprise/inference/openapi.json").read_text())
    jsonschema.validate(answer, {"$ref": "#/components/schemas/Answer", **described})
    promised = TestClient(application(model)).get("/model").json()["confidence"]
    jsonschema.validate(promised, {"$ref": "#/components/schemas/Promises", **described})
    assert [*promised.values()] == [50, "", 0.5, 0.5, 0.5, "class"]  # ..., temperature, coverage, risk, coverage_by


def test_the_command_has_columns_of_numbers_and_says_unknown(models, project):
    (models / "bad.jpg").write_bytes(b"broken")
    command = ["python", "-m", "reprise", "predict", "data/own/dog", str(models / "bad.jpg"), "--model", str(models)]
    written = project.run(*command, "--runtime", "onnx", "--format", "csv").stdout
    *rows, bad = csv.DictReader(io.StringIO(written, newline=""))
    expected = load_model(models, runtime="onnx").predict(project.path / "data/own/dog")
    assert (bad["energy"], bad["unknown"], bad["reason"][:12]) == ("", "", "not an image")
    for row, each in zip(rows, expected, strict=True):
        assert float(row["energy"]) == pytest.approx(each.judged["energy"], abs=1e-4)
        assert json.loads(row["prediction_set"]) == each.judged["prediction_set"]
        assert json.loads(row["unknown"]) == each.judged["unknown"]
    lines = project.run(*command, "--runtime", "onnx").stdout.splitlines()
    assert ["  unknown  " in line for line in lines[:-1]] == [each.judged["unknown"] for each in expected]
    assert all(line.endswith("}") for line in lines[:-1])


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_confidence_of_another_model_or_another_export_is_refused(runtime, models, project, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(project.path / "models", folder)
    assert load_model(folder, runtime=runtime).confidence.columns == []
    written = json.loads((models / "confidence.json").read_text())
    del written["checksum"]
    write_sealed(folder / "confidence.json", written | {"weights_sha256": "b" * 64})
    with pytest.raises(UserError, match=r"confidence\.json: fitted for other weights"):
        load_model(folder, runtime=runtime)
    shutil.copy(models / "confidence.json", folder)
    if runtime == "torch":
        assert load_model(folder, runtime=runtime).confidence.coverage == 0.5
        return
    with pytest.raises(
        UserError, match=r"model\.onnx: exported with another .*confidence\.json; run `dvc repro export`"
    ):
        load_model(folder, runtime=runtime)  # exported before it was fitted


def test_a_missing_file_is_refused_where_export_or_params_promise_it_and_only_there(models, project, tmp_path):
    shutil.copytree(models, tmp_path / "models", ignore=shutil.ignore_patterns("confidence.json"))
    assert load_model(tmp_path / "models", runtime="onnx").confidence.coverage == 0.5  # the file has it
    with pytest.raises(UserError, match=r"confidence\.json: missing, but params.yaml or the exported model promises"):
        load_model(tmp_path / "models")
    clone = project.copy(tmp_path / "project")
    (clone.path / "models/confidence.json").unlink()  # as a gate that is missed leaves it
    assert load_model(clone.path / "models").confidence.columns == []
    lock = clone.path / "dvc.lock"
    lock.write_text(lock.read_text().replace("models/confidence.json", "models/other.json"))
    clone.commit()
    assert load_model("models", repo=str(clone.path), rev="HEAD").confidence.columns == []
    clone.set("evaluate.risk=0.05")
    for name in ("torch", "onnx"):
        with pytest.raises(UserError, match="missing, but params"):
            load_model(clone.path / "models", runtime=name)
