"""One file holds the model: any program's ONNX, onnxruntime's probabilities are torch's, what is altered is refused."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from reprise.data.formats.packed import PackedSplit
from reprise.evaluation.evaluate import predict
from reprise.export.onnx import NotExportableError, export_onnx
from reprise.export.session import SEAL_BYTES, open_onnx, seal
from reprise.loader.batches import EvalBatches
from reprise.model.artifact import ModelCard
from reprise.model.backbone import create_network
from reprise.runtime.errors import UserError
from tests.conftest import ROOT
from tests.model.test_backbone import card, facts, params

LEFT_OUT = "torch timm torchvision torchmetrics scipy sklearn lightning dvc onnx onnxscript"


def made(channels: int, name: str = "test_resnet", seen: int = 32) -> tuple[nn.Module, ModelCard]:
    """A random network for images of 24 pixels, which it sees with `seen` pixels, and its card."""
    given = params(name).model_copy(update={"image_size": seen})
    metadata = facts(24, channels).model_copy(
        update={"mean": [0.3, 0.5, 0.6][:channels], "std": [0.2, 0.3, 0.4][:channels]}
    )
    network, architecture = create_network(given, metadata, 0)
    network.model.get_classifier().weight.data.mul_(10)  # so that it tells images apart
    preprocessing = {"image_size": 24, "channels": channels, "mean": metadata.mean, "std": metadata.std}
    described = card(architecture)
    own = described.preprocessing.model_copy(update=preprocessing)
    return network.eval(), described.model_copy(update={"preprocessing": own})


def pixels(count: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 24, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A color model that sees its images larger than they are: network, card and file."""
    network, described = made(3)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(network, described, path)
    return network, described, path


def evaluated(network, described, images):
    """Return the probabilities that evaluation measures."""
    metadata = facts(24, images.shape[3]).model_copy(update=described.preprocessing.model_dump(include={"mean", "std"}))
    split = PackedSplit(images, np.zeros(len(images), np.int64), list(map(str, range(len(images)))))
    batches = EvalBatches(split, metadata, 16, image_size=described.architecture.image_size)
    return predict(network, batches, "cpu")[0].softmax(dim=1).numpy()


def test_the_file_gives_the_probabilities_of_evaluation_in_batches_of_any_size(exported):
    network, described, path = exported
    model, images = open_onnx(path), pixels(50, 3)
    together = model(images)
    assert together.dtype == np.float32 and together.shape == (50, 3)
    assert np.ptp(together, axis=0).min() > 0.01  # the images are told apart
    assert together == pytest.approx(evaluated(network, described, images), abs=3e-6)
    for size in (1, 7):
        rows = [model(images[start : start + size]) for start in range(0, 50, size)]
        assert np.concatenate(rows) == pytest.approx(together, abs=1e-6)
    assert model(images[:0]).shape == (0, 3)


def test_gray_images_and_attention_are_exported(tmp_path):
    network, described = made(1, "test_vit", seen=48)
    export_onnx(network, described, tmp_path / "m.onnx")
    images = pixels(7, 1)
    assert open_onnx(tmp_path / "m.onnx", 1)(images) == pytest.approx(evaluated(network, described, images), abs=3e-6)


def test_it_is_a_valid_onnx_model_with_the_names_of_the_contract_and_nothing_of_this_machine(exported):
    _, described, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (images,), (probabilities,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (images, probabilities)]
    assert [images.name, probabilities.name] == ["images", "probabilities"]
    assert shapes == [["N", 24, 24, 3], ["N", 3]]
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    properties = {each.key: each.value for each in model.metadata_props}
    assert set(properties) == {"reprise", "sha256"}
    assert ModelCard.model_validate_json(properties["reprise"]) == described == open_onnx(path).card
    content = path.read_bytes()
    for trace in (str(ROOT), "site-packages", ".py", "fx_node"):
        assert trace.encode() not in content


def test_a_second_export_in_another_process_and_folder_gives_the_same_bytes(exported, tmp_path):
    code = (
        "from pathlib import Path; from tests.export.test_onnx import export_onnx, made\n"
        "export_onnx(*made(3), Path('other.onnx'))"
    )
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONHASHSEED": "5", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (tmp_path / "other.onnx").read_bytes() == exported[2].read_bytes(), done.stderr
    assert done.stdout == ""


def test_it_is_opened_without_torch_and_whatever_else_a_server_lacks(exported, tmp_path):
    np.save(tmp_path / "images.npy", pixels(2, 3))
    code = f"""
import sys
for name in {LEFT_OUT.split()}: sys.modules[name] = None
import numpy as np
from pathlib import Path
from reprise.export.session import open_onnx
np.save("rows.npy", open_onnx(Path({str(exported[2])!r}), 1)(np.load("images.npy")))
"""
    environment = {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert np.load(tmp_path / "rows.npy") == pytest.approx(open_onnx(exported[2], 1)(pixels(2, 3)), abs=1e-6)


def resealed(content: bytes, old: bytes, new: bytes) -> bytes:
    model = content[:-SEAL_BYTES].replace(old, new)
    return model + seal(model)


def external(content: bytes) -> bytes:
    model = onnx.load_from_string(content[:-SEAL_BYTES])
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "other")
    return model.SerializeToString() + seal(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "reads weights from other files"),
        (lambda content: resealed(content, b'"image_size":32', b'"image_size": 0'), "another version of Reprise"),
        (lambda content: resealed(content, b'["a","b","c"]', b'["a","b,,,c"]'), "another version of Reprise"),
        (lambda content: resealed(content, b'{"image_size":24', b'{"image_size":25'), "not those of its card"),
        (lambda content: None, "no model there; run `dvc repro export` or `dvc checkout`"),
        (lambda content: b"", "altered, or not exported by Reprise"),
        (lambda content: content[:-SEAL_BYTES], "altered, or not exported by Reprise"),
        (lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], "altered, or not exported"),
        (lambda content: resealed(content, b'"in_chans"', b'"in_tints"'), "another version of Reprise; export it"),
        (lambda content: b"junk" + seal(b"junk"), "onnxruntime [0-9.]+ cannot run it .* use a newer onnxruntime"),
    ],
)
def test_what_is_missing_altered_or_of_another_version_is_refused_in_one_line(change, message, exported, tmp_path):
    changed, path = change(exported[2].read_bytes()), tmp_path / "model.onnx"
    if changed is not None:
        path.write_bytes(changed)
    with pytest.raises(UserError, match=f"^{path}: .*{message}") as error:
        open_onnx(path)
    assert "\n" not in str(error.value)


class Sorted(nn.Module):
    """What ONNX has no operator for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x.mean(1)[:, :3, :3]).real


class Branching(nn.Module):
    """What no graph can hold: Python that looks at the values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if float(x.sum()) > 0 else -x.mean((2, 3))


@pytest.mark.parametrize("network", [Sorted(), Branching()])
def test_what_onnx_cannot_express_is_said_in_one_line_without_places(network, tmp_path, capfd):
    with pytest.raises(NotExportableError) as error:
        export_onnx(network, made(3)[1], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert 10 < len(str(error.value)) < 400 and "\n" not in str(error.value) and "/" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_package_that_is_missing_is_named_with_the_way_out(monkeypatch, exported, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs the package onnxscript; install it, or set export\.enabled: false"):
        export_onnx(*exported[:2], tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs onnxruntime; install it"):
        open_onnx(exported[2])
