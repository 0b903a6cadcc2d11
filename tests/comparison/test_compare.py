"""Revisions as Git and DVC hold them, compared: what is common, what is said, and what a mistake ends in."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
import zlib
from base64 import b64decode
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image

from reprise.comparison import compare as comparing
from reprise.comparison.report import markdown, summary, write
from reprise.repo import project as repo
from reprise.repo.revisions import WEIGHTS, Revision, find_revision
from reprise.runtime.errors import UserError
from tests.comparison.conftest import Project, answers
from tests.conftest import ROOT


def compare(path, base, head, seeds=False):
    return comparing.compare(repo.Project.find(path), base, head, seeds)


def test_the_verdict_follows_the_answers_and_the_gate_follows_the_verdict(project):
    project.state(answers(70, 30)).commit()
    project.state(answers(85, 15)).commit("better")
    project.state(answers(72, 28)).commit("alike")
    project.state(answers(50, 50)).commit("worse")
    words = {}
    for branch in ("better", "alike", "worse"):
        found = compare(project.path, "main", branch)
        words[branch] = (found.verdict.word, found.regressed, found.verdict.broken, found.verdict.fixed)
    assert words == {
        "better": ("better", False, 0, 15),
        "alike": ("no difference shown", False, 0, 2),
        "worse": ("worse", True, 20, 0),
    }
    assert "show a difference of 8 points or more in 80% of cases" in summary(compare(project.path, "main", "alike"))


def test_the_command_names_the_class_that_broke_shows_its_images_and_exits_with_3(project, tmp_path):
    project.state(answers(40, 0) | answers(40, 0, "bee", prefix="b")).commit()
    project.state(answers(10, 30) | answers(40, 0, "bee", prefix="b")).commit("worse")

    line = [sys.executable, "-m", "reprise", "compare", "main", "worse", "--out", str(tmp_path / "out")]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")}
    line += ["--fail-on", "regression"]
    done = subprocess.run(line, cwd=project.path, env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("worse: ")
    assert "\nclasses found worse than before: ant 40/40 -> 10/40\n" in done.stdout
    report = (tmp_path / "out/report.md").read_text()
    assert "Classes found worse than before: **ant** (-75.00 points)." in report
    rows = report[report.index("### Right before") :].split("\n\n")[2].splitlines()[2:]
    listed = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len(listed) == 24
    assert {(label, before, after) for _, _, label, before, after, _ in listed} == {("ant", "ant", "bee")}
    sheet = (tmp_path / "out/broken.svg").read_text()
    tiles = re.findall(r"width='96' height='96' style='image-rendering:pixelated' href='.*?base64,(.*?)'", sheet)
    assert len(tiles) == 24
    pixel = zlib.crc32(listed[0][1].removeprefix("ant/").encode()) % 256  # the first tile is the first image listed
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(b64decode(tiles[0])))), np.full((8, 8), pixel))
    twin = (tmp_path / "out/report.html").read_text()
    assert set(re.findall(r'<img src="(.*?)"', twin)) == {path.name for path in (tmp_path / "out").glob("*.svg")}


def test_groups_that_became_worse_are_named_as_classes_are_by_the_images_both_have(project):
    said = answers(60, 0) | answers(60, 0, "bee", prefix="b")
    project.state(said).commit()
    odd = {name: (label, "cat" if name.endswith(("1", "3")) else label) for name, (label, _) in said.items()}
    rows = [f"{name},{'old' if name.endswith(('1', '3', '5')) else 'new'},{name}\n" for name in reversed(odd)]
    project.state(dict(reversed(odd.items())), groups="id,'=camera,few\n" + "".join(rows)).commit("head")
    found = compare(project.path, "main", "head")
    shown = [(one.name, one.images, one.head_right) for one in found.groups]
    assert shown == [('"=camera"=old', 36, 12), ('"=camera"=new', 84, 84)]
    assert '\ngroups found worse than before: "=camera"=old 36/36 -> 12/36' in summary(found)
    assert "Groups found worse than before: **&#34;=camera&#34;=old** (-66.67 points)." in markdown(found, set())
    assert "## Groups" not in markdown(compare(project.path, "head", "main"), set())  # of a version without them


@pytest.mark.parametrize("pair", [True, False])
def test_a_pair_is_named_where_it_became_worse_than_the_others_of_both_its_groups_and_no_echo_of_one_is(project, pair):
    project.state(said := answers(220, 0)).commit()
    rows = [f"{name},{n % 2},{n // 2 % 2},{min(n % 3, 1)}\n" for n, name in enumerate(said)]
    broken = [name for n, name in enumerate(said) if n % (4 if pair else 2) == 0][:20]
    groups = f"id,camera,light,camera=0 & light\n{''.join(rows)}"  # the third's group 0 is not the pair
    project.state(said | dict.fromkeys(broken, ("ant", "bee")), groups=groups).commit()
    found = {one.name: one for one in compare(project.path, "HEAD~", "HEAD").groups}
    assert (found['"camera=0 & light"=0'].images, len(found)) == (74, 6 + pair)
    assert (p := found["camera=0"].p) == pytest.approx(18 * 2**-19)  # 6 groups and 12 pairs are looked at
    assert [(one.head_right, one.p) for one in found.values() if " & light=" in one.name] == [(35, p)] * pair


def test_captions_of_a_sheet_are_in_any_script(project, tmp_path):
    names = ["Blüte", "κύκλος", "щука"]
    project.state(answers(5, 5, "Blüte", "щука"), classes=names).commit()
    project.state(answers(3, 7, "Blüte", "κύκλος"), classes=names).commit("head")
    write(compare(project.path, "main", "head"), tmp_path)
    root = ElementTree.fromstring((tmp_path / "broken.svg").read_text())
    assert [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")][:2] == ["1: Blüte", "→ κύκλος"]


def test_the_workspace_is_a_revision_and_says_that_it_is_not_committed(project):
    project.state(answers(7, 3)).commit()
    project.state(answers(8, 2))
    found = compare(project.path, "main", "workspace")
    assert found.verdict.fixed == 1
    assert any("uncommitted changes (dvc.lock, metrics/test.json)" in note for note in found.notes)
    project.write("src/model.py", "2")
    assert any("older than its src/model.py" in note for note in compare(project.path, "main", "workspace").notes)


@pytest.mark.parametrize("kind", ["tag", "experiment", "abbreviated"])
def test_a_tag_an_experiment_and_a_short_commit_are_revisions(project, kind):
    project.state(answers(7, 3)).commit()
    commit = project.state(answers(9, 1)).commit("other")
    name = {"tag": "v1", "experiment": "lyric-kill", "abbreviated": commit[:8]}[kind]
    if kind == "tag":
        project.git("tag", "-a", name, "-m", "x")
    project.git("checkout", "--quiet", "main")
    if kind == "experiment":
        project.git("update-ref", f"refs/exps/ab/cdef/{name}", commit)
        project.git("branch", "-D", "other")
    assert compare(project.path, "main", name).verdict.fixed == 2


def test_commits_that_the_head_lacks_are_a_note_and_experiments_of_one_base_are_none(project):
    project.state(answers(70, 30)).commit()
    project.state(answers(80, 20)).commit("branch")
    project.git("checkout", "--quiet", "--detach", "main")
    project.state(answers(85, 15)).commit()
    project.git("update-ref", "refs/exps/aa/bb/quick", "HEAD")
    notes = {base: " ".join(compare(project.path, base, "main").notes) for base in ("branch", "quick")}
    assert re.search(r"branch \(\w+\) has commits that main \(\w+\) lacks \(1\)", notes["branch"])
    assert "lacks" not in notes["quick"]


def test_an_image_is_known_by_its_content_and_not_by_its_name(project):
    base = answers(5, 5) | answers(4, 0, "bee", prefix="b")
    project.state(base, train=["ant/moves", "ant/goes", "ant/stays"]).commit()
    head = {name.replace("bee/b0", "cat/b0"): said for name, said in base.items()}  # relabeled
    head["cat/b0"] = ("cat", "cat")
    del head["ant/1"]
    head["ant/new"] = ("ant", "ant")
    head["ant/moves"] = ("ant", "ant")
    project.state(head, train=["ant/stays"], content={"ant/2": "another picture"}).commit("head")
    found = compare(project.path, "main", "head")
    assert found.data == {
        "added": [("ant/new",)],
        "removed": [("ant/1",), ("ant/goes",)],
        "other content": [("ant/2",)],
        "moved between splits": [("ant/moves", "train", "test")],
        "relabeled": [("cat/b0", "bee", "cat")],
    }
    assert found.verdict.images == 12  # of 14: not ant/1, ant/2
    assert (found.verdict.broken, found.verdict.fixed) == (0, 1)  # judged by the new label
    assert any("Only the 12 that both have" in note for note in found.notes)
    assert any(note.startswith("Changed labels of test images: 1; both") for note in found.notes)
    page = markdown(found, set())
    assert "| relabeled | 1 | cat/b0 (bee -> cat) |" in page


def test_without_the_raw_images_names_have_to_do_and_the_report_says_so(project):
    project.state(answers(5, 5)).commit()
    raw = find_revision(repo.Project.find(project.path), "main").md5("data/raw")
    project.state(answers(5, 6)).commit("head")
    project.cached(raw).unlink()
    found = compare(project.path, "main", "head")
    assert found.verdict.images == 10
    assert any("matched by name alone" in note for note in found.notes)


def test_other_classes_are_said_loudly_and_the_shared_ones_compared(project):
    project.state(answers(5, 5) | answers(3, 1, "bee", "cat"), classes=["ant", "bee", "cat"]).commit()
    head = answers(6, 4, guess="dog") | answers(3, 1, "bee", "ant") | answers(2, 0, "dog", prefix="d")
    project.state(head, classes=["ant", "bee", "dog"]).commit("head")
    found = compare(project.path, "main", "head")
    assert [change.name for change in found.classes] == ["bee", "ant"]
    assert found.verdict.images == 14
    note = next(note for note in found.notes if note.startswith("The classes differ"))
    assert "only main" in note
    assert "has cat" in note
    assert "has dog" in note


def test_results_that_are_no_numbers_are_loud_and_close_the_gate(project):
    project.state(answers(5, 5)).commit()
    odd = {"loss": float("nan"), "f1": None, "recall": "high", "by_class": {"ant": 1}}
    project.state(answers(5, 5), metrics=odd, sure=float("nan")).commit("head")
    found = compare(project.path, "main", "head")
    assert found.regressed
    assert found.verdict.word == "no difference shown"
    assert re.search(r"Not a number in the metrics of head \(.*\): loss, f1, recall, by_class", found.notes[0])
    assert "10 of 10 images have a probability that is not a number" in found.notes[1]
    page = write(found, project.path / "report").read_text()
    assert "| loss | 0.5000 | nan | +nan | lower | not a number |" in page
    assert "| recall | - | nan | - | higher | new |" in page


def test_a_further_metric_that_is_undefined_is_no_failure(project):
    project.state(answers(5, 5), metrics={"auroc": 0.5, "specificity": None}).commit()
    project.state(answers(5, 5), metrics={"auroc": None, "specificity": None}).commit("head")
    found = compare(project.path, "main", "head")
    assert not found.regressed
    assert not any("Not a number" in note for note in found.notes)
    page = markdown(found, set())
    assert "| auroc | 0.5000 | - | - | higher | undefined |" in page
    assert "| specificity | - | - | - | higher | undefined |" in page


def test_params_code_and_terms_that_differ_are_listed(project):
    project.state(answers(5, 5)).commit()
    changed = {"train": {"seed": 1, "lr": "<b>"}, "new": None}
    further = {"hamming_distance": 0.5, "odd": 1.5}
    project.state(answers(5, 5), params=changed, metrics=further, code="2").commit("head")
    page = markdown(compare(project.path, "head", "head"), set())
    assert "| hamming_distance | 0.5000 | 0.5000 | +0.0000 | lower | same |" in page
    assert "| odd | 1.5000 | 1.5000 | +0.0000 | - | same |" in page
    page = markdown(compare(project.path, "main", "head"), set())
    assert "| train.lr | 0.1 | &#60;b&#62; |" in page
    assert "Code of the stages that differs: src/model.py." in page


def test_of_runs_that_differ_only_in_the_seed_neither_is_better(project):
    project.state(answers(50, 50)).commit()
    project.state(answers(90, 10), params={"train": {"seed": 1, "lr": 0.1}}).commit("seed")
    project.state(answers(90, 10), params={"train": {"seed": 1, "lr": 0.1}}, code="2").commit("code")
    for base, head in (("main", "seed"), ("seed", "main")):
        found = compare(project.path, base, head)
        assert (found.verdict.word, found.regressed) == ("no difference shown", False)
        assert found.verdict.p < 0.0001
        assert "Only the seed differs" in summary(found)
    assert compare(project.path, "main", "code").verdict.word == "better"
    project.state(answers(90, 10), params={"train": {"seed": 2, "lr": 1.0}}).commit("real")
    project.state(answers(50, 50), params={"train": {"seed": 1, "lr": 1}}).commit("integer")  # DVC takes them as equal
    assert compare(project.path, "real", "integer").verdict.word == "no difference shown"


@pytest.mark.parametrize("what", ["prepared data", "packages"])
def test_another_seed_on_other_data_or_with_other_packages_is_judged(project, what):
    params = {"train": {"seed": 1, "lr": 0.1}}
    project.state(answers(50, 50)).commit()
    if what == "packages":
        project.state(answers(90, 10), params=params, torch="2.12").commit("other")
    else:
        project.state(answers(90, 10), params=params, train=["ant/new"]).commit("other")
    found = compare(project.path, "main", "other")
    assert (found.verdict.word, found.verdict.same_setting) == ("better", False)


def test_several_seeds_judge_the_setting(project):
    def runs(name, rates, lr):
        for seed, right in enumerate(rates):
            params = {"train": {"seed": seed, "lr": lr}}
            commit = project.state(answers(right, 400 - right), params=params).commit(f"{name}-{seed}")
            if seed:
                project.git("update-ref", f"refs/exps/aa/bbbb/{name}-{seed}", commit)

    project.state(answers(200, 200)).commit()
    runs("noisy", [300, 320, 340, 310], 0.2)
    runs("lucky", [330, 300, 310, 320], 0.3)
    runs("good", [390, 392, 388, 391], 0.4)
    one = compare(project.path, "noisy-0", "lucky-0")
    assert one.verdict.word == "better"  # of these two models
    several = compare(project.path, "noisy-0", "lucky-0", seeds=True)
    assert several.verdict.word == "no difference shown"
    assert list(several.verdict.seeds.base.values()) == [0.75, 0.8, 0.85, 0.775]
    assert "over 4 and 4 seeds" in summary(several)
    assert "is of two runs, noisy-0 (" in several.notes[0]
    assert compare(project.path, "noisy-0", "good-0", seeds=True).verdict.word == "better"
    with pytest.raises(UserError, match=r"fewer than 3 runs differ .* train.seed alone; .*dvc exp run --queue -S"):
        compare(project.path, "main", "main", seeds=True)


@pytest.mark.parametrize("evaluated", [True, False])
def test_predictions_are_those_of_the_model_if_evaluate_ran_whether_or_not_export_did(project, evaluated):
    project.state(answers(5, 5))
    new, old = ([{"path": WEIGHTS, "md5": digit * 32}] for digit in "01")
    lock = yaml.safe_load((project.path / "dvc.lock").read_text())
    lock["stages"]["all"]["deps"] += new if evaluated else old
    lock["stages"]["export"] = {"cmd": "true", "deps": old if evaluated else new}
    project.write("dvc.lock", yaml.safe_dump(lock))
    assert Revision(repo.Project.find(project.path)).evaluated == evaluated


def test_outs_come_from_the_remote_where_the_cache_lacks_them(project, tmp_path):
    project.state(answers(5, 5)).commit()
    project.state(answers(9, 1)).commit("head")
    (project.path / ".dvc/cache/files").rename(tmp_path / "files")
    missing = r"main \(.*\): its data/predictions.csv is neither in DVC's cache nor in a rem"
    with pytest.raises(UserError, match=missing):
        compare(project.path, "main", "head")
    with (project.path / ".dvc/config").open("a") as config:
        config.write(f"    remote = there\n['remote \"there\"']\n    url = {tmp_path / 'remote'}\n")
    with pytest.raises(UserError, match=missing):  # the remote is empty
        compare(project.path, "main", "head")
    (tmp_path / "remote").mkdir(exist_ok=True)
    (tmp_path / "files").rename(tmp_path / "remote/files")
    found = compare(project.path, "main", "head")
    assert found.verdict.fixed == 4
    assert "fixed.svg" in {path.name for path in write(found, tmp_path / "out").parent.iterdir()}


def test_a_remote_of_a_kind_that_is_not_installed_is_a_mistake_told_in_a_line(project):
    project.state(answers(5, 5)).commit()
    shutil.rmtree(project.path / ".dvc/cache")
    with (project.path / ".dvc/config").open("a") as config:
        config.write("    remote = there\n['remote \"there\"']\n    url = oss://bucket/path\n")
    assert "requires 'dvc-oss' to be installed; `pip install` it" in refused(project, "main", "workspace")


def test_the_terminal_gets_no_control_characters(project):
    label = "ant\x1b[2J\x07"
    project.state(answers(9, 1, label, prefix="a"), classes=[label, "bee"]).commit()
    project.state(answers(0, 10, label, prefix="a"), classes=[label, "bee"]).commit("worse")
    said = summary(compare(project.path, "main", "worse"))
    assert "found worse than before: ant?[2J? 9/10 -> 0/10" in said


def refused(project, *names):
    with pytest.raises(UserError) as error:
        compare(project.path, *names)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mistakes_are_told_in_a_line_with_the_way_out(project, tmp_path):
    project.write("README", "nothing yet")
    before = project.commit()
    project.state(answers(5, 5)).commit()
    assert "did you mean main?" in refused(project, "mian", "workspace")
    for name in ("--help", "nowhere"):
        assert f"{name}: no Git revision and no DVC experiment has this name; " in refused(project, name, "workspace")
    first = project.git("rev-parse", "--short", "HEAD")
    assert re.search(f"from before the pipeline existed.*{first} is the first", refused(project, before, "main"))
    project.state(answers(5, 5, prefix="other")).commit("others")
    assert "no common images" in refused(project, "main", "others")
    predictions = find_revision(repo.Project.find(project.path), "main").md5("data/predictions.csv")
    project.cached(predictions).write_text("id,label\n")
    assert "altered since DVC stored it" in refused(project, "main", "others")
    project.git("clone", "--quiet", "--depth", "1", f"file://{project.path}", str(tmp_path / "shallow"))
    shallow = type("Shallow", (), {"path": tmp_path / "shallow"})
    assert "`fetch-depth: 0`" in refused(shallow, "main~1", "workspace")
    (tmp_path / "empty").mkdir()
    assert "not in a Git and DVC repository" in refused(type("No", (), {"path": tmp_path / "empty"}), "a", "b")
    (project.path / ".git").rename(tmp_path / "elsewhere")
    assert f"{project.path}: not in a Git and DVC repository" in refused(project, "a", "b")


def test_the_report_of_equal_revisions_is_the_same_bytes_each_time_and_small(tmp_path):
    nasty = ["<img src=x>", "a|b", "@team", "x" * 300, *(f"class {number}" for number in range(120))]
    said = {f"{label}/{i}": (label, nasty[(row + (i > 3)) % 124]) for row, label in enumerate(nasty) for i in range(8)}
    project = Project(tmp_path / "project")
    project.state(said, classes=nasty).commit()
    project.git("branch", "twin")
    script = (
        "import pathlib, sys; from reprise.comparison import compare, report; "
        "from reprise.repo.project import Project; "
        "project, out = map(pathlib.Path, sys.argv[1:]); "
        "report.write(compare.compare(Project.find(project), 'main', 'twin'), out); "
        "assert not {'torch', 'lightning', 'scipy.stats'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(project.path), str(tmp_path / "one")]
    environment = {"PYTHONHASHSEED": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, check=True, env=environment)
    write(compare(project.path, "main", "twin"), tmp_path / "two")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    page = one["report.md"].decode()
    assert len(page) < 60_000
    assert "one and the same revision" in page
    assert "<img" not in page


def test_ten_thousand_images_take_less_than_five_seconds(project):
    names = [f"class {number}" for number in range(10)]
    generator = np.random.default_rng(0)

    def said(rate):
        guesses = generator.random(10_000) < rate
        return {
            f"{names[i % 10]}/{i}": (names[i % 10], names[(i + (not right)) % 10]) for i, right in enumerate(guesses)
        }

    project.state(said(0.9), classes=names).commit()
    project.state(said(0.92), classes=names).commit("head")
    start = time.process_time()
    page = write(compare(project.path, "main", "head"), project.path / "report")
    assert time.process_time() - start < 5
    assert page.stat().st_size < 60_000
    assert json.dumps(page.read_text()).count("| class ") > 20
