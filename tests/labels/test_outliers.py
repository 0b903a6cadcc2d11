"""An image of another kind is named as an outlier, a copy of it too, and few or none of the ordinary ones."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from reprise.features.store import pooled
from reprise.labels.outliers import outlying, reduced, watch_last_layer
from reprise.labels.report import read_doubts
from reprise.model.backbone import TIMMBackbone
from reprise.runtime.tables import read_csv
from tests.conftest import fresh_clone


def test_what_is_far_from_all_is_an_outlier_however_often_it_is_copied_and_a_rare_class_is_none():
    random = np.random.default_rng(0)
    predicted = np.repeat([0, 1, 2], [300, 300, 6])
    ordinary = random.normal(size=(606, 20)) + 9 * np.eye(20)[predicted]
    far = np.concatenate([np.full((50, 20), 9.0), random.normal(size=(3, 20)) * 30])
    found = outlying(np.concatenate([far, ordinary]), np.concatenate([np.zeros(53, int), predicted]))
    assert found[:53].all()
    assert found[53:].sum() <= 12  # 0.6 % of normal values would be 4
    assert not found[-6:].any()
    assert not outlying(far, np.zeros(53, int)).any()  # 4 different images


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "digits_cnn"])
def test_what_the_last_layer_gets_is_watched_and_after_the_context_no_more(name):
    network = TIMMBackbone(name, pretrained=False, num_classes=3).eval()
    images, seen = torch.rand(4, 3, *[network.model.default_cfg["input_size"][-1]] * 2), []
    with torch.no_grad(), watch_last_layer(network.model, seen.append):
        network(images)
    network(images)
    assert len(seen) == 1 and torch.equal(seen[0], pooled(network, images))


def test_features_of_many_dimensions_keep_their_distances_nearly():
    features = torch.randn(40, 3000, generator=torch.Generator().manual_seed(1))
    kept = reduced(features)
    assert kept.shape == (40, 256) and torch.equal(kept, reduced(features))
    shares = torch.pdist(kept) / torch.pdist(features)
    assert 0.75 < shares.min() and shares.max() < 1.25
    assert torch.equal(reduced(features[:, :256]), features[:, :256])


@pytest.mark.slow
def test_noise_blank_images_and_photos_among_digits_are_named_and_at_most_1_percent_of_the_digits(tmp_path):
    clone, random, digits = fresh_clone(tmp_path / "clone"), np.random.default_rng(0), load_digits()
    photos = [np.asarray(Image.fromarray(photo).convert("L").resize((8, 8))) for photo in load_sample_images().images]
    odd = [np.zeros((8, 8)), np.full((8, 8), 255), *random.integers(0, 256, (4, 8, 8)), *photos]
    images = [
        (f"digit{row}", label, pixels * 15) for row, (label, pixels) in enumerate(zip(digits.target, digits.images))
    ]
    images += [(f"odd{row}", random.integers(10), pixels) for row, pixels in enumerate(odd)]
    for name, label, pixels in images:
        file = clone.path / f"data/own/{label}/{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    clone.set("data.name=folder")
    clone.commit()
    clone.run("python", "-m", "reprise", "labels", "--folds", "2")
    folder = clone.path / "runs/labels"
    reasons = {row.id.split("/")[1]: row.why.split("; ") for row in read_doubts(folder / "labels.csv")}
    outliers = {name for name, why in reasons.items() if "outlier" in why}
    assert {f"odd{row}.png" for row in range(len(odd))} <= outliers
    assert len(outliers) - len(odd) <= 0.01 * len(digits.target)
    sheets = {"other-class.svg", "outlier.svg", "nothing-like-any-class.svg"}
    assert {path.name for path in folder.glob("*.svg")} == sheets and len(read_csv(folder / "labels.csv")) > len(
        outliers
    )
    page = (folder / "labels.md").read_text()
    assert all(f"]({name})" in page for name in sheets) and f"{len(outliers)} outlier, the first:" in page
    assert (folder / "outlier.svg").read_text().count("<image ") == len(outliers)
