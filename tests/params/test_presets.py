"""A preset changes the values that it names, in params.yaml or for one run, and nothing else."""

import re

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from reprise.params.load import FREE, flat, load_params
from reprise.params.presets import applied, describe, find_preset
from reprise.runtime.errors import UserError
from tests.conftest import PARAMS, ROOT

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def read(text):
    return flat(yaml.safe_load(text), whole=FREE)


def comments(text):
    return [line.partition("#")[2] for line in text.splitlines() if "#" in line]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_allowed_and_states_its_cost_and_result(preset):
    params = load_params(PARAMS, preset=preset)
    assert read(preset.read_text()).items() <= flat(params.model_dump(), whole=FREE).items()
    stated = describe(preset)
    assert re.search(r"Cost: [0-9 to]+ (s|minutes) for|Cost: \d+ minutes on", stated)
    assert re.search(r"Result: 0\.\d{3} test accuracy", stated)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_writing_a_preset_changes_its_own_keys_and_keeps_every_comment(preset, tmp_path):
    text = applied(preset, PARAMS)
    assert comments(text) == comments(PARAMS.read_text())
    assert read(text) == read(PARAMS.read_text()) | read(preset.read_text())
    rewritten = tmp_path / "params.yaml"
    rewritten.write_text(text)
    assert load_params(rewritten) == load_params(PARAMS, preset=preset)
    assert applied(preset, rewritten) == text
    rewritten.write_bytes(PARAMS.read_bytes().replace(b"\n", b"\r\n"))  # as Git for Windows writes it
    assert applied(preset, rewritten) == text


def test_the_last_of_several_presets_counts_whole(tmp_path):
    for last in PRESETS:
        text = PARAMS.read_text()
        for preset in [*PRESETS, last]:
            (tmp_path / "params.yaml").write_text(text)
            text = applied(preset, tmp_path / "params.yaml")
        assert text == applied(last, PARAMS)


def test_nothing_to_change_leaves_every_byte(tmp_path):
    preset = tmp_path / "same.yaml"
    preset.write_text("# nothing new\ntrain:\n  epochs: 12\n")
    assert applied(preset, PARAMS) == PARAMS.read_text()


def test_what_stands_on_the_command_line_beats_the_preset():
    preset = find_preset(ROOT / "presets", "finetune-photos")
    params = load_params(PARAMS, ["train.epochs=3", "model.kwargs.drop_rate=0.5"], preset)
    assert (params.train.epochs, params.model.kwargs, params.data.image_size) == (3, {"drop_rate": 0.5}, 224)


def test_a_preset_replaces_the_arguments_of_another_model(tmp_path):
    preset, params = tmp_path / "other.yaml", tmp_path / "params.yaml"
    preset.write_text("model:\n  name: resnet18\n  kwargs: {}\n")
    params.write_text(PARAMS.read_text().replace("kwargs: {}", "kwargs: {img_size: 32}"))
    assert load_params(params, preset=preset).model.kwargs == {}


def test_a_preset_with_a_wrong_value_or_name_is_refused(tmp_path):
    preset = tmp_path / "wrong.yaml"
    preset.write_text("train:\n  epochs: 0\n  epoch: 3\n")
    with pytest.raises(UserError, match=r"train\.epochs = 0 is not allowed(.|\n)*train\.epoch: there is no such"):
        applied(preset, PARAMS)
    with pytest.raises(UserError, match="there is no preset 'mnist'; there are cifar10-resnet, few-photos, finet"):
        find_preset(ROOT / "presets", "mnist")


@pytest.mark.parametrize("file", [PARAMS, *PRESETS], ids=lambda path: path.stem)
def test_an_experiment_changes_one_line_of_params_or_of_a_preset(file, tmp_path):
    text = file.read_text()
    (tmp_path / "params.yaml").write_text(text)
    apply_overrides(tmp_path / "params.yaml", ["train.lr=0.5"])  # as `dvc exp run -S` does
    changed = set((tmp_path / "params.yaml").read_text().splitlines()) - set(text.splitlines())
    assert len(changed) == 1
    assert (tmp_path / "params.yaml").read_text().count("\n") == text.count("\n")
