"""docs/scale.md: its formulas give the bytes of the files that are written, and its table is theirs."""

import numpy as np
import pytest
from safetensors.torch import save

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
    assert len(printed) > 300 and printed in (ROOT / "docs/scale.md").read_text()
    return names


def test_packed_images_take_the_bytes_of_their_pixels(formulas, digits):
    count = len(load_split(digits, "train"))
    # behind numpy's header
    assert (digits / "train_images.npy").stat().st_size - 128 == formulas["packed"](count, 32, channels=1)


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
    size = formulas["checkpoint"](parameters, **expected)
    assert size <= (tmp_path / "last").stat().st_size <= 1.03 * size
    size = formulas["model"](parameters)
    assert size <= len(save(result.network.state_dict())) <= 1.03 * size


def test_predictions_take_at_most_so_many_bytes_a_probability(formulas, tmp_path):
    classes = [str(number) for number in range(100, 200)]
    write_predictions(tmp_path / "all.csv", classes, ["f" * 30] * 50, [0] * 50, np.full((50, 100), 1.23456e-05))
    rows = (tmp_path / "all.csv").read_text().partition("\n")[2]
    assert 0.9 * formulas["predictions"](50, 100) <= len(rows) <= formulas["predictions"](50, 100)
