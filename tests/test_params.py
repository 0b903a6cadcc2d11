"""params.yaml means what the user typed, and what it does not allow is refused by name."""

from typing import get_args

import pytest

from reprise.data.sources import TORCHVISION_SETS
from reprise.errors import UserError
from reprise.params import DataParams, Params, json_schema, load_params
from tests.conftest import ROOT

PARAMS = ROOT / "params.yaml"


def edited(tmp_path, old, new):
    path = tmp_path / "params.yaml"
    text = PARAMS.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        load_params(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("lr: 1e-05", 1e-05),  # what `-S train.lr=1e-5` leaves; plain YAML 1.1 reads a text
        ("lr: 1e-5", 1e-05),
        ("lr: .5", 0.5),
        ("lr: 1", 1.0),
        ("lr: '0.25'", 0.25),
    ],
)
def test_numbers_mean_what_was_typed(tmp_path, written, read):
    assert load_params(edited(tmp_path, "lr: 0.003", written)).train.lr == read


@pytest.mark.parametrize("name", ["no", "123", "1e5", "007", "null_net", "on"])
def test_a_name_that_looks_like_something_else_stays_a_name(tmp_path, name):
    assert load_params(edited(tmp_path, "name: test_resnet", f"name: {name}")).model.name == name


@pytest.mark.parametrize(("written", "read"), [("no", False), ("yes", True), ("False", False), ("on", True)])
def test_switches_take_every_spelling(tmp_path, written, read):
    assert load_params(edited(tmp_path, "pretrained: false", f"pretrained: {written}")).model.pretrained is read


@pytest.mark.parametrize("written", ["", "null", "~"])
def test_a_blank_is_null_where_null_is_allowed(tmp_path, written):
    assert load_params(edited(tmp_path, "mirror: null", f"mirror: {written}")).data.mirror is None


def test_a_blank_is_refused_where_a_value_is_needed(tmp_path):
    assert "train.lr = '' is not allowed: expected a number > 0" in refusal(edited(tmp_path, "lr: 0.003", "lr:"))


def test_free_form_arguments_get_the_types_of_yaml_1_2(tmp_path):
    block = "kwargs:\n    drop_rate: 1e-1\n    depths: [1, 2]\n    act: no\n    flag: true\n    none:\n"
    kwargs = load_params(edited(tmp_path, "kwargs: {}", block)).model.kwargs
    assert kwargs == {"drop_rate": 0.1, "depths": [1, 2], "act": False, "flag": True, "none": None}


def test_overrides_reach_nested_and_free_form_keys():
    params = load_params(PARAMS, ["train.augment.rotate=0", "+model.kwargs.drop_rate=0.2", "model.kwargs.a.b=1"])
    assert params.train.augment.rotate == 0
    assert params.model.kwargs == {"drop_rate": 0.2, "a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epoch=3", "there is no parameter 'train.epoch'; did you mean 'train.epochs'?"),
        ("lr=3", "there is no parameter 'lr'; did you mean 'train.lr'?"),
        ("train.lr.x=3", "there is no parameter 'train.lr.x'"),
        ("train.lr", "an override is written key=value"),
        ("train.lr=[1", "not readable as YAML"),
        ("train.lr=nan", "train.lr = 'nan' is not allowed: expected a number > 0 and <= 100"),
        ("train.lr=inf", "train.lr = 'inf' is not allowed"),
        ("train.lr=-1", "train.lr = '-1' is not allowed"),
        ("train.epochs=2.5", "train.epochs = '2.5' is not allowed: expected a whole number >= 1"),
        ("data.name=cifar", "did you mean 'cifar10'?"),
        ("train=3", "train = '3' is not allowed: expected a section"),
        ("model.kwargs=3", "model.kwargs = 3 is not allowed: expected a section"),
        ("data.val_fraction=0.9", "val_fraction + test_fraction must be below 1"),
    ],
)
def test_a_wrong_override_is_refused_with_its_key_and_what_is_allowed(override, said):
    assert said in refusal(PARAMS, [override])


def test_every_wrong_value_is_named_at_once():
    message = refusal(PARAMS, ["train.lr=abc", "train.seed=-1"])
    assert "train.lr = 'abc'" in message
    assert "train.seed = '-1'" in message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  epochs: 12\n", "", "train.epochs is missing: expected a whole number"),
        ("  epochs:", "  epoch: 1\n  epochs:", "train.epoch: there is no such parameter; did you mean 'train.epochs'?"),
        ("  epochs:", "  lr: 1\n  epochs:", "the key 'lr' stands there twice"),
        ("train:", "train: [", "not readable as YAML in line"),
        ("evaluate:", "evaluation:", "evaluation: there is no such parameter; did you mean 'evaluate'?"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, old, new, said):
    assert said in refusal(edited(tmp_path, old, new))


def test_a_missing_or_empty_or_binary_file_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    assert "git checkout" in refusal(path)
    path.write_text("")
    assert "expected the sections data, model, train, evaluate" in refusal(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(path)


def test_the_committed_schema_is_current_and_named_in_the_first_line():
    first = PARAMS.read_text().splitlines()[0]
    schema = ROOT / first.removeprefix("# yaml-language-server: $schema=")
    assert schema.read_text() == json_schema(), "run `make schema`"


def test_the_names_of_data_sets_are_those_that_can_be_downloaded():
    names = get_args(DataParams.model_fields["name"].annotation)
    assert set(names) == {"digits", "folder", *TORCHVISION_SETS}


def test_every_parameter_has_help():
    def fields(section):
        for name, field in section.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from fields(field.annotation)
            else:
                yield name, field.description

    assert [name for name, description in fields(Params) if not description] == []
