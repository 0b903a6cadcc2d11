"""A sweep's definition: what is not allowed is refused before anything runs, with key, value and what is."""

import pytest

from reprise.params.load import read_yaml
from reprise.runtime.errors import UserError
from reprise.search.space import Definition, json_schema
from tests.conftest import PARAMS, ROOT

RATE = {"train.lr": "log(1e-4, 1e-1)"}


def definition(tmp_path, **changes):
    return Definition.load(tmp_path / "mine.yaml", **{"space": RATE, **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("log(1e-4, 0.1)", "FloatDistribution(high=0.1, log=True, low=0.0001, step=None)"),
        ("log(.1, 1)", "FloatDistribution(high=1.0, log=True, low=0.1, step=None)"),
        ("float( -1, 2.5 )", "FloatDistribution(high=2.5, log=False, low=-1.0, step=None)"),
        ("int(8, 64, 8)", "IntDistribution(high=64, log=False, low=8, step=8)"),
        ("a|2|1e-3|true|null", "CategoricalDistribution(choices=('a', 2, 0.001, True, None))"),
        (["a|b", 2], "CategoricalDistribution(choices=('a|b', 2))"),
        (3, "CategoricalDistribution(choices=(3,))"),
        (None, "CategoricalDistribution(choices=(None,))"),
    ],
)
def test_what_a_parameter_may_be_is_read_from_text(tmp_path, text, said):
    assert repr(definition(tmp_path, space={"train.ema": text}).space["train.ema"]) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"train.lr": "log(1e-4)"}}, "mine.yaml: space.train.lr = log(1e-4)"),
        ({"space": {"train.lr": "log(0, 1)"}}, "mine.yaml: space.train.lr = log(0, 1)"),
        ({"space": {"train.lr": "float(2, 1)"}}, "mine.yaml: space.train.lr = float(2, 1)"),
        ({"space": {"train.epochs": "int(1.5, 9)"}}, "mine.yaml: space.train.epochs = int(1.5, 9): "),
        (
            {"space": {"train.epochs": "int(1, 9, 3)"}},
            "space.train.epochs = int(1, 9, 3): Value error, int takes whole",
        ),
        ({"space": {"train.epochs": "int(1, 9, 2, 4)"}}, "space.train.epochs = int(1, 9, 2, 4): "),
        ({"space": {"train.lr": "1|2|1.0"}}, "space.train.lr = 1|2|1.0: Value error, a choice is there twice"),
        ({"space": {"train.ema": [1, True]}}, "a choice is there twice"),
        ({"space": {}}, "mine.yaml: space = {}"),
        ({"sampler": "tpee"}, "mine.yaml: sampler = tpee: Input should be 'tpe', 'random', 'grid' or 'nsga2'"),
        ({"objectives": ["accuracy"]}, "objectives.0 = accuracy: Input should be 'val_accuracy', 'val_loss' or"),
        ({"trials": 0}, "trials = 0"),
        ({"spaces": 1}, "spaces = 1"),
        ({"pruner": "median", "objectives": ["val_loss", "flops"]}, "a pruner takes one objective"),
        ({"pruner": "median", "objectives": ["flops"]}, "a pruner takes one objective"),
        ({"sampler": "grid"}, "a grid needs choices"),
        ({"when": {"train.lr": {"train.optimizer": "sgd"}}}, "no parameter above it has the choice train.optimizer"),
    ],
)
def test_a_wrong_definition_is_refused(tmp_path, changes, said):
    with pytest.raises(UserError) as refused:
        definition(tmp_path, **changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("train.lr", "log(1e-4, 1000)", "train.lr = 1000.0 is not allowed: expected a number > 0 and <= 100"),
        ("train.batch_size", "float(16, 64)", "train.batch_size = 34.336 is not allowed: expected a whole number"),
        ("train.schedule", "cosine|cosin", "train.schedule = 'cosin' is not allowed: expected one of onecycle"),
        ("train.lrate", "1|2", "there is no parameter 'train.lrate'"),
        ("train.lr", "log(1e-4, 1", "train.lr = 'log(1e-4, 1' is not allowed"),
        ("train.seed", "1|2|3", "train.seed is the same for all trials"),
        ("data.val_fraction", "float(0.1, 0.2)", "data.val_fraction is the same for all trials"),
        ("evaluate.batch_size", "16|32", "evaluate.batch_size is the same for all trials"),
    ],
)
def test_a_space_that_the_params_refuse_is_refused_with_key_value_and_what_is_allowed(tmp_path, key, text, said):
    made = definition(tmp_path, space={key: text})
    with pytest.raises(UserError) as refused:
        made.check(PARAMS)
    assert said in str(refused.value)


def test_only_what_decides_the_trials_is_in_the_digest(tmp_path):
    digest = definition(tmp_path).deciding()
    assert definition(tmp_path, trials=7, digest="b", sampler="tpe").deciding() == digest
    others = [
        {"seed": 1},
        {"commit": "a"},
        {"space": {"train.lr": "log(1e-4, 0.2)"}},
        {"objectives": ["val_loss"]},
        {"pruner": "median"},
    ]
    assert len({definition(tmp_path, **other).deciding() for other in others} | {digest}) == 6


def test_the_schema_is_current_and_the_example_is_allowed():
    assert (ROOT / "src/reprise/search/sweep.schema.json").read_text() == json_schema(), "run `make schema`"
    example = ROOT / "sweeps/example.yaml"
    assert example.read_text().startswith("# yaml-language-server: $schema=../src/reprise/search/sweep.schema.json\n")
    Definition.load(example).check(PARAMS)
    assert Definition.load(example).name == "example"
    assert "name" not in read_yaml(example)
