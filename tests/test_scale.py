"""docs/scale.md: its formulas give the bytes of the files that are written, and its table is theirs."""

import numpy as np
import pytest
from safetensors.torch import save_file

from reprise.data.formats.packed import load_split
from reprise.evaluation.predictions import write_predictions
from reprise.training.train import train
from tests.conftest import ROOT, blocks


@pytest.fixture
def formulas(capsys):
    """The functions of the page's block, whose output stands on the page."""
    names = {}
    exec(blocks("docs/scale.md", "python")[0], names)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 5
    assert printed in (ROOT / "docs/scale.md").read_text()
    return names


def test_packed_images_take_the_bytes_of_their_pixels(formulas, digits):
    for split in ("train", "val", "test"):
        count = len(load_split(digits, split))
        size = (digits / f"{split}_images.npy").stat().st_size
        assert size - 128 == formulas["packed"](count, 32, channels=1)  # numpy's header


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.optimizer=adamw"], {}),
        (["train.optimizer=adamw", "train.ema=0.9"], {"ema": True}),
        (["train.optimizer=sgd"], {"moments": 1}),
    ],
)
def test_model_and_checkpoint_take_so_many_bytes_a_parameter(
    formulas, digits, tiny_params, tmp_path, overrides, expected
):
    params = tiny_params("model.name=mlp", *overrides)
    result = train(digits, params.model, params.train, tmp_path)
    result.checkpoints.keep(tmp_path / "last")
    result.discard_checkpoints()
    parameters = sum(weight.numel() for weight in result.network.parameters())
    save_file(result.network.state_dict(), tmp_path / "model")
    for file, size in (
        ("last", formulas["checkpoint"](parameters, **expected)),
        ("model", formulas["model"](parameters)),
    ):
        assert size <= (tmp_path / file).stat().st_size <= 1.03 * size


def test_predictions_take_at_most_so_many_bytes_a_probability(formulas, tmp_path):
    classes = [f"class {number}" for number in range(100)]
    probabilities = np.full((50, 100), 1.23456e-05)
    write_predictions(tmp_path / "all.csv", classes, ["f" * 30] * 50, [0] * 50, probabilities)
    bound = formulas["predictions"](50, 100)
    header = sum(len(f",p({name})") for name in classes) + 25
    assert 0.9 * bound <= (tmp_path / "all.csv").stat().st_size - header <= bound
