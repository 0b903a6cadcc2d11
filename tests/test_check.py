"""The stage `check`: what a later stage would refuse is refused before DVC has removed an out of it."""

import hashlib
import json
import re
import runpy

import pytest

from reprise.data.formats.raw import RawArchive, image_id
from reprise.evaluation.evaluate import ALWAYS
from reprise.runtime.checksums import md5_listing
from reprise.runtime.errors import UserError
from tests.conftest import ROOT
from tests.test_pipeline import photos, refused

WRONG = {  # what is set, and what is said
    "train.batch_size=1": "train.batch_size = 1: test_resnet normalizes over the batch; choose at least 2",
    "train.start_size=33": "train.start_size = 33: images grow to 32; choose at most that",
    "train.start_size=16 model.name=mlp": "mlp cannot take 16x16 images .* raise train.start_size",
    "train.loggers=[wandb]": r"train.loggers: wandb is not installed; `pip install -e '\.\[wandb\]'`",
    "train.backbone=frozen": "train.backbone = frozen: random weights have nothing worth keeping; set model.pre",
    "model.weights=data/weights/no.pth": "model.weights = data/weights/no.pth: no such file",
    "model.weights=runs/latest": "model.weights = runs/latest: the pipeline watches data/weights alone",
    "train.accelerator=gpu train.reproducible=off": "train.accelerator = gpu: torch finds none here",
    "train.precision=bf16": "train.precision = bf16 gives other bits on other CPUs.* choose precision fp32",
    "train.compile=true": "train.compile = true makes kernels for this one CPU.* choose compile false",
    "train.augment.hue=0.1": "train.augment.hue = 0.1: the images are gray",
    "data.channels=1 data.name=cifar10 train.augment.saturation=0.5": "train.augment.saturation = 0.5: the images are",
    "train.augment.crop=32": "train.augment.crop = 32: padding must be below the image size",
    "data.split=letters": "data.split = letters: digits has none to choose from; set data.split: null",
    "data.mirror=http://m data.name=folder": "data.mirror = http://m: folder has none to choose from",
    "data.split=letters data.name=cifar10": "data.split = letters: cifar10 has no variants; set data.split: null",
    "data.split=leters data.name=emnist": "data.split = leters is not allowed: emnist has balanced, .*, mnist; null is",
    "data.mirror=http://m data.name=gtsrb": "data.mirror = http://m: torchvision cannot take gtsrb from elsewhere",
    "evaluate.budget.parameters=1000": "evaluate.budget.parameters = 1,000: this model needs 373,",
    "evaluate.budget.size_mb=0.5": "evaluate.budget.size_mb = 0.5: this model needs 1.4",
    'evaluate.gates={"recal.cat":0.9}': "evaluate.gates: recal.cat: no metric with an interval, .* did you mean",
    'evaluate.gates={"recall.11":0.9}': "evaluate.gates: recall.11: no metric .* class, .*; did you mean recall.1,",
    "evaluate.metrics=[recall]": "evaluate.metrics: recall is the name of another metric",
    "evaluate.metrics=[auroc,auroc]": "evaluate.metrics: auroc is the name of another metric",
    "evaluate.metrics=[project/a.py:ece]": "ece is the name of another metric; remove or rename project/a.py:ece",
    "evaluate.metrics=[project/a.py:auroc]": "evaluate.metrics: auroc is the name of another metric",
}


OUTS = "data/processed", "data/report", "data/records/preprocess.json", "metrics/data.json"


@pytest.fixture
def check(reproduced, monkeypatch):
    """The reproduced clone, and the stage as a function that sets params first."""
    monkeypatch.chdir(reproduced.path)
    for name in ("reprise.runtime.environment.before_torch", "reprise.params.resolve.find_spec"):
        monkeypatch.setattr(name, lambda *_: None)
    return lambda overrides: (
        reproduced.set(*overrides.split()) or runpy.run_path(str(ROOT / "stages/check.py"), run_name="check")["main"]()
    )


# values that their parameter does not allow; what names it is the key that is put back
MISTAKES = [
    *("train.lr=fast", "train.lr=-1", "train.epochs=0", "train.epochs=1.5", "train.batch_size=", "data.folders=3"),
    *("train.schedule=cosin", "train.schedule_kwargs.min_lrr=1", "train.lrr=0.1", "train.augment.flip=maybe"),
    *("train.precision=fp16", "train.select=accuracy", "train=5", "model.name=resnet8000", "model.kwargs.nonsense=1"),
    *("model.kwargs.num_classes=3", "model.image_size=4", "data.name=digit", "data.channels=2", "data.resize=pad"),
    *("data.test_fraction=1.5", "train.optimizer=adamx", "evaluate.calibration_bins=many"),
]


def test_what_a_later_stage_would_refuse_is_refused_with_the_way_back(check, reproduced):
    params = reproduced.path / "params.yaml"
    before = params.read_text()
    for overrides, said in WRONG.items():
        params.write_text(before)
        with pytest.raises(UserError, match=rf"{said}.*\n.*`reprise params --reset KEY`"):
            check(overrides)
    for mistake in MISTAKES:
        params.write_text(before)
        with pytest.raises(UserError, match=rf"`reprise params --reset ({re.escape(mistake.partition('=')[0])}|KEY)`"):
            check(mistake)


def test_other_weights_are_looked_at_though_no_param_has_changed(check, reproduced):
    weights = reproduced.path / "data/weights/mine.safetensors"
    weights.write_bytes((reproduced.path / "models/model.safetensors").read_bytes())
    check("train.epochs=3")
    weights.write_bytes(b"weights")
    with pytest.raises(UserError, match=r"mine\.safetensors: not readable as weights"):
        check("train.epochs=3")
    weights.unlink()
    check("train.batch_size=1 model.name=mlp train.augment.hue=0.1 data.name=cifar10 evaluate.metrics=[auroc]")


def test_the_names_that_no_further_metric_may_have_are_those_of_test_json(reproduced_once):
    assert set(json.loads((reproduced_once.path / "metrics/test.json").read_text())) == set(ALWAYS)


def test_a_frozen_stage_does_not_take_the_check_out_of_order(reproduced):
    reproduced.run("dvc", "freeze", "preprocess")
    reproduced.set("train.batch_size=1")
    model = reproduced.path / "models/model.safetensors"
    before, done = model.stat(), reproduced.run("dvc", "repro", "train", check=False)
    assert "train.batch_size = 1: test_resnet normalizes" in refused(done)
    assert model.stat() == before


def test_a_network_of_ones_own_may_want_what_only_the_data_tell(reproduced):
    own = "from torch import nn\nfrom timm.models import register_model\n\n@register_model\ndef picky(**kwargs):\n"
    own += "    assert kwargs['in_chans'] == 1\n    return nn.Identity()\n"
    (reproduced.path / "project/net.py").write_text(own)
    reproduced.set("data.name=cifar10", "model.name=project/net.py:picky")
    reproduced.run("python", "stages/check.py")


def correct(reproduced, *labels):
    """Write a correction of the first image of the raw data for each label."""
    archive = RawArchive(reproduced.path / "data/raw")
    member, digest = next((each, hashlib.sha256(archive.read(each)).hexdigest()) for each in archive.members)
    lines = "".join(f"{image_id(member)},{digest},{label},,\n" for label in labels)
    (reproduced.path / "data/corrections.csv").write_text(f"id,sha256,label,by,why\n{lines}")


def test_a_mistake_in_the_corrections_is_one_line_and_costs_no_out(check, reproduced):
    before = [md5_listing(reproduced.path / name) for name in OUTS]
    for labels, said in ((("1", "2"), "line 3: "), (["cat"], "no class 'cat'; the data have 0, 1, 2")):
        correct(reproduced, *labels)
        assert said in refused(reproduced.run("dvc", "repro", check=False))
        assert [md5_listing(reproduced.path / name) for name in OUTS] == before
    (reproduced.path / "data/raw/images.zip").write_bytes(b"altered")
    check("")  # `download` makes it anew, which must not be in the way


@pytest.mark.slow
def test_a_class_may_come_with_its_correction_and_what_one_that_goes_has_cost_comes_back(check, reproduced):
    photos(own := reproduced.path / "data/own")
    reproduced.set("data.name=folder")
    reproduced.run("dvc", "repro", "download")
    correct(reproduced, "dog")
    reproduced.run("dvc", "repro", "preprocess")
    before = [md5_listing(reproduced.path / name) for name in OUTS]
    (own / "dog").rename(own / "eel")
    said = refused(reproduced.run("dvc", "repro", "preprocess", check=False)).splitlines()
    assert "no class 'dog'; the data have cat, eel" in said[0]
    assert said[1].endswith("`dvc repro` brings the results from before back")
    (own / "eel").rename(own / "dog")
    assert "'preprocess' is cached" in reproduced.run("dvc", "repro", "preprocess").stdout
    assert [md5_listing(reproduced.path / name) for name in OUTS] == before
    line = (corrections := reproduced.path / "data/corrections.csv").read_text()
    photos(own, ["cat"], 1)  # the image with a correction has other pixels now
    correct(reproduced)  # none
    reproduced.run("dvc", "repro", "preprocess")
    corrections.write_text(line)  # which `check` has allowed before, for other data
    assert "cat/0.jpg has another content" in refused(reproduced.run("dvc", "repro", "preprocess", check=False))
    assert all((reproduced.path / name).exists() for name in OUTS)
    correct(reproduced, "owl")
    with pytest.raises(UserError, match="no class 'owl'; the data have cat, dog"):
        check("")
    (own / "dog").rename(own / "owl")
    check("")
