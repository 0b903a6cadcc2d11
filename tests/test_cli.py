"""`reprise`: its help is the map and is quick, its commands need no more than they use."""

import resource
import subprocess
import sys

import pytest

from reprise.cli import COMMANDS, main
from tests.conftest import ROOT
from tests.test_pipeline import refused

NAMES = [run.__name__ for run, _ in COMMANDS]


def reprise(*arguments, before="pass"):
    """Run it in a process of its own, after these statements."""
    code = f"import sys; {before}; from reprise.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": "src", "PATH": ""}, capture_output=True, text=True)


def children():
    """Return the CPU time of processes that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_help_names_every_command_in_a_line_or_two_and_loads_nothing():
    start = children()
    done = reprise("--help", before="sys.path[2:] = [path for path in sys.path[2:] if 'site-packages' not in path]")
    assert children() - start < 0.3
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == NAMES
    assert len(done.stdout.splitlines()) < 60


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_help_of_its_own(name, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: reprise {name}")


def test_what_trains_nothing_works_where_torch_is_broken():
    modules = ["repo.doctor", "repo.verify", "repo.crossvalidation", "repo.reproduce", "comparison.review"]
    modules += ["comparison.history", "params.presets", "data.download.torchvision_sets"]
    imports = ", ".join(f"reprise.{module}" for module in modules)
    done = reprise("--help", before=f"sys.modules['torch'] = None; import {imports}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("package", "command"), [("numpy", "benchmark"), ("uvicorn", "serve")])
def test_a_package_that_is_not_installed_is_named_in_a_line(package, command):
    line = refused(reprise(command, before=f"sys.modules[{package!r}] = None"))
    assert f" {package} " in line and line.strip().endswith("[serve]'`" if command == "serve" else "[train]'`")


def test_outside_of_a_project_it_says_so_in_a_line(tmp_path):
    command = [sys.executable, "-m", "reprise", "verify"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True)
    assert f"{tmp_path}: not in a Git and DVC repository, a folder with dvc.yaml and .dvc" in refused(done)


@pytest.mark.slow
def test_profile_takes_params_as_train_does(reproduced):
    done = reproduced.run("python", "-m", "reprise", "profile", "train.epoch=1", check=False)
    assert "did you mean 'train.epochs'?" in refused(done)
    done = reproduced.run("python", "-m", "reprise", "profile", "train.batch_size=32")
    assert "a step of 32 images" in done.stdout
    assert reproduced.clean()
    assert not list((reproduced.path / "runs").glob("*/params.yaml"))
