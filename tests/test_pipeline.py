"""The DVC pipeline as its users use it: real Git, real DVC, real processes, in a temporary clone with a tiny model."""

import csv
import hashlib
import io
import json
import os
import re
import shutil

import pytest
import yaml
from dvc.repo import Repo
from PIL import Image

from tests.conftest import ROOT

STAGES = ["download", "preprocess", "train", "evaluate", "export"]


def ran(done):
    """Return the stages that `dvc repro` or `dvc exp run` really ran, after that which looks at the params."""
    return re.findall(r"Running stage '(?!check)(\w+)'", done.stdout + done.stderr)


def metrics(workspace, name="test"):
    return json.loads((workspace.path / f"metrics/{name}.json").read_text())


def test_repro_publishes_everything_and_says_what_it_did(reproduced_once):
    outs = "data/raw/images.zip data/processed/train_images.npy data/report/report.md data/report/class_9.png "
    outs += "data/predictions.csv models/model.safetensors models/model.json metrics/data.json metrics/train.json "
    outs += "metrics/test.json metrics/history.csv metrics/per_class.csv metrics/confusion.csv models/confidence.json"
    for out in outs.split():
        assert (reproduced_once.path / out).stat().st_size > 0, out
    measured = metrics(reproduced_once)
    images = json.loads((reproduced_once.path / "data/processed/metadata.json").read_text())["counts"]["test"]
    assert measured["images"] == images > 1300
    assert 0.15 < measured["accuracy"] <= 1  # two epochs on a tenth of 1,797 images: better than chance
    assert {"accuracy", "loss", "top5_accuracy", "precision", "recall", "f1", "ece", "parameters", "flops"} <= set(
        measured
    )
    rows = list(csv.DictReader(io.StringIO((reproduced_once.path / "data/predictions.csv").read_text())))
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert right / len(rows) == pytest.approx(measured["accuracy"], rel=1e-5)
    assert len({row["id"] for row in rows}) == images
    assert len((reproduced_once.path / "metrics/history.csv").read_text().splitlines()) == 3


def test_git_holds_the_metrics_without_times_and_places_and_not_the_data(reproduced_once):
    tracked = reproduced_once.run("git", "ls-files").stdout.split()
    assert {"metrics/test.json", "metrics/train.json", "metrics/history.csv", "metrics/confusion.csv"} <= set(tracked)
    results = [name for name in tracked if not name.startswith(("src/", "tests/"))]
    assert not [name for name in results if re.search(r"\.(npy|safetensors|zip)$|predictions|model\.json", name)]
    for path in (reproduced_once.path / "metrics").iterdir():
        assert not re.search(r"20\d\d-|seconds|/tmp|/home|hostname", path.read_text()), path


def test_a_changed_parameter_or_weight_reruns_what_depends_on_it_and_nothing_else(reproduced):
    def stale():
        with Repo(str(reproduced.path)) as repo:
            return repo.status()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(reproduced.path)
        patch.setenv("DVC_SITE_CACHE_DIR", reproduced.environment()["DVC_SITE_CACHE_DIR"])
        assert stale() == {}
        for change, stages in (("evaluate.batch_size=100", STAGES[3:]), ("train.lr=0.002", STAGES[2:])):
            reproduced.set(change)
            assert set(stale()) - {"check"} == set(stages)
        reproduced.set("data.image_size=24")
        assert set(stale()) - {"check"} == set(STAGES[1:])
        reproduced.run("git", "checkout", "--quiet", ".")
        (reproduced.path / "data/weights/mine.safetensors").write_bytes(b"weights")
        assert stale() == {key: [{"changed deps": {"data/weights": "modified"}}] for key in ("check", "train")}
    assert reproduced.clean()  # weights are no part of Git


@pytest.mark.slow
def test_a_changed_library_file_reruns_its_stages_in_the_clone_that_has_it(reproduced):
    # the installed package is another checkout: had the stages imported that, every digit would still be there
    source = reproduced.path / "src/reprise/data/download/sources.py"
    text = source.read_text()
    whole = "    for index, (pixels, label) in enumerate(zip(images, table[:, 64].astype(int), strict=True)):"
    assert whole in text
    source.write_text(text.replace(whole, whole.replace("images, table[:, 64]", "images[:900], table[:900, 64]")))
    done = reproduced.run("dvc", "exp", "run", "--temp", "download")
    assert ran(done) == STAGES[:1]
    assert "download: digits, 900 images" in done.stdout


@pytest.mark.slow
def test_an_experiment_compares_with_the_commit_and_nothing_is_checked_out_to_say_so(reproduced):
    before = metrics(reproduced)
    settings = ("-S", "model.name=test_efficientnet", "-S", "train.lr=1e-5", "--name", "slow")
    done = reproduced.run("dvc", "exp", "run", *settings)
    assert ran(done) == STAGES[2:]
    after = metrics(reproduced)
    assert after["parameters"] != before["parameters"]

    diff = json.loads(reproduced.run("dvc", "metrics", "diff", "--json").stdout)
    assert diff["metrics/test.json"]["accuracy"] == {
        "old": before["accuracy"],
        "new": after["accuracy"],
        "diff": pytest.approx(after["accuracy"] - before["accuracy"]),
    }
    changed = json.loads(reproduced.run("dvc", "params", "diff", "--json").stdout)["params.yaml"]
    assert changed["model.name"] == {"old": "test_resnet", "new": "test_efficientnet"}
    assert set(changed) == {"model.name", "train.lr"}
    assert "1e-05" in (reproduced.path / "params.yaml").read_text()  # what -S leaves, and the stage has read it

    shown = reproduced.run("dvc", "exp", "show", "--only-changed", "--csv").stdout.splitlines()
    assert len(shown) == 4  # header, workspace, main, the experiment
    assert {"model.name", "train.lr", "accuracy"} <= {name.split(":")[-1] for name in shown[0].split(",")}

    vega = json.loads(reproduced.run("dvc", "plots", "diff", "HEAD", "workspace", "--json").stdout)["data"]
    drawn = {name.split("::")[-1] for name in vega}
    assert drawn >= {"Loss", "Accuracy", "metrics/confusion.csv", "metrics/per_class.csv", "metrics/risk_coverage.csv"}

    reproduced.run("git", "checkout", "--quiet", "--force", "main")
    reproduced.run("dvc", "checkout", "--quiet")
    compared = ("compare", "main", "slow", "--out", "runs/out", "--fail-on", "regression")
    judged = reproduced.reprise(*compared, check=False)
    assert (judged.returncode, judged.stdout.partition("0.")[0]) == (3, "worse: accuracy "), judged.stderr
    assert reproduced.clean()
    report = (reproduced.path / "runs/out/report.md").read_text()
    assert report.startswith("# Worse: slow (")
    assert "| train.lr | 0.003 | 1e-05 |" in report
    pictures = set(re.findall(r"!\[.*?\]\((.*?)\)", report))
    assert pictures >= {"broken.svg", "curves.svg", "classes.svg", "reliability.svg", "confusion.svg"}
    svgs = [(reproduced.path / "runs/out" / name).read_text() for name in pictures]
    assert all(len(svg) > 500 and "http" not in svg.replace("http://www.w3.org/2000/svg", "") for svg in svgs)


@pytest.mark.slow
def test_after_a_mistake_of_any_kind_one_command_is_back_and_no_out_was_lost(reproduced):
    listed = reproduced.run("dvc", "ls", "--recursive", ".", "--dvc-only").stdout.split()
    listed += ["metrics/test.json", "metrics/train.json", "metrics/data.json", "models/README.md"]
    listed.remove("data/records/check.txt")

    def outs():
        return {name: hashlib.md5((reproduced.path / name).read_bytes()).hexdigest() for name in listed}

    good = outs()
    assert len(good) > 20
    # no value of this type, no such parameter, no section, no such network: tests/test_check.py has many of each
    for wrong in ("data.test_fraction=many", "+train.lrr=0.1", "train=5", "+model.kwargs.nonsense=1"):
        key = wrong.lstrip("+").partition("=")[0]
        done = reproduced.run("dvc", "exp", "run", "-S", wrong, check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert f"reprise params --reset {key}`" in done.stderr or "`reprise params --reset KEY` does it" in done.stderr
        assert outs() == good
        reproduced.reprise("params", "--reset", key)
        assert not reproduced.run("git", "diff", "--ignore-all-space", "HEAD").stdout, wrong
        assert reproduced.run("dvc", "status", "--json").stdout.strip() == "{}", wrong


@pytest.mark.slow
def test_queued_experiments_all_finish(reproduced):
    reproduced.run("dvc", "exp", "run", "--queue", "-S", "train.lr=0.001,0.003")
    reproduced.run("dvc", "exp", "run", "--run-all", "--jobs", "1")
    table = json.loads(reproduced.run("dvc", "exp", "show", "--json").stdout)
    (experiments,) = [row["experiments"] for row in table if row["name"] == "main"]
    revisions = [experiment["revs"][0]["data"] for experiment in experiments]
    rates = {data["params"]["params.yaml"]["data"]["train"]["lr"] for data in revisions}
    losses = {data["metrics"]["metrics/test.json"]["data"]["loss"] for data in revisions}
    assert rates == {0.001, 0.003}
    assert len(losses) == 2
    assert reproduced.clean()


def test_plots_draw_train_and_validation_in_one_picture_and_shares_of_each_label(reproduced):
    data = json.loads(reproduced.run("dvc", "plots", "show", "--json").stdout)["data"]
    pictures = {
        name.split("::")[-1]: json.loads(parts[0]["content"])
        if isinstance(parts[0]["content"], str)
        else parts[0]["content"]
        for name, parts in data.items()
    }
    tables = {f"metrics/{name}.csv" for name in ("history", "confusion", "per_class", "risk_coverage", "groups")}
    assert set(pictures) == {"Loss", "Accuracy", *tables}
    loss = json.dumps(pictures["Loss"])
    assert "train_loss" in loss
    assert "val_loss" in loss
    confusion = json.dumps(pictures["metrics/confusion.csv"])
    assert "of_label" in confusion  # our template, which divides by the label's images


def refused(done):
    """Check that a stage ended in one clear line and return it."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr[done.stderr.index("error: ") :]


def test_a_mistake_stops_with_one_line_and_the_old_results_come_back(reproduced):
    before = (reproduced.path / "models/model.safetensors").read_bytes()
    reproduced.set("train.lr=fast")
    done = reproduced.run("dvc", "repro", check=False)
    assert "train.lr = 'fast' is not allowed: expected a number > 0" in refused(done)
    assert not list(reproduced.path.rglob("*.partial"))
    reproduced.run("git", "checkout", "--quiet", ".")
    reproduced.run("dvc", "checkout")
    assert (reproduced.path / "models/model.safetensors").read_bytes() == before
    assert reproduced.clean()


def photos(folder, classes=("cat", "dog"), each=12):
    for number, name in enumerate(classes):
        for index in range(each):
            (folder / name).mkdir(parents=True, exist_ok=True)
            image = Image.effect_noise((40, 30), 60).convert("RGB")
            image.paste((200, 30, 30) if number else (30, 30, 200), (5, 5, 30, 20))
            image.save(folder / name / f"{index}.jpg")


@pytest.mark.slow
def test_own_images_and_a_column_of_their_csv_train_a_classifier_that_a_missed_gate_stops(reproduced):
    own = reproduced.path / "data/own"
    photos(own, each=60)
    files = [f"{name}/{index}.jpg" for name in ("cat", "dog") for index in range(60)]
    rows = [f"{file},{file[:3]},{index % 2}\n" for index, file in enumerate(files)]
    (own / "labels.csv").write_text("filename,label,camera\n" + "".join(rows))
    gates = "evaluate.gates={group.camera=1: 0.99}"  # more than 30 images can show
    reproduced.set("data.name=folder", "data.test_fraction=0.5", "train.batch_size=8", gates)
    assert reproduced.run("git", "status", "--porcelain").stdout == " M params.yaml\n"  # the images stay out of Git
    done = reproduced.run("dvc", "repro", check=False)
    missed = r"evaluate.gates.group.camera=1 = 0.99: \d+ of \d+ images right, 95 % interval 0.\d+ to "
    assert re.search(missed, refused(done)) and ran(done) == STAGES[:4]
    reproduced.set("evaluate.gates={group.camera=1: 0.001}")
    assert ran(reproduced.run("dvc", "repro")) == STAGES[3:]
    predicted = list(csv.DictReader(io.StringIO((reproduced.path / "data/predictions.csv").read_text())))
    right = [row["label"] == row["predicted"] for row in predicted if re.search(r"[13579]\.jpg$", row["id"])]
    table = csv.DictReader(io.StringIO((reproduced.path / "metrics/groups.csv").read_text()))
    (row,) = (row for row in table if row["group"] == "camera=1")
    assert float(row["accuracy"]) == pytest.approx(sum(right) / int(row["images"]), rel=1e-5)
    card = json.loads((reproduced.path / "models/model.json").read_text())
    assert card["classes"] == ["cat", "dog"]
    assert card["preprocessing"]["channels"] == 3
    assert "top5_accuracy" not in metrics(reproduced)
    photos(own, ["bird"], each=1)
    assert ran(reproduced.run("dvc", "repro")) == STAGES[:1]  # it is noticed, but is not in the CSV
    reproduced.set("data.title=Pets at home")
    assert ran(reproduced.run("dvc", "repro")) == ["evaluate"]
    assert "trained on Pets at home\n" in (reproduced.path / "models/README.md").read_text()
    reproduced.set(f"data.path={own}")
    assert "own is absolute: dvc.lock records it" in reproduced.run("dvc", "repro", "download").stdout


@pytest.mark.product
def test_own_images_handed_to_dvc_reach_an_experiment_in_a_folder_of_its_own(reproduced):
    photos(reproduced.path / "data/own")
    (recipe,) = re.findall(r"`(git rm .*?)`", (ROOT / "README.md").read_text())
    reproduced.run("sh", "-ec", recipe)
    reproduced.set("data.name=folder", "data.test_fraction=0.25", "train.batch_size=8", "train.epochs=1")
    assert not [name for name in reproduced.run("git", "ls-files").stdout.split() if name.endswith(".jpg")]
    assert ran(reproduced.run("dvc", "exp", "run", "--temp")) == STAGES


@pytest.mark.slow
def test_images_elsewhere_are_a_dependency_whether_imported_or_in_an_archive(reproduced):
    photos(reproduced.path.parent / "far")
    photos(reproduced.path / "photos")
    shutil.make_archive(str(reproduced.path / "own"), "gztar", reproduced.path / "photos")
    reproduced.run("dvc", "import-url", "--quiet", str(reproduced.path.parent / "far"), "imported")
    reproduced.run("dvc", "add", "--quiet", "photos", "own.tar.gz")
    reproduced.commit()
    for name, path in (("folder", "photos"), ("folder", "imported"), ("archive", "own.tar.gz")):
        reproduced.set(f"data.name={name}", f"data.path={path}")
        assert ran(reproduced.run("dvc", "repro", "download")) == ["download"]
        lock = yaml.safe_load((reproduced.path / "dvc.lock").read_text())["stages"]["download"]
        assert path in [dep["path"] for dep in lock["deps"]]
        assert ran(reproduced.run("dvc", "repro", "download")) == []
    photos(reproduced.path / "photos", each=13)
    shutil.make_archive(str(reproduced.path / "own"), "gztar", reproduced.path / "photos")
    prepared = (
        "from reprise.repo import project, runs; "
        "print(runs.prepared_data(project.Project.find(project.Path()), runs.load_params('params.yaml', {}).data))"
    )
    command = ("python", "-c", prepared.format("['data.image_size=8']"))
    first, again = (reproduced.run(*command, PYTHONPATH="src").stdout for _ in range(2))
    assert first == again
    os.utime(reproduced.path / "own.tar.gz", (0, 0))
    assert reproduced.run(*command, PYTHONPATH="src").stdout != first  # of another archive, for all we know
    assert "download" in ran(reproduced.run("dvc", "repro", "download"))


def test_unusable_images_stop_with_one_clear_message(reproduced):
    own = reproduced.path / "data/own"
    photos(own)
    (own / "cat/x.jpg").write_bytes(b"")
    (own / "dog/y.png").write_text("?")
    reproduced.set("data.name=folder")
    said = refused(reproduced.run("sh", "-ec", "python stages/download.py && python stages/preprocess.py", check=False))
    assert "2 images cannot be read; replace or remove them, or set data.on_corrupt: drop:\n" in said
    assert "    cat/x.jpg: empty file\n    dog/y.png: not an image" in said
    assert not list(reproduced.path.rglob("*.partial"))


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(reproduced):
    (reproduced.path / "sitecustomize.py").write_text(
        "import errno, os\n"
        "def full(descriptor): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'data/processed')\n"
        "os.fsync = full\n"
    )
    done = reproduced.run(
        "python", "stages/preprocess.py", check=False, PYTHONPATH=f"{reproduced.path}/src:{reproduced.path}"
    )
    assert "No space left on device; free some space and run it again" in refused(done)
    assert not list(reproduced.path.rglob("*.partial"))
    assert (reproduced.path / "data/processed/metadata.json").exists()  # the old out stands


@pytest.mark.product
def test_the_committed_lock_and_metrics_belong_to_the_committed_params():
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(lock) == {*STAGES, "check"}
    for stage in lock.values():
        for dep in stage["deps"]:
            if dep["path"].endswith(".py"):
                md5 = hashlib.md5((ROOT / dep["path"]).read_bytes()).hexdigest()
                assert dep["md5"] == md5, f"{dep['path']} has changed since the committed run: run `make repro`"
    assert lock["train"]["params"]["params.yaml"]["train"] == params["train"]
    assert lock["train"]["params"]["params.yaml"]["model"] == params["model"]
    assert json.loads((ROOT / "metrics/test.json").read_text())["accuracy"] >= 0.985
