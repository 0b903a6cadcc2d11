"""What a person types: `python src/train.py`, `python src/eval.py`, make, and every command of the README."""

import csv
import fcntl
import importlib.metadata
import io
import json
import os
import pty
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from reprise.params.load import help_text, load_params
from reprise.repo.project import Project
from reprise.repo.runs import RESULT, find_unfinished, prepared_data, run_folder
from reprise.runtime.errors import UserError
from reprise.runtime.signals import Stopped
from reprise.training.train import train
from tests.conftest import PARAMS, ROOT, blocks, tiny_clone
from tests.test_pipeline import photos, refused

ALONE = {"PATH": "/usr/bin:/bin"}  # no environment activated


def epochs_of(log):
    return re.findall(r"^epoch (\d+)/", log, re.MULTILINE)


def script(workspace, name, *arguments):
    """Run a script of a workspace in this process, with its working directory; it ends before it loads torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.path)
        patch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(workspace.path / name), run_name="__main__")
    return ended.value.code


def test_the_same_params_give_the_same_model_as_the_pipeline_and_the_log_is_what_was_printed(reproduced_once, tmp_path):
    clone = tiny_clone(tmp_path / "clone")  # a fresh one: nothing is prepared, and no environment is activated
    clone.set("train.epochs=3")
    elsewhere = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "2"}
    done = clone.run(sys.executable, "src/train.py", "train.epochs=2", **ALONE, **elsewhere)
    prepared = {"?? dvc.lock", "?? metrics/", " M params.yaml"}
    assert set(clone.run("git", "status", "--porcelain").stdout.splitlines()) == prepared
    assert not (clone.path / "models/model.json").exists()
    (run,) = {path.parent.resolve() for path in (clone.path / "runs").glob("*/model.json")}
    assert (clone.path / "runs/latest").resolve() == run
    assert done.stdout.splitlines()[-1].endswith(f"-> runs/{run.name}")
    result = {*RESULT, "params.yaml", "train.log", "last.checkpoint"}
    assert {path.name for path in run.iterdir()} == result
    assert list((clone.path / "runs/checkpoints").iterdir()) == []
    log = (run / "train.log").read_text()
    assert epochs_of(log) == ["1", "2"]
    assert set(log.splitlines()) <= set(done.stderr.splitlines() + done.stdout.splitlines())
    assert log.splitlines()[-1] == done.stdout.splitlines()[-1]
    for name in ("model.safetensors", "model.json"):
        assert (reproduced_once.path / "models" / name).read_bytes() == (run / name).read_bytes()
    # the run knows its data, which the pipeline has no longer: they are prepared beside its own, once
    clone.set("data.image_size=16")
    before = (clone.path / "data/processed/metadata.json").read_bytes()
    table = clone.run("python", "src/eval.py", "runs/latest/model.safetensors").stdout.splitlines()
    assert table[0].endswith("test images of digits")
    published = json.loads((reproduced_once.path / "metrics/test.json").read_text())
    shown = {name: value.replace(",", "") for name, value in map(str.split, table[1:-1])}
    assert list(shown) == list(published)
    assert [float(value) for value in shown.values()] == pytest.approx(list(published.values()), abs=5e-5)
    (made,) = (clone.path / "runs/data").glob("*/processed/metadata.json")
    assert json.loads(made.read_text())["image_size"] == 32
    stamp = made.stat().st_mtime_ns
    assert prepared_data(Project(clone.path), load_params(run / "params.yaml").data) == made.parent
    assert made.stat().st_mtime_ns == stamp
    assert (clone.path / "data/processed/metadata.json").read_bytes() == before


def test_a_log_keeps_the_last_state_of_a_line_that_is_redrawn(tmp_path, capsys):
    params = load_params(PARAMS)
    with run_folder(tmp_path, params) as run:
        print("\r 10 %", end="")
        print("\r 90 %\r      \rdone", file=sys.stderr)
    assert (run / "train.log").read_text() == "done\n"
    assert capsys.readouterr().out == "\r 10 %"
    with pytest.raises(ValueError, match="a bug"), run_folder(tmp_path, params):
        raise ValueError("a bug")
    assert (run / "train.log").read_text().splitlines()[-1] == "ValueError: a bug"  # the same run: it is not finished


def test_a_full_disk_takes_the_log_but_neither_the_params_nor_the_reason_of_the_end(tmp_path, monkeypatch, capsys):
    params = load_params(PARAMS)
    with run_folder(tmp_path, params) as run:
        pass
    (run / "train.log").unlink()
    (run / "train.log").symlink_to("/dev/full")
    monkeypatch.setattr("reprise.repo.runs.write_params", None)  # those of a run that goes on stay as they are
    with pytest.raises(Stopped), run_folder(tmp_path, params, run):
        print("epoch 1")
        raise Stopped(signal.SIGTERM)
    assert capsys.readouterr().out == "epoch 1\n"
    assert load_params(run / "params.yaml") == params


def test_a_run_is_finished_with_the_last_file_of_its_result(tmp_path):
    params = load_params(PARAMS)
    with run_folder(tmp_path, params) as run:
        for name in RESULT[:-1]:
            (run / name).touch()
    assert find_unfinished(tmp_path, "") == run
    (run / RESULT[-1]).touch()
    with pytest.raises(UserError, match="every run is finished"):
        find_unfinished(tmp_path, "")
    # the other process was through while this one waited for its lock
    with pytest.raises(UserError, match="this run is finished with these params"), run_folder(tmp_path, params, run):
        raise AssertionError("it trains again")
    assert (run / "params.yaml").exists()


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_its_own_folder_by_resume_or_by_the_same_command(reproduced):
    reproduced.set("train.epochs=10")
    command = ["python", "src/train.py", "train.lr=0.001"]
    process = subprocess.Popen(command, cwd=reproduced.path, env=reproduced.environment(), stderr=subprocess.PIPE)
    while b"epoch 2/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    (run,) = (path.parent for path in (reproduced.path / "runs").glob("*/params.yaml"))
    assert not (reproduced.path / "runs/latest").exists()
    assert "stopped by SIGTERM" in (run / "train.log").read_text()
    assert "the only parameter it takes is train.epochs" in refused(reproduced.run(*command, "--resume", check=False))
    copy = reproduced.copy(reproduced.path.parent / "copy")
    reproduced.set("train.epochs=2")  # the run remembers its own params
    reproduced.run("python", "src/train.py", "--resume")
    copy.run(*command)
    for workspace in (reproduced, copy):
        again = workspace.path / "runs" / run.name
        assert (workspace.path / "runs/latest").resolve() == again
        assert epochs_of((again / "train.log").read_text()) == [str(epoch + 1) for epoch in range(10)]
    one, two = ((each.path / "runs/latest/model.json").read_bytes() for each in (reproduced, copy))
    assert one == two
    assert "this run is finished" in refused(
        reproduced.run("python", "src/train.py", "--resume", run.name, check=False)
    )
    assert "every run is finished" in refused(reproduced.run("python", "src/train.py", "--resume", check=False))


@pytest.mark.slow
def test_a_finished_run_goes_on_for_more_epochs_also_after_a_kill(reproduced):
    reproduced.run("python", "src/train.py", "train.epochs=1")
    (run,) = (path.parent for path in (reproduced.path / "runs").glob("2*/params.yaml"))
    first = (run / "model.json").read_bytes()
    command = ["python", "src/train.py", "--resume", "runs/latest", "train.epochs=9"]
    process = subprocess.Popen(command, cwd=reproduced.path, env=reproduced.environment(), stderr=subprocess.PIPE)
    while b"epoch 4/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert (run / "model.json").read_bytes() == first  # still the run that it was
    assert load_params(run / "params.yaml").train.epochs == 1
    reproduced.run(*command)
    assert epochs_of((run / "train.log").read_text()) == [str(epoch + 1) for epoch in range(9)]
    assert json.loads((run / "model.json").read_text())["training"]["continued"] == [1]
    assert load_params(run / "params.yaml").train.epochs == 9
    assert list((reproduced.path / "runs/checkpoints").iterdir()) == []
    assert "finished with these params" in refused(reproduced.run(*command, check=False))
    assert "choose more" in refused(reproduced.run(*command[:-1], "train.epochs=8", check=False))
    reproduced.run("python", "src/train.py", "model.weights=runs/latest", "train.epochs=1")  # one file of weights


def metrics_of(done):
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    return dict(line for line in lines if len(line) == 2)  # without the sentence on groups


@pytest.mark.slow
def test_bare_weights_are_measured_and_a_runs_test_metrics_reach_its_loggers(reproduced):
    import torch
    from safetensors.torch import load_file

    assert "python src/eval.py runs/latest" in refused(reproduced.run("python", "src/eval.py", "nowhere", check=False))
    published = reproduced.run("python", "src/eval.py")
    missed = reproduced.run("python", "src/eval.py", "evaluate.gates={accuracy: 0.999}", check=False)
    assert refused(missed).startswith("error: evaluate.gates.accuracy = 0.999: ")
    assert metrics_of(missed) == metrics_of(published)
    bare = reproduced.path / "bare.pth"
    torch.save({"state_dict": load_file(reproduced.path / "models/model.safetensors")}, bare)
    named = ("python", "src/eval.py", "bare.pth", "model.name=test_resnet")
    unknown = refused(reproduced.run(*named, check=False))
    assert "does not say how the images of its training were normalized; add --normalization: data (" in unknown
    numbers = unknown.partition("data (")[2].partition(")")[0]
    assert metrics_of(reproduced.run(*named, "--normalization", "data")) == metrics_of(published)
    by_numbers = reproduced.run(*named, "--normalization", numbers)
    assert metrics_of(by_numbers)["accuracy"] == metrics_of(published)["accuracy"]
    assert metrics_of(reproduced.run(*named, "--normalization", "timm"))["loss"] != metrics_of(published)["loss"]
    for wrong in ("0.5", "0.5/nan", "0.1,0.2/1"):
        said = refused(reproduced.run(*named, "--normalization", wrong, check=False))
        assert said.startswith(f"error: --normalization {wrong}: allowed are data (")
    of_card = reproduced.run("python", "src/eval.py", "models", "model.name=test_resnet")
    assert metrics_of(of_card) == metrics_of(published)
    torch.save({"fc.bias": torch.zeros(3)}, bare)
    other = reproduced.run("python", "src/eval.py", "bare.pth", "model.name=test_resnet", check=False)
    assert "for the 10 classes here; train it on them first" in refused(other)
    nothing = reproduced.run("python", "src/eval.py", "model.name=test_resnet", check=False)
    assert "no weights there; name their file, or set model.pretrained=true" in refused(nothing)
    assert "one model at a time" in refused(reproduced.run("python", "src/eval.py", "models", "runs", check=False))
    run = reproduced.path / "runs/2026-01-01_00-00-00-000"
    run.mkdir(parents=True)
    for name in ("model.safetensors", "model.json"):
        (run / name).write_bytes((reproduced.path / "models" / name).read_bytes())
    params = (reproduced.path / "params.yaml").read_text()
    (run / "params.yaml").write_text(params.replace("loggers: []", "loggers: [tensorboard]"))
    (reproduced.path / "src/tensorboard").mkdir()
    (reproduced.path / "src/tensorboard/__init__.py").touch()
    logger = "lambda folder, run: print('logger', run) or CSVLogger(folder, name=None, version='')"
    loggers = reproduced.path / "src/reprise/training/loggers.py"
    theirs = 'lambda folder, run: TensorBoardLogger(folder, name=None, version="")'
    code = loggers.read_text().replace(theirs, logger)
    loggers.write_text(code.replace("import Logger,", "import CSVLogger, Logger,"))
    done = reproduced.run("python", "src/eval.py", str(run))
    assert f"logger {run.name}" in done.stdout
    header, row = (run / "tensorboard/metrics.csv").read_text().splitlines()
    logged = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(logged["test/accuracy"]) == pytest.approx(float(metrics_of(done)["accuracy"]), abs=5e-5)


@pytest.mark.slow
def test_debug_modes_of_the_command_line(reproduced):
    warm = ["train.schedule=cosine", "train.warmup_epochs=3"]  # more epochs than the one that is run
    done = reproduced.run("python", "src/train.py", "--fast-dev-run", "train.devices=2", *warm)
    assert "nothing is kept" in done.stdout
    assert epochs_of(done.stderr) == ["1"]
    assert not list((reproduced.path / "runs").glob("*/*"))
    done = reproduced.run("python", "src/train.py", "train.epochs=1", "--overfit", "2", "--detect-anomaly")
    assert re.search(r"-> runs/[-\d_]+-debug\noverfit: \d\d?\.\d% right, FAILED: train longer", done.stdout.strip())
    learn = [f"train.augment.{name}=0" for name in ("rotate", "scale", "shift")]
    done = reproduced.run("python", "src/train.py", "train.epochs=25", "--overfit", "1", *learn)
    assert done.stdout.endswith("overfit: 100.0% right, succeeded\n")
    reproduced.run("python", "src/train.py", "train.epochs=1", "--limit", "0.5", "train.lr=0.01")
    assert "accuracy" in reproduced.run("python", "src/eval.py", "runs/latest").stdout
    assert reproduced.clean()
    done = reproduced.run("python", "src/train.py", "--profile", "--limit", "0.5", check=False)
    assert (done.returncode, "no --limit and no --detect-anomaly" in done.stderr) == (2, True)


def test_sanity_prints_a_table_and_its_exit_code_says_whether_all_is_well(
    reproduced, digits, tiny_params, monkeypatch, capsys
):
    params = tiny_params("train.batch_size=32")
    with monkeypatch.context() as patch:
        patch.setattr("reprise.repo.runs.ready_to_train", lambda *_: (digits, params.model, params.train, None))
        assert script(reproduced, "src/train.py", "--sanity") == 0
    shown = capsys.readouterr().out
    assert shown.count("pass  ") == len(shown.splitlines()) == 8
    labels = reproduced.path / "src/reprise/loader/batches.py"
    labels.write_text(labels.read_text().replace("to_device(self.labels[rows]", "to_device(self.labels[rows.flip(0)]"))
    done = reproduced.run("python", "-m", "reprise", "sanity", "train.seed=1", check=False)
    assert done.returncode == 1
    assert "FAIL  labels: similar images share them" in done.stdout
    assert not list((reproduced.path / "runs").glob("*/params.yaml"))


def test_print_config_is_a_params_yaml_of_what_would_be_trained(reproduced_once, tmp_path, capsys):
    resolved = tmp_path / "params.yaml"
    assert not script(reproduced_once, "src/train.py", "--preset", "finetune-photos", "--print-config", "train.lr=0.25")
    resolved.write_text(capsys.readouterr().out)
    preset = ROOT / "presets/finetune-photos.yaml"
    assert load_params(resolved) == load_params(reproduced_once.path / "params.yaml", ["train.lr=0.25"], preset)


def test_help_shows_every_parameter_as_it_stands_in_params_yaml(reproduced, capsys):
    reproduced.set("train.lr=0.125")
    assert not script(reproduced, "src/train.py", "--help")
    shown = capsys.readouterr().out
    assert help_text(load_params(reproduced.path / "params.yaml")) in shown
    assert "train.lr = 0.125" in shown


def test_a_preset_is_written_and_shown(reproduced):
    shown = reproduced.reprise("preset", "finetune-photos").stdout
    assert "-  name: digits" in shown
    assert re.search(r"^\+  name: folder +# folder, archive", shown, re.MULTILINE)
    written = (reproduced.path / "params.yaml").read_text()
    assert {line[1:] for line in shown.splitlines()[2:] if line[0] == "+"} <= set(written.splitlines())
    assert "already" in reproduced.reprise("preset", "finetune-photos").stdout
    assert "mnist-99" in reproduced.reprise("preset").stdout
    assert reproduced.run("git", "status", "--porcelain").stdout == " M params.yaml\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["src/train.py", "train.epoch=1"], "did you mean 'train.epochs'?"),
        (["src/train.py", "--preset", "mnist"], "there is no preset 'mnist'; there are cifar10-resnet,"),
        (["src/train.py", "--resume", "--limit", "0.5"], "a debug mode begins one of its own"),
        (["src/train.py", "--resume", "train.lr=1"], "the only parameter it takes is train.epochs"),
        (["src/train.py", "--resume", "nowhere"], "there is no such run; unfinished are none"),
        (["src/eval.py", "nowhere"], "no model there; train one"),
        (["src/eval.py", "README.md"], "expected a run folder or a .safetensors file"),
        (["src/eval.py", "nowhere.safetensors"], "no model there"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(reproduced_once, command, said):
    ended = script(reproduced_once, *command)
    assert ended.startswith("error: ")
    assert said in ended
    assert "\n" not in ended.replace("\n  ", "")
    assert not list(reproduced_once.path.glob("runs/*/params.yaml"))  # a mistake leaves no run


def test_in_a_terminal_there_is_a_bar_with_epoch_loss_accuracy_and_rate(digits, tiny_params, monkeypatch):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    shown = []

    def read():
        with suppress(OSError):  # how Linux says that the other end was closed
            while chunk := os.read(ours, 4096):
                shown.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    params = tiny_params("train.epochs=9")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        train(digits, params.model, params.train)
        print("the end", file=terminal)
    reader.join()
    os.close(ours)
    lines = b"".join(shown).decode().replace("\r\n", "\n").strip().split("\n")
    assert lines[-1].split("\r")[-1] == "the end"  # on the line of the bar, which is gone
    assert re.search(r"epoch \d/9  loss \d\.\d{4} \|.*\| +\d+%, .* images/s, 00:\d\d left", "\n".join(lines))
    stay = [line.split("\r")[-1][:9] for line in lines if "val acc" in line]  # what the bar does not overwrite
    assert stay == [f"epoch {epoch}/9" for epoch in range(1, 10)]


def make(workspace, *arguments, **environment):
    """Run make with this environment in place of .venv, taken as ready."""
    ready = f"{sys.prefix}/.ready"
    return workspace.run("make", f"VENV={sys.prefix}", "-o", ready, *arguments, **environment)


def test_make_alone_lists_every_target_with_its_help(reproduced_once):
    listed = [line.split()[0] for line in make(reproduced_once, **ALONE).stdout.splitlines()]
    phony = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    assert listed == phony


def test_make_repro_needs_no_activated_environment_and_does_nothing_the_second_time(reproduced):
    done = make(reproduced, "repro", **ALONE)
    assert done.stdout.splitlines()[-1] == "Data and pipelines are up to date."
    assert "Running stage" not in done.stdout
    assert reproduced.clean()


def test_make_plots_draws_this_run_on_a_page_that_loads_nothing(reproduced, tmp_path):
    done, page = make(reproduced, "plots", check=False), reproduced.path / "runs/plots/index.html"
    if not find_spec("vl_convert"):
        assert done.returncode and "error: this needs Vega: " in done.stderr and not page.exists()
        pytest.skip("vl-convert-python is not installed")
    text, history = page.read_text(), (reproduced.path / "metrics/history.csv").read_text()
    drawn = [json.loads(spec)["data"]["values"] for spec in re.findall(r"var spec = (.*);$", text, re.MULTILINE)]
    assert len(drawn) == 7
    losses = [row["val_loss"] for row in csv.DictReader(io.StringIO(history))]
    assert losses in [[row.get("val_loss") for row in rows] for rows in drawn]
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", text, flags=re.DOTALL)
    assert not re.search(r"\b(src|href) *=|https?:", markup)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("no Chromium is installed")
    options = ("--headless", "--no-sandbox", f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=10000")
    seen = reproduced.run(chromium, *options, "--dump-dom", page.as_uri()).stdout
    assert len(re.findall(r'class="vega-embed.*?<svg [^>]*class="marks"', seen, re.DOTALL)) == 7


def readme_commands():
    lines = "".join(blocks("README.md", "sh")).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@pytest.mark.product
def test_the_lightning_script_of_the_readme_trains(digits, tmp_path, monkeypatch):
    (script,) = blocks("README.md", "python")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/processed").symlink_to(digits)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(script.replace("max_epochs=3", "max_epochs=1, logger=False"), names)
    assert names["module"].val_acc_best.compute() > 0


@pytest.mark.product
def test_the_script_for_a_cluster_runs_the_pipeline(reproduced, tmp_path):
    (script,) = blocks("docs/project.md", "sh")
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    script = f"PATH=$PATH:{tmp_path}\n{script.replace('.venv', sys.prefix)}"
    done = reproduced.run("bash", "-ec", script, SLURM_SUBMIT_DIR=str(reproduced.path))
    assert "Data and pipelines are up to date" in done.stdout


# `make test` is what runs this very test, and CI calls both of the first two on a fresh clone
BY_CI = ["make test"]


@pytest.mark.product
def test_every_command_of_the_readme_works_in_the_order_given(reproduced):
    commands = readme_commands()
    assert commands[:2] == ["make repro", "make test"]
    assert len(commands) > 8
    for command in commands:
        if command in BY_CI:
            continue
        if command.startswith("make "):
            command = command.replace("make ", f"make VENV={sys.prefix} -o {sys.prefix}/.ready ", 1)
        if command.startswith(". .venv"):
            command = f". {sys.prefix}/bin/activate"
        if command.startswith("reprise "):  # this code, also where another checkout is installed
            command = f"{sys.executable} -m {command}"
        if "data.name=folder" in command:
            photos(reproduced.path / "data/own", each=200)  # a tenth of them trains, in batches of 16
        reproduced.run("sh", "-ec", command)
        if command == "dvc queue start":
            reproduced.run("dvc", "exp", "run", "--run-all")  # stays until the queue is empty
            assert "Success" in reproduced.run("dvc", "queue", "status").stdout


@pytest.mark.product
def test_the_readme_shows_what_the_committed_run_reached():
    (readme,) = blocks("README.md", "text")
    for name, value in json.loads((ROOT / "metrics/test.json").read_text()).items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        if name in ("accuracy", "loss"):
            assert re.search(rf"^  {name} +{re.escape(shown)}$", readme, re.MULTILINE), name
    best = json.loads((ROOT / "metrics/train.json").read_text())
    reached = f"validation accuracy {best['val_accuracy']:.4f}, loss {best['val_loss']:.4f}"
    assert f"best epoch {best['epoch']} of 12: {reached}" in readme


def locked(name):
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE))


def test_the_lock_pins_every_dependency_exactly_by_hashes_and_names_no_index():
    entry = r"[\w.-]+==[\w.]+( ; [^\n]*)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"({entry})+", (ROOT / "requirements.lock").read_text())
    assert {"lightning", "timm", "torchmetrics", "dvc", "pydantic", "pytest"} <= locked("requirements.lock").keys()
    apart = (ROOT / "requirements-torch.lock").read_text()  # other hashes for CPUs and GPUs
    assert re.fullmatch(r"torch==[\d.]+\ntorchvision==[\d.]+\n", apart)
    assert not [
        name for name in locked("requirements.lock") if re.match("nvidia|cuda|triton|torch$|torchvision$", name)
    ]


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="another environment than the one that make sets up")
def test_the_environment_has_what_the_lock_says():
    text = (ROOT / "requirements.lock").read_text() + (ROOT / "requirements-torch.lock").read_text()
    lock = dict(re.findall(r"^([\w.-]+)==([\w.]+)(?: \\)?$", text, re.MULTILINE))  # those for any machine
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in lock}  # 2.13.0+cpu is 2.13.0
    assert installed == lock
    assert len(lock) > 100


@pytest.mark.product
def test_nothing_of_this_machine_is_in_the_repository():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        text = (ROOT / name).read_bytes()
        assert str(ROOT).encode() not in text or str(ROOT) == os.sep, name
