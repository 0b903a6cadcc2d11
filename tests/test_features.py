"""docs/features.md names no parameter, flag, command or test that does not exist, and all of what train.py takes."""

import ast
import re

import pytest

from reprise.commands.registry import COMMANDS
from reprise.params.load import all_keys
from reprise.params.schema import Params
from tests.conftest import ROOT

TEXT = (ROOT / "docs/features.md").read_text()
CLAIMS = TEXT.partition("## Left out")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in CLAIMS.splitlines()
    if line.startswith("| ") and not line.startswith(("| there", "| ---"))
]
HERE = " ".join(row[1] for row in ROWS)
KEYS = set(all_keys(Params))
FLAGS = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "src/train.py").read_text())) | {"--help"}


def test_every_line_has_a_test_that_exists():
    assert len(ROWS) > 30
    for row in ROWS:
        assert len(row) == 3, row
        path, _, name = row[2].partition("::")
        tests = {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert name in tests, row[2]


def test_every_parameter_flag_and_file_that_is_named_exists():
    named = re.findall(r"\b(?:data|model|train|evaluate|export|review)\.[a-z_0-9]+(?:\.[a-z_0-9]+)*", HERE)
    assert {key for key in named if key not in KEYS and key not in ("train.log", "train.py")} == set()
    assert set(re.findall(r"`(--[a-z-]+)", HERE)) - {"--queue", "--reset"} <= FLAGS
    for command in re.findall(r"python (\S+\.py)", HERE):
        assert (ROOT / command).is_file(), command
    assert set(re.findall(r"`reprise (\w+)", HERE)) <= {run.__name__ for run, _ in COMMANDS}


@pytest.mark.parametrize("flag", sorted(FLAGS))
def test_every_flag_of_train_is_listed(flag):
    assert f"`{flag}" in HERE


def test_every_parameter_of_training_is_listed():
    leaves = {key for key in KEYS if not any(other.startswith(f"{key}.") for other in KEYS)}
    wanted = {key for key in leaves if key.startswith(("model.", "train."))}
    assert {key for key in wanted if f"`{key}" not in HERE} == set()
