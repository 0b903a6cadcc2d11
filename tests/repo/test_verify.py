"""`make verify`: every byte that dvc.lock refers to is hashed, each difference is named, and the way out works."""

import os
import shutil

import pytest
import yaml

from reprise.repo import verify as verifying
from reprise.repo.project import Project
from tests.conftest import Workspace
from tests.test_pipeline import photos, ran, refused


def verify(workspace):
    """Return {path: what is wrong} and the commands of the way out."""
    result = verifying.verify(Project(workspace.path))
    found = {}
    for path, _, what in result.mismatches:
        found[path] = f"{found[path]}; {what}" if path in found else what
    return found, result.repairs


def repaired(workspace, commands):
    """Follow the way out; say whether everything is as committed."""
    workspace.run("sh", "-ec", "\n".join(commands))
    return verify(workspace) == ({}, []) and workspace.clean()


def flip(path):
    """Flip one bit and leave time and size as they were, as a bad disk does."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def outs(workspace):
    """Return every file of every out, from dvc.lock."""
    found = []
    for stage in yaml.safe_load((workspace.path / "dvc.lock").read_text())["stages"].values():
        for path in (workspace.path / out["path"] for out in stage["outs"]):
            found += sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return found


def objects(workspace):
    return sorted(path for path in (workspace.path / ".dvc/cache/files").rglob("*") if path.is_file())


def runs(workspace):
    return sorted(path for path in (workspace.path / ".dvc/cache/runs").rglob("*") if path.is_file())


def names(workspace, paths):
    return {str(path.relative_to(workspace.path)) for path in paths}


def test_a_healthy_workspace_is_one_line_that_counts_everything(reproduced):
    lock = yaml.safe_load((reproduced.path / "dvc.lock").read_text())["stages"]
    deps = {reproduced.path / dep["path"] for stage in lock.values() for dep in stage["deps"]}
    code = {path for dep in deps for path in (dep, *dep.rglob("*")) if "__pycache__" not in path.parts}
    files = {path for path in code if path.is_file() and path.name != ".gitkeep"}
    files |= {*outs(reproduced), *objects(reproduced), *runs(reproduced)}
    size = sum(path.stat().st_size for path in files)
    line = f"verify: 6 stages, {len(files)} files, {size:,} bytes hashed: workspace and cache are what dvc.lock records"
    done = reproduced.reprise("verify")
    assert (done.stdout, done.stderr) == (f"{line}\n", "")


def test_one_bit_in_any_out_is_named_where_dvc_sees_none_and_can_be_brought_back(reproduced):
    reproduced.run("dvc", "status")
    for path in outs(reproduced):
        flip(path)
    assert "up to date" in reproduced.run("dvc", "status").stdout  # DVC looks at time and size
    found, way_out = verify(reproduced)
    assert found == dict.fromkeys(names(reproduced, outs(reproduced)), "altered")
    assert set(found) >= {"data/raw/images.zip", "models/model.safetensors", "metrics/test.json", "metrics/data.json"}
    assert repaired(reproduced, way_out)


def test_one_bit_in_any_cache_object_is_named_and_the_object_filled_anew(reproduced):
    bad = [path for path in objects(reproduced) if path.suffix != ".dir"]
    before = {path: path.read_bytes() for path in bad}
    for path in bad:
        flip(path)
    assert "up to date" in reproduced.run("dvc", "status").stdout
    found, way_out = verify(reproduced)
    # of a stage with an out that is neither cached nor a metric DVC keeps no run: these are in Git alone
    only_in_git = {"models/README.md", "metrics/test.json", "metrics/per_class.csv", "metrics/confusion.csv"}
    only_in_git |= {"metrics/risk_coverage.csv", "metrics/groups.csv"}
    assert set(found) == names(reproduced, outs(reproduced)) - only_in_git
    assert {what.partition(", ")[0] for what in found.values()} == {"altered in the cache"}
    assert {what.partition(", ")[2] for what in found.values()} == names(reproduced, bad)
    assert repaired(reproduced, way_out)
    assert {path: path.read_bytes() for path in bad} == before


@pytest.mark.slow
def test_one_bit_in_the_run_cache_or_in_what_only_a_former_run_made_is_named_and_goes(reproduced):
    before = {*objects(reproduced)}
    reproduced.set("train.lr=0.001")
    reproduced.run("dvc", "repro")
    only = [path for path in objects(reproduced) if path not in before]
    reproduced.run("git", "checkout", ".")
    reproduced.run("dvc", "checkout")
    assert verify(reproduced) == ({}, [])
    bad = [*runs(reproduced), *only]
    for path in only:
        flip(path)
    found, _ = verify(reproduced)
    # of `evaluate`, with an out that Git holds, DVC keeps no run
    assert {what.partition(", ")[2] for what in found.values()} <= names(reproduced, only)
    assert {"models/model.safetensors", "models/model.json"} <= set(found)
    for path in runs(reproduced):
        flip(path)
    found, way_out = verify(reproduced)
    assert set(found) == names(reproduced, runs(reproduced))
    assert set(way_out) == {f"rm -f {name}" for name in names(reproduced, runs(reproduced))}
    reproduced.run("sh", "-ec", "\n".join(way_out))
    assert verify(reproduced) == ({}, [])
    assert len(bad) > 5


def test_an_empty_out_that_the_last_commit_lacks_is_not_to_come_from_there(reproduced):
    lock = reproduced.path / "dvc.lock"
    recorded = yaml.safe_load(lock.read_text())
    (out,) = (out for out in recorded["stages"]["evaluate"]["outs"] if out["path"] == "models/README.md")
    out["md5"], out["size"] = "d41d8cd98f00b204e9800998ecf8427e", 0
    lock.write_text(yaml.safe_dump(recorded, sort_keys=False))
    reproduced.run("git", "rm", "--quiet", "models/README.md")
    reproduced.commit()
    assert verify(reproduced) == ({"models/README.md": "missing"}, ["dvc repro --force --single-item evaluate"])


def test_an_altered_list_of_files_in_the_cache_is_named(reproduced):
    lock = yaml.safe_load((reproduced.path / "dvc.lock").read_text())["stages"]
    (out,) = (out for out in lock["preprocess"]["outs"] if out["path"] == "data/processed")
    stored = reproduced.path / f".dvc/cache/files/md5/{out['md5'][:2]}/{out['md5'][2:]}"
    file = reproduced.path / "data/processed/train_images.npy"
    (inner,) = (path for path in objects(reproduced) if path.read_bytes() == file.read_bytes())
    flip(stored)
    flip(inner)
    found, way_out = verify(reproduced)
    assert found == {
        "data/processed (its list of files)": f"altered in the cache, {stored.relative_to(reproduced.path)}",
        "data/processed/train_images.npy": f"altered in the cache, {inner.relative_to(reproduced.path)}",
    }
    assert repaired(reproduced, way_out)
    flip(stored)
    flip(file)
    found, way_out = verify(reproduced)
    assert found == {
        "data/processed": "altered (which file: unknown, the cache has no intact list of them)",
        "data/processed (its list of files)": f"altered in the cache, {stored.relative_to(reproduced.path)}",
    }
    assert repaired(reproduced, way_out)


def test_missing_extra_and_unreadable_files_are_named(reproduced):
    own = reproduced.path
    (own / "data/processed/test_images.npy").unlink()
    (own / "data/processed/more").mkdir()
    (own / "data/processed/more/extra.txt").write_text("")
    shutil.rmtree(own / "data/raw")
    (own / "models/model.json").unlink()
    (own / "models/model.json").mkdir()
    (own / "metrics/test.json").unlink()
    (own / "metrics/train.json").unlink()
    (own / "metrics/train.json").symlink_to("/proc/self/mem")  # its first byte cannot be read: an I/O error
    found, way_out = verify(reproduced)
    assert found == {
        "data/processed/test_images.npy": "missing",
        "data/processed/more/extra.txt": "extra",
        "data/raw": "missing",
        "models/model.json": "a folder, not a file",
        "metrics/test.json": "missing",
        "metrics/train.json": "unreadable (Input/output error)",
    }
    assert set(way_out[-2:]) == {
        f"rm -f metrics/{name}.json && git checkout HEAD -- metrics/{name}.json" for name in ("train", "test")
    }
    assert way_out[0].endswith("&& dvc checkout data/raw data/processed models/model.json")
    assert repaired(reproduced, way_out)


def test_metrics_that_git_has_otherwise_are_made_anew(reproduced):
    (reproduced.path / "metrics/test.json").write_text("{}")
    reproduced.commit()
    assert verify(reproduced) == ({"metrics/test.json": "altered"}, ["dvc repro --force --single-item evaluate"])


def test_bad_in_the_workspace_and_in_the_cache_is_made_anew(reproduced):
    (path,) = (reproduced.path / "data/raw").glob("*.zip")
    before = path.read_bytes()
    (stored,) = (one for one in objects(reproduced) if one.read_bytes() == before)
    flip(path)
    flip(stored)
    found, way_out = verify(reproduced)
    assert found == {"data/raw/images.zip": f"altered; altered in the cache, {stored.relative_to(reproduced.path)}"}
    assert way_out[-1] == "dvc repro --force --single-item download"
    assert repaired(reproduced, way_out)
    assert path.read_bytes() == stored.read_bytes() == before


USERS = ("check", "train", "evaluate", "export")  # of batches.py


def test_what_was_edited_since_is_named_as_such(reproduced):
    (reproduced.path / "stages/download.py").write_text("pass\n")
    (reproduced.path / "data/own/cat.jpg").write_text("")
    (reproduced.path / "src/reprise/loader/batches.py").unlink()
    pipeline = (reproduced.path / "dvc.yaml").read_text()
    pipeline = pipeline.replace("python stages/evaluate.py", "python -B stages/evaluate.py")
    pipeline = pipeline.replace("stages/preprocess.py]", "stages/preprocess.py, Makefile]")
    (reproduced.path / "dvc.yaml").write_text(pipeline)
    reproduced.set("data.seed=5", "train.lr=0.5")
    lock = yaml.safe_load((reproduced.path / "dvc.lock").read_text())
    raw = next(dep for dep in lock["stages"]["preprocess"]["deps"] if dep["path"] == "data/raw")
    raw["md5"] = f"{0:032}.dir"  # as after `dvc repro --single-item download`
    (reproduced.path / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    since = " since dvc.lock was written"
    done = reproduced.reprise("verify", check=False)
    *lines, _, way_out = done.stdout.splitlines()
    assert done.returncode == 1
    assert set(lines) == {
        f"stages/download.py, stage download: altered{since}",
        f"data/own, stage download: altered{since}",
        f"data/raw, stage preprocess: made anew{since}",
        f"Makefile, stage preprocess: added{since}",
        f"params.yaml data.seed, stage preprocess: modified{since}",
        f"params.yaml train, stage train: modified{since}",
        *(f"params.yaml {section}, stage check: modified{since}" for section in ("data", "train")),
        *(f"src/reprise/loader/batches.py, stage {stage}: missing{since}" for stage in USERS),
        f"dvc.yaml, stage evaluate: command modified{since}",
    }
    assert way_out == "  dvc repro"


def test_the_cache_is_not_refilled_from_what_has_been_edited(reproduced):
    (stored,) = (path for path in objects(reproduced) if b"P5" in path.read_bytes()[:200])
    flip(stored)
    source = reproduced.path / "stages/download.py"
    source.write_text(source.read_text() + "\n")
    _, way_out = verify(reproduced)
    assert way_out[1:] == ["dvc repro --force --single-item download", "dvc repro"]


def test_a_fresh_clone_is_told_to_reproduce_and_broken_records_are_one_line(reproduced, tmp_path):
    reproduced.run("git", "clone", "--quiet", ".", str(tmp_path / "fresh"))
    fresh = Workspace(tmp_path / "fresh")
    found, way_out = verify(fresh)
    outs_without_metrics = {"data/raw", "data/processed", "models/model.safetensors", "models/model.json"}
    outs_without_metrics |= {"models/confidence.json"}
    outs_without_metrics |= {"models/export", "data/report", "data/predictions.csv", "data/groups.csv"}
    outs_without_metrics |= {f"data/records/{stage}.json" for stage in ("download", "preprocess", "evaluate", "export")}
    outs_without_metrics.add("data/records/check.txt")
    assert found == dict.fromkeys(
        outs_without_metrics, "missing here and in the cache: not pulled or not reproduced yet"
    )
    assert way_out == ["make repro  # or `dvc pull`, from a remote that has them"]
    (fresh.path / "dvc.lock").write_text("stages: [")
    assert "git diff HEAD -- dvc.yaml dvc.lock" in refused(fresh.reprise("verify", check=False))
    (fresh.path / "dvc.lock").unlink()
    assert "dvc.lock: no such file; " in refused(fresh.reprise("verify", check=False))


def test_a_cache_elsewhere_is_found(reproduced, tmp_path):
    shutil.move(reproduced.path / ".dvc/cache", tmp_path / "shared cache")
    reproduced.run("dvc", "cache", "dir", "--local", str(tmp_path / "shared cache"))
    assert verify(reproduced) == ({}, [])
    model = (reproduced.path / "models/model.safetensors").read_bytes()
    (bad,) = (path for path in (tmp_path / "shared cache").rglob("*") if path.is_file() and path.read_bytes() == model)
    flip(bad)
    found, way_out = verify(reproduced)
    assert found == {"models/model.safetensors": f"altered in the cache, {bad}"}
    assert repaired(reproduced, way_out)


def test_own_images_are_verified_too_but_never_removed(reproduced):
    own = reproduced.path / "data/own"
    photos(own)
    reproduced.run("sh", "-ec", "git rm -q --cached data/own/.gitkeep && dvc add data/own && git add data")
    assert ran(reproduced.run("dvc", "repro")) == ["download"]  # of digits still: nothing else changes
    reproduced.commit()
    assert verify(reproduced) == ({}, [])
    image = (own / "cat/3.jpg").read_bytes()
    (stored,) = (path for path in objects(reproduced) if path.read_bytes() == image)
    flip(stored)
    found, way_out = verify(reproduced)
    assert found == {"data/own/cat/3.jpg": f"altered in the cache, {stored.relative_to(reproduced.path)}"}
    assert repaired(reproduced, way_out)
    assert stored.read_bytes() == image
    (own / "cat/new.jpg").write_bytes(image)
    found, way_out = verify(reproduced)
    assert found == {"data/own/cat/new.jpg": "extra"}
    assert way_out == ["dvc add data/own  # if the change is meant; `dvc checkout data/own` undoes it"]


def reasons(workspace):
    """Return {path: why} of what makes dvc.lock stale."""
    return {finding.path: finding.what for finding in verifying.stale(Project(workspace.path))}


def test_a_fresh_lock_needs_no_data_to_be_known_as_such(reproduced, tmp_path):
    assert reasons(reproduced) == {}
    reproduced.run("git", "clone", "--quiet", ".", str(tmp_path / "fresh"))
    assert reasons(Workspace(tmp_path / "fresh")) == {}


def test_a_stale_lock_is_named_where_dvc_itself_reports_success(reproduced, tmp_path):
    reproduced.set("train.lr=0.002")
    source = reproduced.path / "src/reprise/loader/batches.py"
    source.write_text(source.read_text() + "\n")
    table = reproduced.path / "metrics/per_class.csv"
    table.write_text(table.read_text().replace("class", "klass"))
    (reproduced.path / "metrics/test.json").unlink()
    lock = reproduced.path / "dvc.lock"
    other = yaml.safe_load(lock.read_text())
    (raw,) = (dep for dep in other["stages"]["preprocess"]["deps"] if dep["path"] == "data/raw")
    raw["md5"] = "0" * 32 + ".dir"  # as after a merge that took one stage of ours and one of theirs
    lock.write_text(yaml.safe_dump(other))
    reproduced.commit()
    reproduced.run("git", "clone", "--quiet", ".", str(tmp_path / "fresh"))
    fresh = Workspace(tmp_path / "fresh")
    assert reproduced.run("dvc", "repro", "--dry", "--allow-missing", check=False).returncode == 0
    since = "since dvc.lock was written"
    assert reasons(fresh) == {
        "params.yaml train": f"modified {since}",
        "src/reprise/loader/batches.py": f"altered {since}",
        "data/raw": f"made anew {since}",
        "metrics/per_class.csv": "altered, not what dvc.lock records",
        "metrics/test.json": "missing, not what dvc.lock records",
    }


def test_a_stage_that_never_ran_and_an_out_that_was_edited_make_the_lock_stale(reproduced):
    lock = reproduced.path / "dvc.lock"
    recorded = yaml.safe_load(lock.read_text())
    del recorded["stages"]["evaluate"]
    lock.write_text(yaml.safe_dump(recorded))
    (reproduced.path / "models/model.json").chmod(0o644)
    (reproduced.path / "models/model.json").write_text("{}")
    assert reasons(reproduced) == {
        "models/model.json": "altered, not what dvc.lock records",
        "models/confidence.json": "made anew since dvc.lock was written",
        "dvc.lock": "not recorded: the stage has not run yet",
    }
