"""The short version of `make torture`: a few kills, and the same bytes."""

import random

import pytest

from tests.torture import COMMANDS, base, reference, trial

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_repeated_ends_in_the_bytes_of_an_undisturbed_run(command, tmp_path):
    clone = base(tmp_path / "base")
    undisturbed = reference(clone.copy(tmp_path / "undisturbed"), command, tmp_path)
    assert trial(clone.copy(tmp_path / "killed"), command, undisturbed, kills=2, rng=random.Random(command))
