"""An image of another kind is named as an outlier, a copy of it too, and few or none of the ordinary ones."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from reprise.features.store import pooled
from reprise.labels.outliers import outlying, reduced, watch_last_layer
from reprise.labels.report import read_doubts
from reprise.model.backbone import TIMMBackbone
from tests.conftest import fresh_clone


def test_what_is_far_from_all_is_an_outlier_however_often_it_is_copied_and_a_rare_class_is_none():
    random, predicted = np.random.default_rng(0), np.repeat([0, 1, 2], [300, 300, 6])
    far = np.concatenate([np.full((50, 8), 9.0), 30 * random.normal(size=(3, 8))])
    ordinary = random.normal(size=(606, 8)) * np.where(predicted == 2, 0.6, 1)[:, None] + 9 * np.eye(8)[predicted]
    many = torch.from_numpy(np.concatenate([far, ordinary]) @ random.normal(size=(8, 3000))).float()
    found = outlying(reduced(many).numpy(), np.concatenate([np.zeros(53, int), predicted]))
    # of 606 ordinary ones at most 12; 0.6 % of normal values would be 4
    assert (found[:53].all(), found[-6:].any(), found[53:].sum() <= 12) == (True, False, True)
    assert not outlying(far, np.zeros(53, int)).any()  # four images that differ


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "digits_cnn"])
def test_what_the_last_layer_gets_is_watched_and_after_the_context_no_more(name):
    network, seen = TIMMBackbone(name, pretrained=False, num_classes=3, in_chans=1).eval(), []
    images = torch.rand(4, 1, *[network.model.default_cfg["input_size"][-1]] * 2)
    with torch.no_grad(), watch_last_layer(network.model, seen.append):
        network(images)
    network(images)
    assert len(seen) == 1 and torch.equal(seen[0], pooled(network, images))


@pytest.mark.slow
def test_noise_blank_images_and_a_photo_among_digits_are_named_and_at_most_1_percent_of_the_digits(tmp_path):
    clone, random, digits = fresh_clone(tmp_path / "clone"), np.random.default_rng(0), load_digits()
    odd = [np.zeros((8, 8)), load_sample_images().images[1].mean(axis=2), *random.integers(0, 256, (4, 8, 8))]
    labels = [*random.integers(0, 10, len(odd)), *digits.target]
    for row, (label, pixels) in enumerate(zip(labels, [*odd, *digits.images * 15], strict=True)):
        file = clone.path / f"data/own/{label}/{row}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    clone.set("data.name=folder")
    clone.commit()
    clone.run("python", "-m", "reprise", "labels", "--folds", "2")
    # two folds; what five name is in docs/labels.md
    doubts = read_doubts(clone.path / "runs/labels/labels.csv")
    outliers = {int(row.id.split("/")[1][:-4]) for row in doubts if "outlier" in row.why.split("; ")}
    assert {*range(len(odd))} <= outliers and len(outliers) - len(odd) <= 0.01 * len(digits.target)
    assert (clone.path / "runs/labels/outlier.svg").read_text().count("<image ") == len(outliers)
