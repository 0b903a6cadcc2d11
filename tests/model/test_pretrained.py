"""Weights to start from come whole from the hub or a file, are adapted, and are recorded; anything else is refused."""

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import safetensors.torch
import timm
import torch

from reprise.cli import main
from reprise.data.formats.packed import load_metadata
from reprise.model.artifact import load_card
from reprise.model.backbone import create_network, save_model
from reprise.model.pretrained import fetch_weights, find_pretrained, not_loaded, published_weights, weights_of_file
from reprise.repo.project import Project
from reprise.repo.reproduce import BOTH, PREFIX, clone_afresh
from reprise.runtime.errors import UserError
from reprise.training.debug import Debug
from reprise.training.train import Options, train
from tests.conftest import Workspace
from tests.model.test_backbone import Bomb, card, facts, params

REVISION = "5" * 40
PATH = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"


def weights_of(name="test_resnet", **kwargs):
    torch.manual_seed(7)
    return timm.create_model(name, **kwargs).state_dict()


class Hub(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as a download needs."""

    def __init__(self, content, sha256=None, cut=False):
        self.content, self.cut, self.sha256 = content, cut, sha256 or hashlib.sha256(content).hexdigest()
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), HubHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class HubHandler(BaseHTTPRequestHandler):
    def answer(self):
        hub = self.server
        hub.requests.append(self.command)
        if self.path != PATH:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{hub.sha256}"')
        self.send_header("Content-Length", str(len(hub.content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(hub.content[:1000] if hub.cut else hub.content)

    do_GET = do_HEAD = answer  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hubs = []

    def serve(content, **options):
        hubs.append(Hub(content, **options))
        resolved = f"http://127.0.0.1:{hubs[-1].server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", resolved)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", resolved, raising=False)
        return hubs[-1]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield serve
    for served in hubs:
        served.shutdown()  # again, where a test has done it: that is allowed
        served.server_close()


def published(channels=3, classes=1000):
    return safetensors.torch.save(weights_of(num_classes=classes, in_chans=channels))


def test_weights_of_the_hub_are_adapted_recorded_and_then_taken_from_the_cache(hub, monkeypatch):
    content = published()
    server = hub(content)
    start = find_pretrained(params(pretrained=True), None)
    assert (start.origin.source, start.origin.revision) == ("timm/test_resnet.r160_in1k", REVISION)
    assert start.origin.sha256 == hashlib.sha256(content).hexdigest()
    gray, _ = create_network(params(pretrained=True), facts(channels=1), 0, start)
    color, _ = create_network(params(pretrained=True), facts(channels=3), 0, start)
    original = weights_of(num_classes=1000, in_chans=3)
    assert torch.equal(color.model.conv1[0].weight, original["conv1.0.weight"])
    assert torch.allclose(gray.model.conv1[0].weight, original["conv1.0.weight"].sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(gray.model.layer1[0].conv1.weight, original["layer1.0.conv1.weight"])
    assert not_loaded(start, gray.model) == ["fc.weight", "fc.bias"]
    assert (start.mean, start.normalization(1)) == ([0.5] * 3, {"mean": [0.5], "std": [0.5]})
    asked = len(server.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_pretrained(params(pretrained=True), None).origin == start.origin
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("served", "options", "said"),
    [
        (published, {"sha256": "a" * 64}, "a{64}: damaged in the download or since; remove it and run it again"),
        (published, {"cut": True}, "cannot get the weights of test_resnet .*set model.pretrained: false"),
        (lambda: b"<html>", {}, "not readable as weights"),
        (lambda: published()[:-1], {}, "not readable as weights"),
        (None, {}, "cannot get the weights of test_resnet .*set model.pretrained: false"),
    ],
)
def test_a_broken_download_a_wrong_checksum_and_no_network_are_refused(
    served, options, said, hub, monkeypatch, tmp_path
):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 2)
    server = hub(served() if served else b"", **options)
    if served is None:
        server.shutdown()
        server.server_close()
    for attempt in (lambda: published_weights("test_resnet"), lambda: fetch_weights("test_resnet", tmp_path / "w/x")):
        with pytest.raises(UserError, match=said) as refused:
            attempt()
        assert "\n" not in str(refused.value)
    assert [*tmp_path.glob("w/*")] == []


def test_fetched_weights_are_those_of_the_hub_and_are_verified_without_it(hub, tmp_path):
    content = published()
    hub(content)
    origin, folder = fetch_weights("test_resnet", tmp_path / "weights"), tmp_path / "weights"
    file = folder / "model.safetensors"
    assert (origin.revision, origin.sha256) == (REVISION, hashlib.sha256(content).hexdigest())
    assert file.read_bytes() == content
    hub(b"another file since")
    assert fetch_weights("test_resnet", folder) == origin
    for place in (folder, file):
        kept = weights_of_file(place, "test_efficientnet")
        assert (kept.origin, kept.mean, kept.std, kept.image_size) == (origin, [0.5] * 3, [0.5] * 3, 160)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"altered since it was written; `dvc checkout .*weights`, or remove"):
        fetch_weights("test_resnet", folder)
    (folder / "origin.json").unlink()
    with pytest.raises(UserError, match="not what this command has fetched; move it away"):
        fetch_weights("test_resnet", folder)


def test_weights_that_timm_does_not_have_are_refused_and_leave_nothing(tmp_path):
    said = {"digits_cnn": "timm has no weights of digits_cnn; choose", "test_resnett": "mean 'test_resnet'"}
    for model, why in {**said, "../own": "an address, not a model"}.items():
        with pytest.raises(UserError, match=why):
            fetch_weights(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_team_has_fetched_weights_by_its_remote_and_trains_without_the_hub(hub, reproduced, tmp_path, monkeypatch):
    server, path = hub(published()), "data/weights/test_resnet"
    monkeypatch.chdir(reproduced.path)
    assert main(["weights", "test_resnet"]) == 0
    (reproduced.path / f"{path}.dvc").unlink()  # as if killed before DVC had written it
    assert main(["weights", "test_resnet"]) == 0
    assert reproduced.run("git", "status", "--porcelain").stdout == f"?? {path}.dvc\n"
    reproduced.set("model.image_size=32", f"model.weights={path}")
    reproduced.run("dvc", "remote", "add", "--default", "storage", "../storage")
    reproduced.commit()
    reproduced.run("dvc", "push")
    reproduced.run("git", "clone", "--quiet", ".", str(tmp_path / "second"))
    second, asked = Workspace(tmp_path / "second"), len(server.requests)
    monkeypatch.chdir(second.path)
    with pytest.raises(SystemExit, match=f"{path}: DVC tracks it; `dvc pull {path}` brings it"):
        main(["weights", "test_resnet"])
    assert f"missing data 'source': {path}" in second.run("dvc", "repro", check=False).stderr
    second.run("dvc", "pull", path)
    assert main(["weights", "test_resnet"]) == 0
    second.run("dvc", "repro", "evaluate")
    third = clone_afresh(Project(second.path), tmp_path / PREFIX, BOTH[0], [])
    assert (third.root / path / "model.safetensors").read_bytes() == server.content  # or random ones would be compared
    start = load_card(second.path / "models/model.json").training.start
    assert (start.revision, start.sha256) == (REVISION, hashlib.sha256(server.content).hexdigest())
    assert "timm/test_resnet.r160_in1k (license: apache-2.0; SHA-256" in (second.path / "models/README.md").read_text()
    assert len(server.requests) == asked


def test_training_from_published_weights_says_so_and_normalises_as_they_want(hub, digits, tiny_params, capsys):
    content = published()
    hub(content)
    given = tiny_params("model.pretrained=true", "train.epochs=1")
    card = train(digits, given.model, given.train, options=Options(debug=Debug(limit=0.2))).card
    assert card.training.start.sha256 == hashlib.sha256(content).hexdigest()
    assert card.training.start.not_loaded == ["fc.weight", "fc.bias"]
    assert (card.preprocessing.mean, card.preprocessing.std) == ([0.5], [0.5])
    assert load_metadata(digits).mean != [0.5]
    said = capsys.readouterr().err
    assert "starting from timm/test_resnet.r160_in1k; not loaded: fc.weight, fc.bias" in said
    assert "trained on 160x160 images: those of 32x32 are resized" in said
    assert (card.architecture.image_size, card.preprocessing.image_size) == (160, 32)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt", ".PTH.tar"])
def test_a_file_of_any_kind_sets_everything_that_fits(suffix, tmp_path):
    original = weights_of(num_classes=3, in_chans=1)
    file = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(original, file)
    elif suffix == ".ckpt":  # as Lightning wraps it, with what a module keeps beside the network
        wrapped = {f"net.model.{name}": value for name, value in original.items()}
        torch.save({"epoch": 3, "state_dict": wrapped | {"val_acc_best.max_value": torch.ones(1)}}, file)
    else:  # as PyTorch's tutorial does
        torch.save({"model_state_dict": original, "optimizer_state_dict": {}, "epoch": 3}, file)
    for place in (file, tmp_path):
        start = find_pretrained(params(), place)
        network, _ = create_network(params(), facts(), 0, start)
        assert not_loaded(start, network.model) == []
        for name, tensor in network.model.state_dict().items():
            assert torch.equal(tensor, original[name]), name
    assert start.origin.source == file.name
    two, _ = create_network(params(), facts(channels=3).model_copy(update={"classes": ["a", "b"]}), 0, start)
    assert not_loaded(start, two.model) == ["fc.weight", "fc.bias"]
    assert not two.model.fc.weight.any()  # it shall not shake the rest
    assert not two.model.fc.bias.any()
    assert two.model.conv1[0].weight.shape[1] == 3


# a classifier that is a linear layer, two of them, and a convolution
HEADS = {
    "test_resnet": ({}, ["fc"]),
    "deit_tiny_distilled_patch16_224": ({"depth": 1, "embed_dim": 24, "num_heads": 3}, ["head", "head_dist"]),
    "resnetv2_50": ({"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "stem_chs": 8}, ["head.fc"]),
}


def of_classes(names, channels=1):
    return facts(channels=channels).model_copy(update={"classes": list(names)})


def run_of(folder, names, model="test_resnet", **kwargs):
    """Write a run whose classifier's rows are 1, 2, 3, ... in the order of these classes; return its network."""
    network, architecture = create_network(params(model, **kwargs), of_classes(names), 0)
    for name, weight in network.model.named_parameters():
        if name.startswith(tuple(f"{head}." for head in HEADS[model][1])):
            weight.data[:] = torch.arange(1.0, len(names) + 1).view(-1, *[1] * (weight.ndim - 1))
    facts_of = card(architecture).model_copy(update={"classes": list(names)})
    save_model(network, facts_of, folder / "model.safetensors", folder / "model.json")
    return network.eval()


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize(
    ("names", "rows", "new"),
    [
        ("abc", [1, 2, 3], []),
        ("cab", [3, 1, 2], []),
        ("xcy", [0, 3, 0], ["x", "y"]),
        ("ca", [3, 1], []),
        ("bxayz", [2, 0, 1, 0, 0], ["x", "y", "z"]),
        ("xyz", [0, 0, 0], ["x", "y", "z"]),
        ("wxyz", [0, 0, 0, 0], ["w", "x", "y", "z"]),
    ],
)
def test_a_class_keeps_its_row_of_the_classifier_by_name(model, names, rows, new, tmp_path):
    kwargs, heads = HEADS[model]
    first = run_of(tmp_path, "abc", model, **kwargs)
    start = find_pretrained(params(model, **kwargs), tmp_path)
    network, _ = create_network(params(model, **kwargs), of_classes(names), 1, start)
    wanted = torch.tensor(rows, dtype=torch.float32)
    tensors = [f"{head}.{kind}" for head in heads for kind in ("weight", "bias")]
    for name, tensor in network.model.state_dict().items():
        if name in tensors:
            assert torch.equal(tensor, wanted.view(-1, *[1] * (tensor.ndim - 1)).expand_as(tensor)), name
        else:
            assert torch.equal(tensor, first.model.state_dict()[name]), name
    fitted = start.for_classes(list(names), model)
    assert fitted.origin.new_classes == new
    assert sorted(not_loaded(fitted, network.model)) == (sorted(tensors) if len(new) == len(names) else [])
    assert start.classes == ["a", "b", "c"]
    assert start.weights[tensors[0]].flatten()[0] == 1  # untouched
    assert (fitted is start) == (names == "abc")


def test_a_thousand_other_classes_begin_anew_although_timm_expects_a_thousand(tmp_path):
    run_of(tmp_path, [f"old {number}" for number in range(1000)])
    start = find_pretrained(params(), tmp_path)
    network, _ = create_network(params(), of_classes([f"new {number}" for number in range(1000)]), 1, start)
    assert network.model.fc.weight.shape[0] == 1000
    assert not network.model.fc.weight.any()


def test_weights_that_do_not_name_their_classes_or_name_others_than_they_hold_stay_as_they_are(tmp_path):
    run_of(tmp_path, "abc")
    bare = find_pretrained(params(), tmp_path / "model.safetensors")
    assert bare.classes is None
    assert bare.for_classes(["x", "y", "z"], "test_resnet") is bare
    altered = replace(find_pretrained(params(), tmp_path), classes=["a", "b"])
    assert altered.for_classes(["b", "a", "x"], "test_resnet") is altered


@pytest.mark.parametrize(
    ("digits_of_run", "said", "new"),
    [
        (range(10), "not loaded: nothing\n  trained", []),
        (range(9, -1, -1), "not loaded: nothing\n  classes: 10 of 10 are known to model.safetensors (0, 1, ", []),
        (
            ["0", "two\nlines", *range(2, 10)],
            "not loaded: the classifier's rows of new classes\n  classes: 9 of 10 are known to model.safetensors "
            "(0, 2, 3, 4, 5, 6, 7, 8 and 1 more), new: 1\n",
            ["1"],
        ),
        (
            ["two\nlines", *range(10, 22)],
            "not loaded: fc.weight, fc.bias\n  classes: 0 of 10 are known to model.safetensors, which has two\\nlines, "
            "10, 11, 12, 13, 14, 15, 16 and 5 more, new: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more\n",
            [str(number) for number in range(10)],
        ),
    ],
)
def test_training_says_which_classes_are_known_and_the_model_records_the_new_ones(
    digits_of_run, said, new, digits, tiny_params, tmp_path, capsys
):
    run_of(tmp_path, list(map(str, digits_of_run)))
    given = tiny_params("train.epochs=1", "model.image_size=16")
    result = train(digits, given.model, given.train, weights=tmp_path)
    assert f"starting from model.safetensors; {said}" in capsys.readouterr().err
    assert result.card.training.start.new_classes == new


def test_an_empty_folder_stands_for_random_weights(tmp_path):
    (tmp_path / ".gitkeep").touch()
    assert find_pretrained(params(), tmp_path) is None
    (tmp_path / "model.h5").touch()
    with pytest.raises(UserError, match=r"holds model\.h5, but no weights"):
        find_pretrained(params(), tmp_path)


def test_what_holds_no_weights_of_the_model_is_refused(tmp_path, digits, tiny_params):
    def refusal(**kwargs):
        with pytest.raises(UserError) as refused:
            start = find_pretrained(params(**kwargs), tmp_path / "x.pth")
            create_network(params(), facts(), 0, start)
        return str(refused.value)

    assert "no such file; `dvc pull`, or an empty folder for random weights" in refusal()
    (tmp_path / "x.pth").write_bytes(b"nothing")
    assert "not readable as weights" in refusal()
    torch.save(weights_of(), tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    for size in (0, 100, 50_000, len(whole) - 100):
        (tmp_path / "x.pth").write_bytes(whole[:size])
        assert "not readable as weights" in refusal()
    torch.save({"weights": weights_of(), "epoch": 3}, tmp_path / "x.pth")
    assert "holds no tensors by name, but weights, epoch; save the model's state_dict()" in refusal()
    torch.save(Bomb(), tmp_path / "x.pth")
    assert "holds a pickled model or other objects, whose code is not run" in refusal()
    torch.save(weights_of("test_efficientnet", num_classes=3, in_chans=1), tmp_path / "x.pth")
    assert "x.pth: not weights of test_resnet" in refusal()
    assert "choose one of them" in refusal(pretrained=True)
    torch.save(weights_of("test_efficientnet"), tmp_path / "x.pth")
    given = tiny_params()
    with pytest.raises(UserError, match=r"x\.pth: not weights of "):
        train(digits, given.model, given.train, weights=tmp_path / "x.pth")
    torch.save({}, tmp_path / "y.pth")
    with pytest.raises(UserError, match="holds 2 files of weights; name one of them"):
        find_pretrained(params(), tmp_path)


NO_TENSORS = [None, [1, 2], 3, "text", torch.ones(3), {1: torch.ones(2)}, {}]


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "state_dict_ema"])
@pytest.mark.parametrize("content", NO_TENSORS, ids=lambda content: type(content).__name__)
def test_anything_else_than_tensors_by_name_is_one_line(key, content, tmp_path):
    torch.save(content if key is None else {key: content}, tmp_path / "x.pth")
    if isinstance(content, dict) and content and key == "model_state_dict":
        return  # names that are numbers: refused when the network is built
    with pytest.raises(UserError, match=r"x\.pth: holds no tensors by name.*save the model's state_dict\(\)$"):
        find_pretrained(params(), tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (lambda path: torch.save(timm.create_model("test_resnet"), path), "holds a pickled model"),
        (lambda path: torch.save({"state_dict": weights_of(), "hparams": {"f": print}}, path), "holds a pickled model"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
            "a pointer of Git LFS, not the weights; `git lfs pull`",
        ),
        (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "neither safetensors nor a torch file"),
    ],
)
def test_a_pickled_model_a_pointer_and_a_web_page_are_named_as_what_they_are(save, said, tmp_path):
    for name in ("x.pth", "x.bin"):
        save(tmp_path / name)
        with pytest.raises(UserError) as refused:
            find_pretrained(params(), tmp_path / name)
        assert f"{name}: " in str(refused.value)
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e5m2]
)
@pytest.mark.parametrize("names", [["fc.bias"], ["layer1.0.conv1.weight"], None])
def test_quantized_weights_are_refused(dtype, names, tmp_path):
    whole = weights_of(num_classes=3, in_chans=1)
    chosen = names or [name for name, tensor in whole.items() if tensor.is_floating_point()]
    torch.save(whole | {name: whole[name].to(dtype) for name in chosen}, tmp_path / "x.pth")
    start = find_pretrained(params(), tmp_path / "x.pth")
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"x\.pth: {chosen[0]} is {kind}, quantized; give the original floats"):
        create_network(params(), facts(), 0, start)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_other_widths_are_taken(dtype, tmp_path):
    whole = {name: tensor.to(dtype) for name, tensor in weights_of(num_classes=3, in_chans=1).items()}
    torch.save(whole, tmp_path / "x.pth")
    network, _ = create_network(params(), facts(), 0, find_pretrained(params(), tmp_path / "x.pth"))
    assert torch.equal(network.model.fc.weight, whole["fc.weight"].float())


def averaged_by_torch(network):
    return torch.optim.swa_utils.AveragedModel(network).state_dict()


@pytest.mark.parametrize(
    "wrap", [averaged_by_torch, lambda network: {"state_dict": {}, "state_dict_ema": network.state_dict()}]
)
def test_averaged_weights_are_taken_from_the_checkpoints_that_have_them(wrap, tmp_path):
    torch.manual_seed(7)
    model = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    torch.save(wrap(model), tmp_path / "x.pth")
    start = find_pretrained(params(), tmp_path / "x.pth")
    network, _ = create_network(params(), facts(), 0, start)
    assert not_loaded(start, network.model) == []
    assert torch.equal(network.model.fc.weight, model.fc.weight)


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18.a1_in1k", "timm/resnet18", "https://huggingface.co/me/mine", "local-dir:/x"]
)
def test_an_address_in_place_of_a_model_is_refused_as_one(name):
    with pytest.raises(UserError, match=r"an address, not a model; the last part .* go into data/weights"):
        find_pretrained(params(name), None)


def test_a_training_is_taken_up_only_from_one_that_began_with_the_same_classes(digits, tiny_params, tmp_path):
    names = load_metadata(digits).classes
    for folder, classes in (("one", names[::-1]), ("two", [*names[1:], names[0]])):
        (tmp_path / folder).mkdir()
        run_of(tmp_path / folder, classes)
    keys = {}
    for folder in ("one", "two", "one"):
        params = tiny_params("train.epochs=1", f"model.weights={tmp_path / folder}")
        result = train(digits, params.model, params.train, weights=tmp_path / folder)
        keys.setdefault(folder, set()).add(result.card.provenance.key())
    assert [len(each) for each in keys.values()] == [1, 1]
    assert keys["one"] != keys["two"]


def test_a_network_that_is_to_be_pretrained_is_never_random_for_want_of_the_weights(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot get the weights of test_resnet"):
        create_network(params("test_resnet", pretrained=True), facts(), 0)
