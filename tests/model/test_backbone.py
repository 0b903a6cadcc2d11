"""Models are built to fit the data, published so that anyone can load them, and refused by name when they cannot be."""

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from reprise.model.artifact import ModelCard, Preprocessing, Training, load_card
from reprise.model.backbone import TIMMBackbone, adapt, create_network, load_model, save_model
from reprise.params.schema import ModelParams
from reprise.runtime.checksums import file_sha256, read_sealed, write_sealed
from reprise.runtime.errors import UserError
from reprise.runtime.provenance import trace
from tests.loader.test_batches import metadata


def params(name="test_resnet", pretrained=False, **kwargs):
    return ModelParams(name=name, pretrained=pretrained, weights="nowhere", image_size="auto", kwargs=kwargs)


def facts(image_size=32, channels=1):
    return metadata(channels=channels).model_copy(update={"image_size": image_size, "classes": ["a", "b", "c"]})


def card(architecture):
    channels = architecture.in_chans
    return ModelCard(
        architecture=architecture,
        classes=[*"abcdefghij", *map(str, range(1000))][: architecture.num_classes],
        preprocessing=Preprocessing(image_size=32, channels=channels, mean=[0.5] * channels, std=[0.2] * channels),
        training=Training(data="test", splits_sha256="", pretrained=False, epoch=1, seed=0),
        provenance=trace("machine", 1, "cpu", {}, b"", "reprise.model.backbone"),
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_family_takes_the_datas_size_channels_and_classes(name, channels):
    network, architecture = create_network(params(name), facts(channels=channels), seed=0)
    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 3)
    assert architecture.in_chans == channels
    assert architecture.kwargs == ({"img_size": 32} if "vit" in name else {})


def test_initial_weights_are_a_function_of_the_seed():
    weights = [create_network(params(), facts(), seed)[0].model.conv1[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("named", "of_the_weights", "expected"), [("auto", None, 32), ("auto", 48, 48), (24, 48, 24), (24, None, 24)]
)
def test_the_network_sees_the_size_named_else_that_of_its_weights_else_that_of_the_data(
    named, of_the_weights, expected
):
    wanted = params("test_vit").model_copy(update={"image_size": named})
    start = SimpleNamespace(image_size=of_the_weights) if of_the_weights else None
    assert adapt(wanted, facts(), start).image_size == adapt(wanted, facts(), start).kwargs["img_size"] == expected


def test_kwargs_reach_timm():
    assert create_network(params(drop_rate=0.25), facts(), 0)[0].model.drop_rate == 0.25


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficentnet_b0", "did you mean 'efficientnet_b0'"),
        ("ResNet18", "did you mean 'resnet18'"),
        ("resnet99", "is not a model of timm"),
        ("xyzzy", "`timm.list_models()` names them all"),
        ("resnet18.a1_in1", "timm has no weights of that tag; it has resnet18.a1_in1k"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, said):
    with pytest.raises(UserError, match=r"model\.name") as caught:
        create_network(params(name), facts(), 0)
    assert said in str(caught.value)


def test_an_image_too_small_for_the_network_is_refused():
    said = r"resnet8 cannot take 8x8 images .* it takes 32x32x1; set model\.image_size: 32$"
    with pytest.raises(UserError, match=said):
        create_network(params("resnet8"), facts(image_size=8), 0)


@pytest.mark.parametrize(
    ("name", "channels", "size", "said"),
    [
        ("csatv2", 1, 64, "it takes 64x64x3; set model.image_size: 64, data.channels: 3 (the images are gray)"),
        ("halonet26t", 3, 100, "images; it takes 256x256x3; set model.image_size: 256"),  # an error without a word
    ],
)
def test_what_a_network_cannot_take_is_named_with_what_it_takes(name, channels, size, said):
    with pytest.raises(UserError) as refused:
        create_network(params(name), facts(image_size=size, channels=channels), 0)
    assert str(refused.value).endswith(said)
    assert "AssertionError" not in str(refused.value)


def test_weights_of_five_dimensions_stay_as_they_are_and_those_of_four_are_channels_last():
    network, _ = create_network(params("lambda_resnet26t"), facts(image_size=128, channels=3), 0)
    shapes = {weight.ndim for weight in network.parameters()}
    assert {4, 5} <= shapes
    for weight in network.parameters():
        assert weight.is_contiguous(memory_format=torch.channels_last if weight.ndim == 4 else torch.contiguous_format)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        *(({name: "foo"}, r"timm cannot build it .* change model\.kwargs") for name in ("act_layer", "block")),
        ({"features_only": True}, r"look at model\.kwargs"),
        ({"checkpoint_path": "/nope"}, r"model\.kwargs\.checkpoint_path: it brings untracked weights"),
        ({"nonsense": 1}, "timm cannot build it for 32x32 images with nonsense=1"),
        ({"num_classes": 7}, r"model\.kwargs\.num_classes: set by the data"),
    ],
)
def test_whatever_a_wrong_argument_provokes_in_timm_is_a_clear_error(kwargs, said):
    with pytest.raises(UserError, match=rf"model\.name = test_resnet.*{said}"):
        create_network(params(**kwargs), facts(), 0)


def test_a_network_comes_ready_to_train_in_channels_last_memory():
    network, _ = create_network(params(), facts(), 0)
    assert network.training
    assert network.model.conv1[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert network.model.bn1.num_batches_tracked == 0  # the check of the image size left no trace


def test_a_model_without_pretrained_weights_says_so():
    with pytest.raises(UserError, match="cannot get the weights of mixer_s16_224"):
        TIMMBackbone("mixer_s16_224", pretrained=True)


def test_the_backbones_defaults_are_the_seeds():
    arguments = TIMMBackbone.__init__.__defaults__
    assert arguments == ("efficientnet_b0", True, 3)


def test_a_published_model_comes_back_bit_for_bit_with_timm_alone_too_and_is_written_the_same_each_time(tmp_path):
    network, architecture = create_network(params(), facts(), seed=3)
    for name in ("one", "two"):
        save_model(network, card(architecture), tmp_path / f"{name}.safetensors", tmp_path / f"{name}.json")
    for suffix in ("safetensors", "json"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    loaded, loaded_card = load_model(tmp_path / "one.safetensors", tmp_path / "one.json")
    digest = hashlib.sha256((tmp_path / "one.safetensors").read_bytes()).hexdigest()
    assert loaded_card == card(architecture).model_copy(update={"weights_sha256": digest})
    assert not loaded.training
    plain = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    plain.load_state_dict(load_file(tmp_path / "one.safetensors"))
    for model in (loaded.model, plain):
        assert list(model.state_dict()) == list(network.model.state_dict())
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in network.model.state_dict().items())


def resealed(weights, description):
    """Let the description vouch for the weights as they are now, as someone would who wants them loaded."""
    write_sealed(description, read_sealed(description) | {"weights_sha256": file_sha256(weights)})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of a model, and its network."""
    folder = tmp_path_factory.mktemp("model")
    network, architecture = create_network(params(), facts(), seed=0)
    save_model(network, card(architecture), folder / "m.safetensors", folder / "m.json")
    return folder


@pytest.fixture
def files(saved, tmp_path):
    """Private copies of the files of a model: weights and description."""
    return [Path(shutil.copy(saved / name, tmp_path)) for name in ("m.safetensors", "m.json")]


def test_altered_files_are_refused(files):
    weights, description = files
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="altered since it was published; run `dvc checkout`"):
        load_model(weights, description)
    weights.unlink()
    with pytest.raises(UserError, match="no weights there"):
        load_model(weights, description)
    description.write_bytes(description.read_bytes().replace(b'"epoch": 1', b'"epoch": 2'))
    with pytest.raises(UserError, match=r"m\.json: altered since it was written"):
        load_card(description)
    write_sealed(description, {"classes": []})
    with pytest.raises(UserError, match="not a model's description"):
        load_card(description)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Path(tempfile.gettempdir()) / "reprise-bomb"),)


def header(tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


HOSTILE = {
    "a pickle": lambda content: pickle.dumps(Bomb()),
    "a torch file": lambda content: torch_file(),
    "another model": lambda content: safetensors.torch.save(timm.create_model("test_efficientnet").state_dict()),
    "half a file": lambda content: content[: len(content) // 2],
    "nothing": lambda content: b"",
    "a header longer than the file": lambda content: struct.pack("<Q", 2**63) + content[8:],
    "a header of a gigabyte": lambda content: struct.pack("<Q", 2**30) + content[8:],
    "a tensor beyond the end": lambda content: header({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
    "overlapping tensors": lambda content: (
        header({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "xy"}) + bytes(4)
    ),
    "negative offsets": lambda content: header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
    "an overflowing shape": lambda content: header(
        {"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}
    ),
    "an unknown type": lambda content: header({"x": {"dtype": "O", "shape": [0], "data_offsets": [0, 0]}}),
    "no object": lambda content: header([1, 2]),
    "deeply nested": lambda content: struct.pack("<Q", 200_000) + b"[" * 200_000,
}


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_in_place_of_the_weights_is_refused_and_runs_no_code(kind, files, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    weights, description = files
    weights.write_bytes(HOSTILE[kind](weights.read_bytes()))
    resealed(weights, description)
    with pytest.raises(UserError, match="not the weights of test_resnet"):
        load_model(weights, description)
    assert not (tmp_path / "reprise-bomb").exists()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_header_however_mangled_is_anything_but_refused_or_loaded(data, saved, files):
    weights, description = files
    content = bytearray((saved / "m.safetensors").read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    for place in data.draw(st.lists(st.integers(0, 7 + length), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    weights.write_bytes(content)
    resealed(weights, description)
    try:
        load_model(weights, description)
    except UserError as error:
        assert "not the weights of test_resnet" in str(error)


def test_a_description_that_names_weights_of_its_own_is_refused(files, tmp_path):
    weights, description = files
    (tmp_path / "hostile.pth").write_bytes(torch_file())
    document = read_sealed(description)
    document["architecture"]["kwargs"]["checkpoint_path"] = str(tmp_path / "hostile.pth")
    write_sealed(description, document)
    with pytest.raises(UserError, match="names weights of its own"):
        load_model(weights, description)


def test_a_full_disk_under_the_weights_keeps_its_number_and_name(tmp_path, monkeypatch):
    network, architecture = create_network(params(), facts(), seed=0)
    write_bytes = Path.write_bytes

    def full(self, content):
        write_bytes(self, content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as error:
        save_model(network, card(architecture), tmp_path / "m.safetensors", tmp_path / "m.json")
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(tmp_path / "m.safetensors")
