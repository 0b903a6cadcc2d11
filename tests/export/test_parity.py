"""The parity gate lets nothing pass but equal probabilities, and says where they are not; the stage obeys it."""

import json

import numpy as np
import pytest

from reprise.data.formats.packed import load_metadata, load_split
from reprise.evaluation.confidence import NOTHING, Confidence
from reprise.evaluation.evaluate import predict_split
from reprise.evaluation.temperature import outputs
from reprise.export.parity import TOLERANCE, compare, export_model
from reprise.export.session import open_onnx
from reprise.model.backbone import create_network
from reprise.runtime.errors import UserError
from tests.conftest import Workspace
from tests.model.test_backbone import card, params
from tests.test_pipeline import metrics, ran, refused


@pytest.fixture(scope="module")
def measured(digits):
    """A network that tells digits apart, its card, and {split: probabilities by torch}."""
    metadata = load_metadata(digits)
    network, architecture = create_network(params("mlp"), metadata, 0)
    network.model.fc.weight.data.mul_(20)
    described = card(architecture)
    own = described.preprocessing.model_copy(update={"mean": metadata.mean, "std": metadata.std})
    trained = described.training.model_copy(update={"splits_sha256": metadata.splits_sha256})
    described = described.model_copy(update={"classes": metadata.classes, "preprocessing": own, "training": trained})
    expected = {
        name: predict_split(network, described, digits, name, 300)[1].softmax(1).numpy() for name in ("val", "test")
    }
    return network.eval(), described, expected


class Pretended:
    """An exported model that gives torch's probabilities, after `change` of those of the test images."""

    def __init__(self, measured, digits, change) -> None:
        _, self.card, expected = measured
        self.confidence = NOTHING
        changed = expected["test"].copy()
        change(changed)
        self.rows = {}
        for name, rows in (("val", expected["val"]), ("test", changed)):
            images = load_split(digits, name).images
            self.rows |= {image.tobytes(): row for image, row in zip(images, rows, strict=True)}

    def __call__(self, images):
        return np.stack([self.rows[image.tobytes()] for image in images])


def test_an_exported_model_agrees_on_every_validation_and_test_image(measured, digits, tmp_path):
    network, described, expected = measured
    assert np.ptp(expected["test"], axis=0).max() > 0.5
    result = export_model(network, described, digits, 300, tmp_path / "export")
    size = (tmp_path / "export/model.onnx").stat().st_size
    counts = load_metadata(digits).counts
    assert (result.reason, result.images, result.changed) == ("", counts["val"] + counts["test"], 0)
    assert (result.tolerance, result.size_mb) == (1e-4, round(size / 1e6, 2))
    assert 0 < result.largest < 1e-5


@pytest.mark.parametrize(("wrong", "shown"), [(2e-4, r"0\.\d+"), (np.nan, "nan")])
def test_one_wrong_probability_stops_it_and_image_class_and_both_numbers_are_named(wrong, shown, measured, digits):
    def change(rows):
        rows[123, 4] += wrong

    image, right = load_split(digits, "test").ids[123], f"{measured[2]['test'][123, 4]:.6g}"
    message = f"than torch: test image {image}, class 4: {right} by torch, {shown} by onnxruntime"
    with pytest.raises(UserError, match=message) as error:
        compare(measured[0], Pretended(measured, digits, change), digits, 300, 0)
    assert "\n" not in str(error.value) and "export.enabled: false" in str(error.value)


def test_the_energy_is_compared_too(measured, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("reprise.export.onnx.outputs", lambda *given: [out + (out < 0) for out in outputs(*given)])
    with pytest.raises(UserError, match=r"than torch: (val|test) image .*, energy: -\d+\.\d+ by torch"):
        export_model(measured[0], measured[1], digits, 300, tmp_path / "export", Confidence(images=9, temperature=2))


def test_an_image_alone_is_compared_too(measured, digits):
    class Lonely(Pretended):
        def __call__(self, images):
            return super().__call__(images) + 0.1 * (len(images) == 1)

    with pytest.raises(UserError, match=f"val image {load_split(digits, 'val').ids[0]}, class "):
        compare(measured[0], Lonely(measured, digits, lambda rows: None), digits, 300, 0)


def test_a_changed_class_counts_unless_torch_itself_holds_the_two_for_equal(measured, digits, monkeypatch):
    network, _, expected = measured
    order = expected["test"].argsort(axis=1)
    second, first = np.take_along_axis(expected["test"], order[:, -2:], axis=1).T
    near = int((first - second).argmin())

    def reverse(rows):
        rows[:] = rows[:, ::-1]

    def tie(rows):
        rows[near, order[near, -2:]] = rows[near, order[near, :-3:-1]]

    clear = int((first - second > 2 * TOLERANCE).sum())
    with pytest.raises(UserError, match=rf"; {clear:,} of {len(first) + len(expected['val']):,} images get another"):
        compare(network, Pretended(measured, digits, reverse), digits, 300, 0)
    monkeypatch.setattr("reprise.export.parity.TOLERANCE", float(first[near] - second[near]) * 1.01)
    result = compare(network, Pretended(measured, digits, tie), digits, 300, 0)
    assert (result.changed, result.ties) == (0, 1)


def test_a_model_that_cannot_be_exported_leaves_a_reason(measured, digits, tmp_path, monkeypatch):
    network, described, _ = measured
    monkeypatch.setattr(network, "forward", lambda x: network.model(x) if float(x.sum()) > 0 else network.model(-x))
    outs = [tmp_path / name for name in ("export", "metrics.json", "exact.json")]
    result = export_model(network, described, digits, 300, outs[0])
    result.save(*outs)
    reason = json.loads(outs[1].read_text())
    assert reason["exported"] is False and reason["passed"] is False
    assert reason["reason"].startswith("mlp cannot be exported to ONNX: GuardOnDataDependentSymNode: Could not guard")
    assert [path.name for path in outs[0].iterdir()] == ["not-exported.txt"]
    assert (outs[0] / "not-exported.txt").read_text() == reason["reason"] + "\n"
    monkeypatch.undo()
    monkeypatch.setattr("reprise.export.parity.open_onnx", lambda path: measured[3])
    result = export_model(network, described, digits, 300, tmp_path / "second")
    assert result.reason == "mlp cannot be exported to ONNX: onnxruntime fails: IndexError: tuple index out of range"
    assert not list((tmp_path / "second").iterdir())


@pytest.mark.slow
def test_the_stage_publishes_a_model_that_agrees_and_nothing_of_one_that_does_not(reproduced: Workspace):
    folder, tracked = reproduced.path / "models/export", "metrics/export.json"
    assert [path.name for path in folder.iterdir()] == ["not-exported.txt"]
    assert metrics(reproduced, "export")["reason"] == "switched off by export.enabled: false"
    reproduced.set("export.enabled=true")
    done = reproduced.run("dvc", "repro")
    assert ran(done) == ["export"]
    counts = json.loads((reproduced.path / "data/processed/metadata.json").read_text())["counts"]
    found = metrics(reproduced, "export")
    size = found.pop("size_mb")
    images = counts["val"] + counts["test"]
    assert found == {"exported": True, "passed": True, "tolerance": 1e-4, "images": images, "changed": 0}
    assert 1 < size < 2
    exact = json.loads((reproduced.path / "runs/export.json").read_text())
    assert 0 < exact["largest_difference"] < 1e-5
    assert f"agrees with torch on {images:,} images within 0.0001 -> models/export/model.onnx" in done.stdout
    assert open_onnx(folder / "model.onnx").card.weights_sha256
    status = reproduced.run("git", "status", "--porcelain").stdout.split()
    assert status == ["M", "dvc.lock", "M", tracked, "M", "params.yaml"]
    reproduced.commit()

    code = reproduced.path / "src/reprise/export/onnx.py"
    code.write_text(code.read_text().replace("self.normalize(pixels))", "self.normalize(pixels)) * 1.1"))
    done = reproduced.run("dvc", "repro", check=False)
    assert ran(done) == ["export"]
    assert "the exported model computes something else than torch: " in refused(done)
    assert not folder.exists() and not list(folder.parent.glob(".export*"))
    assert (reproduced.path / "data/predictions.csv").exists()
