"""`make reproduce`: passes on the real pipeline, and finds and names each planted dependence on the surroundings."""

import re
import shutil

import pytest
import yaml

from reprise.repo.project import Project
from reprise.repo.reproduce import BOTH, DIRECTORY_ORDER, PREFIX, check_surroundings
from tests.conftest import PARAMS, ROOT, new_repository
from tests.test_pipeline import refused

STEADY = "Path(out).write_text('-'.join(sorted(p.name + p.read_text() for p in Path('data/own').iterdir())))"
CPUS = "Path(out).write_text(str(len(os.sched_getaffinity(0))))"
FIRST_NAME = "line 1: 'a.jpg' -> 'c.jpg'"
# stage: {what it writes into its out: what is said of it}
PLANTED = {
    "steady": {STEADY: "1 file, 18 bytes: the same"},
    "order": {
        "Path(out).write_text(os.listdir('data/own')[0])": FIRST_NAME,
        "Path(out).write_text(next(os.walk('data/own'))[2][0])": FIRST_NAME,
        "Path(out).write_text(next(Path('data').glob('own/*')).name)": FIRST_NAME,
    },
    "surroundings": {
        "Path(out).write_text(str(hash('x')))": r"line 1: '-?\d+' -> '-?\d+'",
        "Path(out).write_text(time.strftime('%H', time.localtime(0)))": "line 1: '00' -> '14'",
        "Path(out).write_text(locale.setlocale(locale.LC_ALL, ''))": "line 1: 'C.UTF-8' -> 'C'",
        "Path(out).write_text(Path.cwd().name)": "line 1: 'a' -> 'one level deeper'",
        CPUS: r"line 1: '\d+' -> '1'",
        "Path(out).write_text(oct(os.umask(0)))": "line 1: '0o22' -> '0o77'",
    },
    "formats": {
        "Path(out).mkdir(); [Path(out, name).touch() for name in ('a', 'b')[: 1 + second]]": "only in the second",
        "save({'a': np.ones(1), 'head': np.array([1, 2.0 + second])}, out)": "tensor head: 1 of 2 elements, by up to 1",
        "np.save(Path(out).open('wb'), np.array([[1, 2], [3, 4 + second]]))": "row 1, the first of 1 of 2",
    },
}
SUFFIXES = {"save": ".safetensors", "np.save": ".npy"}
STAGE = """
import locale, os, time
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file as save
second = os.listdir("data/own")[0] == "c.jpg"
"""


def out_of(stage, number, body):
    return f"{stage}-{number}{SUFFIXES.get(body.partition('(')[0], '')}"


def stand_in(path, **planted):
    """Commit a repository with these stages, one after the other, and the library and the commands of this one."""
    path.mkdir(parents=True, exist_ok=True)
    shutil.copy(PARAMS, path / "params.yaml")
    shutil.copytree(
        ROOT / "src", path / "src", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    (path / "data/own").mkdir(parents=True)
    for name in "cab":
        (path / f"data/own/{name}.jpg").write_text("x" if name == "a" else "")
    stages, previous = {}, []
    for stage, bodies in planted.items():
        outs = [out_of(stage, number, body) for number, body in enumerate(bodies)]
        (path / f"{stage}.py").write_text(
            STAGE + "".join(f"out = {o!r}; {b}\n" for o, b in zip(outs, bodies, strict=True))
        )
        command = f"PYTHONPATH=src python {stage}.py"
        stages[stage] = {"cmd": command, "deps": ["data/own", f"{stage}.py", *previous], "outs": outs}
        previous = outs[:1]
    (path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (path / ".gitignore").write_text("__pycache__\n/data/own/*.jpg\n")
    workspace = new_repository(path)
    workspace.run("dvc", "init", "--quiet")
    shutil.copy(ROOT / ".dvc/config", path / ".dvc/config")
    workspace.commit()
    return workspace


def reproduce(workspace, *overrides):
    """Run it with a temporary folder of its own, and see that nothing stays there."""
    temporary = workspace.path.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    done = workspace.run("python", "-m", "reprise", "reproduce", *overrides, check=False, TMPDIR=str(temporary))
    assert list(temporary.iterdir()) == []
    return done


@pytest.mark.slow
def test_the_real_pipeline_gives_the_same_bytes_twice_and_those_committed(reproduced):
    done = reproduce(reproduced)
    assert done.returncode == 0, done.stderr[-3000:]
    *outs, lock, same, committed = done.stdout.splitlines()
    stages = yaml.safe_load((reproduced.path / "dvc.lock").read_text())["stages"]
    assert [line.split(":")[0].split() for line in outs] == [
        [name, out["path"]] for name, stage in stages.items() for out in stage["outs"]
    ]
    assert all(line.endswith(" bytes: the same") for line in outs)
    size = (reproduced.path / "models/model.safetensors").stat().st_size
    assert any(f"models/model.safetensors: 1 file, {size:,} bytes" in line for line in outs)
    assert lock.strip() == "dvc.lock: the same"
    assert same == "reproduce: two runs from scratch gave the same bytes in every out and in dvc.lock"
    assert committed == "reproduce: that is what the committed dvc.lock records, to the last bit"
    assert done.stderr.count("> PYTHONPATH=src exec python stages/train.py") == 2
    assert reproduced.clean()


@pytest.mark.slow
def test_every_planted_dependence_is_named_by_stage_and_file(tmp_path):
    done = reproduce(stand_in(tmp_path / "stand-in", **PLANTED))
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1] == f"reproduce: the two runs differ, first in stage order, order-0: {FIRST_NAME}"
    )
    one_cpu = "CPUs (not here: there is one)" in done.stderr
    for stage, bodies in PLANTED.items():
        for number, (body, said) in enumerate(bodies.items()):
            out = out_of(stage, number, body)
            report = re.search(rf"^{stage} +{out}: .*\n( .*\n)*", done.stdout, re.MULTILINE)[0]
            if stage != "steady" and not (body == CPUS and one_cpu):
                assert " 1 differ\n" in report, out
                said = rf"\n +{out}(/b)?: {said}\n"
                assert re.search(said, report), report
            else:
                assert report.endswith("the same\n")
    assert re.search(r"18 bytes: the same", done.stdout)  # the user's own images are there
    assert re.search(r"dvc.lock: line \d+: ", done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_stage_that_fails_in_the_other_surroundings_only_is_told(tmp_path):
    body = "Path(out).write_text('' if os.environ['LC_ALL'] == 'C.UTF-8' else 1 / 0)"
    done = reproduce(stand_in(tmp_path / "stand-in", fragile=[body]))
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: `dvc repro` failed in run 2 of 2, see above; it ran in TZ=LINT-14 LC_ALL=C ")


def test_surroundings_that_do_not_differ_are_no_proof(tmp_path, monkeypatch):
    first, _ = BOTH
    monkeypatch.setattr("reprise.repo.reproduce.BOTH", (first, first))
    clones = [Project(tmp_path / PREFIX / name) for name in "ab"]
    for clone in clones:
        (clone.root / "src").mkdir(parents=True)
        (clone.root / "src/sitecustomize.py").write_text(DIRECTORY_ORDER)
    with pytest.raises(RuntimeError, match="the two surroundings do not differ in ") as refusal:
        check_surroundings(clones)
    for fact in ("directory order", "hash seed", "locale", "time zone", "umask"):
        assert fact in str(refusal.value).partition(": ")[0]


@pytest.mark.slow
def test_the_committed_lock_is_compared_and_uncommitted_changes_are_refused(tmp_path):
    workspace = stand_in(tmp_path / "stand-in", steady=[STEADY])
    assert "no dvc.lock is committed" in reproduce(workspace).stdout.splitlines()[-1]
    workspace.run("dvc", "cache", "dir", str(tmp_path / "shared"))  # it knows the run, and must not be asked
    workspace.run("dvc", "add", "data/own")
    workspace.run("dvc", "repro")
    workspace.commit()
    (workspace.path / "steady.py").write_text(STAGE + f"out = 'steady-0'; {STEADY}")
    said = refused(reproduce(workspace))
    assert said.startswith("error: uncommitted changes (steady.py): the runs are of the commit; `git commit` or")
    workspace.run("git", "stash")
    done = reproduce(workspace)
    assert done.stdout.splitlines()[-1].endswith("that is what the committed dvc.lock records, to the last bit")
    assert done.stderr.count("> PYTHONPATH=src python steady.py\n") == 2
    workspace.run("git", "stash", "pop")
    workspace.commit()
    last = reproduce(workspace).stdout.splitlines()[-1]
    assert last.endswith("NOT what the committed dvc.lock records: stage steady, deps, steady.py")


def test_a_wrong_override_is_refused_before_anything_runs(reproduced):
    done = reproduce(reproduced, "train.epochs=zero")
    assert "train.epochs" in refused(done)
    assert "run 1 of 2" not in done.stderr
