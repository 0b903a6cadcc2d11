"""The page of `reprise labels --review` and `--next`: what it says is decided is on the disk, whatever happens."""

import math
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.keys import Keys
from starlette.testclient import TestClient

from reprise.cli import main
from reprise.data.formats.raw import RawArchive, RawImage, image_id, write_archive
from reprise.data.prepare.corrections import DROP, HEADER, Correction, add_corrections, read_corrections
from reprise.labels.report import HEADER as REPORT
from reprise.labels.review import Unlabelled, application
from reprise.runtime.tables import write_csv
from tests.conftest import fresh_clone
from tests.labels.browser import CLASSES, browsing, digest, encoded, in_chromium, press, review, settled, until

GONE = Correction("gone/1.ppm", "0" * 64, "dog")
CAT, DOG, HOME = f"own/{CLASSES[0]}", f"own/{CLASSES[1]}", "unlabelled"


def name(number):
    return f"{CLASSES[number % 2]}/{number:05}.ppm"


def hers(number, content=encoded):
    return Correction(name(number), digest(content(number)), "dog", "Ada", "seen")


def raw(folder, count, content=encoded, corrections=()):
    """Write raw data, and corrections that a person has made; content: of the image with a number."""
    images = [RawImage("unsplit", CLASSES[each % 2], f"{each:05}.ppm", content(each)) for each in range(count)]
    write_archive(folder / "raw", "own", CLASSES, images)
    write_csv(folder / "corrections.csv", HEADER, [*corrections, GONE])
    return folder


class Page:
    """What a browser does, without one: decisions over HTTP, each on what the page was told at first."""

    def __init__(self, folder):
        self.client = TestClient(application(review(folder)), base_url="http://localhost")
        self.state, self.decided = (self.client.get(path).json() for path in ("/state", "/decided"))
        self.digests = {each["id"]: each["sha256"] for each in self.state["candidates"]}

    def decide(self, name, label, **other):
        after = label and {"sha256": self.digests[name], "label": label}
        asked = {"project": self.state["project"], "id": name, "before": self.decided.get(name), "after": after}
        return self.client.post("/decide", json=asked | other)

    def image(self, name):
        return self.client.get("/image", params={"id": name, "sha256": self.digests[name]})


@in_chromium
def test_each_key_does_what_its_button_says_and_an_image_that_is_gone_is_named(tmp_path):
    path = raw(tmp_path, 6)
    with browsing(path) as (browser, _):
        press(browser, "akdr")
        press(browser, "dog", Keys.ENTER)
        press(browser, "au")
        settled(browser)
        assert browser.find_element("id", "label").text == "<b>cat"  # of the image whose decision was taken back
        assert [each for each in browser.get_log("browser") if "Content Security" in each["message"]] == []
        assert browser.execute_script("return [...document.images].map(each => each.naturalWidth)") == [512, 512]
        shutil.rmtree(path / "raw")
        press(browser, "n")
        until(browser, "no image: data/raw is gone or has changed: wait for `dvc repro`")
        browser.execute_script("state.candidates[at].suggested = ''")
        press(browser, "a")
        until(browser, "there is no suggestion; r takes a class")
        press(browser, "k")
        until(browser, "not saved, dog/00005.ppm: data/raw is gone or has changed")
    rows = read_corrections(path / "corrections.csv")
    assert [row.label for row in rows.values()] == ["dog", DROP, "dog", "dog", "dog"]  # of images 0, 2, 1, 3, GONE
    assert rows[name(1)] == Correction(name(1), digest(encoded(1)), "dog", "someone", "ears")


@in_chromium
def test_after_the_last_decision_no_key_decides_until_a_person_has_gone_to_an_image(tmp_path):
    path = raw(tmp_path, 3)
    with browsing(path) as (browser, _):
        for keys in ("AKD", "akrd"):  # capitals, as with CapsLock; these decide nothing
            press(browser, keys)
            until(browser, "all decided; arrows show them again")
        press(browser, "pa")
        settled(browser)
    rows = read_corrections(path / "corrections.csv").values()
    assert [row.label for row in rows] == ["dog", DROP, CLASSES[0], "dog"]  # of images 0, 2, 1, GONE


@pytest.mark.slow
@in_chromium
def test_a_thousand_decisions_by_keyboard_and_none_is_lost_though_the_server_is_killed(tmp_path):
    path = raw(tmp_path, 1000)
    with browsing(path) as (browser, server):
        for part in range(20):
            press(browser, "akd"[part % 3] * 50)
            if part in (4, 11, 12):
                server.kill()
                server.start()
        settled(browser)
    rows = read_corrections(path / "corrections.csv")
    wanted = [(CLASSES[1 - each % 2], CLASSES[each % 2], DROP)[each // 50 % 3] for each in range(1000)]
    assert [rows[name(each)].label for each in range(1000)] == wanted


@in_chromium
def test_neither_a_late_decision_nor_undo_after_a_reload_touches_what_another_process_decided(tmp_path):
    path = raw(tmp_path, 6, corrections=[hers(5)])
    with browsing(path) as (browser, server):
        press(browser, "nnnnnd")  # hers is dropped; undone, it comes back whole
        server.kill()
        press(browser, "akaaa")
        press(browser, "pppd")  # the second image again, which builds on what is refused
        add_corrections(path / "corrections.csv", [hers(1)])
        server.start()
        settled(browser)
        until(browser, f"not saved, {name(1)}: somebody else has decided")
        add_corrections(path / "corrections.csv", [hers(2)])  # the label that the page gave it
        server.kill()
        server.start()
        browser.refresh()
        until(browser, "6 decided")
        other = f"not saved, {name(2)}: somebody else has decided: dog"
        undone = [f"taken back: {name(number)}" for number in (4, 3, 0, 5)]
        for said in (*undone[:2], other, *undone[2:], "nothing to undo"):
            press(browser, "u")
            until(browser, said)
    assert list(read_corrections(path / "corrections.csv").values()) == [hers(2), hers(1), hers(5), GONE]


def test_beside_ten_thousand_corrections_no_edit_of_another_process_is_lost_nor_mode_nor_link(tmp_path, monkeypatch):
    lines = [hers(each, lambda number: b"%d" % number) for each in range(10_000)]
    path = raw(tmp_path, 10_000, lambda number: b"%d" % number, lines) / "corrections.csv"
    page, expected = Page(path.parent), read_corrections(path)
    path.chmod(0o664)

    def decided(number, label):
        expected[name(number)] = expected[name(number)]._replace(label=label, by="someone", why="")
        assert page.decide(name(number), label).json() == {"decided": expected[name(number)]._asdict()}
        assert read_corrections(path) == expected

    def edit(number):  # in place, of the same size and time: only the content tells
        times, line = path.stat(), expected[name(number)]
        expected[name(number)] = line._replace(by="Eva")
        path.write_text(path.read_text().replace(",".join(line), ",".join(expected[name(number)])))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    decided(0, "<b>cat")
    edit(7)
    decided(9_999, DROP)
    assert "somebody else has decided: dog" in page.decide(name(7), DROP).json()["reason"]
    expected["added"] = Correction("added", "1" * 64, "dog")
    add_corrections(path, [expected["added"]])
    decided(5_000, "<b>cat")
    synced = os.fsync
    monkeypatch.setattr("os.fsync", lambda file: (edit(8), monkeypatch.undo(), synced(file)))
    assert "edited at this very moment" in page.decide(name(6), DROP).json()["reason"]
    assert page.decide(name(2), None).json() == {"decided": None}
    del expected[name(2)]
    decided(6, DROP)
    path.write_text("id\n")
    for answer in (page.decide(name(3), DROP), page.client.get("/decided")):
        assert "its first line has to be" in answer.json()["reason"]
    assert path.read_text() == "id\n" and path.stat().st_mode & 0o777 == 0o664
    path.symlink_to(path.rename(tmp_path / "elsewhere.csv"))
    assert "corrections.csv: a link, which is not" in page.decide(name(3), DROP).json()["reason"] and path.is_symlink()


def test_a_decision_is_on_the_content_that_was_shown_whatever_becomes_of_the_raw_data(tmp_path):
    page, path = Page(raw(tmp_path, 4)), tmp_path / "corrections.csv"
    (tmp_path / "raw").rename(tmp_path / "kept")  # as when a stage runs
    for answer in (page.image(name(0)), page.decide(name(0), "dog")):
        assert answer.status_code == 409 and "data/raw is gone or has changed" in answer.json()["reason"]
    # the second is another one now
    restarted = Page(raw(tmp_path, 4, lambda number: encoded(9 if number == 1 else number)))
    restarted.digests = page.digests  # for a page that was opened before
    for each, reason in ((page, "data/raw is gone or has changed"), (restarted, "is another image now")):
        for answer in (each.image(name(1)), each.decide(name(1), "dog"), each.decide(name(1), DROP)):
            assert answer.status_code == 409 and reason in answer.json()["reason"]
    assert list(read_corrections(path).values()) == [GONE]
    assert page.decide(name(0), "dog").json()["decided"]["sha256"] == digest(encoded(0))
    shutil.rmtree(tmp_path / "raw")
    (tmp_path / "kept").rename(tmp_path / "raw")
    assert page.decide(name(1), "dog").json()["decided"]["sha256"] == digest(encoded(1))


def test_other_sites_and_nonsense_decide_nothing_and_one_content_gets_one_label(tmp_path):
    path = raw(tmp_path, 2, lambda _: b"same") / "corrections.csv"
    page, right = Page(path.parent), {"sha256": digest(b"same"), "label": "dog"}
    assert page.client.post("/decide", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert page.client.get("/decided", headers={"host": "evil.example"}).status_code == 400
    wrongs = [{"after": after} for after in ({}, [], "", right | {"label": "horse"}, right | {"sha256": ""})]
    wrongs += [{"after": right | {"sha256": None}}, {"id": "../x"}, {"id": [1]}, {"project": "other"}]
    for wrong in wrongs:
        assert page.decide(name(0), "dog", **wrong).status_code in (400, 409, 421, 422), wrong
    assert page.client.get("/image", params={"id": "../corrections.csv"}).status_code == 404
    assert list(read_corrections(path).values()) == [GONE]
    assert page.decide(name(0), None, after=right | {"id": name(1)}).json()["decided"]["id"] == name(0)
    assert "00000.ppm, the same image, is dog; decide" in page.decide(name(1), "<b>cat").json()["reason"]


def test_neither_several_modes_nor_a_class_called_drop_start_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(fresh_clone(tmp_path / "clone").path)
    monkeypatch.setattr("reprise.labels.review.run", lambda *_: None)
    monkeypatch.setattr(f"{__name__}.CLASSES", [DROP, "dog"])
    raw(Path("data"), 1)
    Path("runs/labels").mkdir(parents=True)
    write_csv(Path("runs/labels/labels.csv"), REPORT, [])
    for options in ("--next 0", "--review --next 5", "--next 2 --accept 0", "--review --port 0", "--accept 1"):
        with pytest.raises(SystemExit, match="one at a time" if "next" in options else "`drop` is a class of these"):
            main(["labels", *options.split()])


@pytest.fixture
def unlabelled(tmp_path):
    """Make images 0 to 3 without a label, 4, a link to the last of them, and another 3.ppm among the dogs."""
    for number, place in enumerate((HOME, HOME, HOME, HOME, DOG)):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / f"{min(number, 3)}.ppm").write_bytes(encoded(number))
    (tmp_path / HOME / "4.ppm").symlink_to("3.ppm")
    (tmp_path / CAT).mkdir()
    return tmp_path


def where(folder):
    """Return where the images lie."""
    found = {path.read_bytes(): path for path in folder.rglob("*.ppm") if not path.is_symlink()}
    return [found[encoded(number)].parent.relative_to(folder).as_posix() for number in range(5)]


@in_chromium
def test_by_keyboard_alone_unlabelled_images_move_to_their_class_and_a_killed_server_loses_none(unlabelled):
    with browsing(unlabelled) as (browser, server):
        press(browser, "ar")
        press(browser, CLASSES[0], Keys.ENTER)
        settled(browser)
        assert where(unlabelled) == [DOG, CAT, HOME, HOME, DOG]
        server.kill()
        press(browser, "audaa")  # the third is taken back, then dropped; what follows cannot move
        server.start()
        for reason in ("2.ppm: an unlabelled image needs a class", "dog/3.ppm: there is such a file already", "a link"):
            until(browser, reason)
        press(browser, "ppa")
        settled(browser)
        assert where(unlabelled) == [DOG, CAT, DOG, HOME, DOG]
        server.kill()
        (unlabelled / HOME / "3.ppm").unlink()
        server.start()
        browser.refresh()
        until(browser, "nothing to review")
        press(browser, "u")
        until(browser, "taken back: 2.ppm")
    assert (unlabelled / HOME / "2.ppm").read_bytes() == encoded(2)


@pytest.mark.parametrize("moved", [False, True], ids=["before", "after"])
def test_a_kill_before_or_after_any_move_leaves_an_image_that_the_next_page_finds(unlabelled, monkeypatch, moved):
    replace, before = Path.replace, None

    def killed(path, target):
        if moved or path.suffix != ".ppm":
            replace(path, target)
        if path.suffix == ".ppm":
            raise KeyboardInterrupt

    for after, place in (({"label": "dog"}, DOG), ({"label": CLASSES[0]}, CAT), (None, HOME)):
        book = Unlabelled(unlabelled / HOME, unlabelled / "own", unlabelled / "moved")
        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            context.setattr(Path, "replace", killed)
            book.decide("0.ppm", before, after)
        book = Unlabelled(unlabelled / HOME, unlabelled / "own", unlabelled / "moved")
        assert book.decided().get("0.ppm") == (after if moved else before)
        assert book.decide("0.ppm", before, after) == after  # as the page sends it again
        assert where(unlabelled) == [place, HOME, HOME, HOME, DOG]
        before = after


@pytest.mark.slow
def test_the_command_serves_doubts_and_unlabelled_images_and_no_second_page(reproduced):
    command, data = [sys.executable, "-m", "reprise", "labels", "--port", "0"], reproduced.path / "data"
    archive = RawArchive(data / "raw")
    members = {image_id(member): digest(archive.read(member)) for member in list(archive.members)[:2]}
    rows = [[each, each[0], "7", "0.1", "other class", sha256, "[]"] for each, sha256 in members.items()]
    (reproduced.path / "runs/labels").mkdir(parents=True)
    write_csv(reproduced.path / "runs/labels/labels.csv", REPORT, rows)

    def served(*options):
        """Return the candidates, and what was said on stderr; a second page is refused meanwhile."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        clone = {"cwd": reproduced.path, "env": reproduced.environment()}
        with subprocess.Popen([*command, *options], **clone, **pipes) as process:
            address = process.stdout.readline().split(" at ")[1].partition(",")[0]
            candidates = httpx.get(f"{address}/state").json()["candidates"]
            assert "another page is open" in refused(*options)
            process.terminate()
            said = process.communicate()[1]
        assert process.returncode == 0
        return {each["id"]: each["why"] for each in candidates}, said

    def refused(*options):
        return reproduced.run(*command, *options, check=False).stderr

    assert served("--review") == (dict.fromkeys(members, "other class"), "")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert refused("--review", "--port", str(taken.getsockname()[1])).endswith("); name another by --port\n")

    (data / "unlabelled").mkdir()
    for number, each in enumerate(("0.ppm", "1.ppm", "2.ppm", "three\u202e.ppm")):
        (data / "unlabelled" / each).write_bytes(encoded(number))
    (data / "unlabelled/bad.png").write_bytes(b"no image")
    assert "data.name = digits: images get labels in folders of classes" in refused("--next", "2")
    reproduced.set("data.name=folder")
    assert "has not just a folder of files for each of the classes" in refused("--next", "2")
    for each in range(10):
        (data / "own" / str(each)).mkdir()
    candidates, said = served("--next", "2")
    assert len({*candidates} & {"0.ppm", "1.ppm", "2.ppm"}) == 2
    for why in candidates.values():
        sure, margin, entropy = map(float, re.fullmatch(r"(.+) sure, margin (.+), entropy (.+)", why).groups())
        assert 0.1 < sure < 1 and margin < sure and 0 < entropy <= round(math.log(10), 2)
    assert "labels: 2 images left out: bad.png: " in said and "; 'three\\u202e.ppm': an unprintable name" in said
