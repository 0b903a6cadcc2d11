"""The page of `reprise labels --next`: images move to the folder of their class and back, and none is lost."""

from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from reprise.labels.review import Unlabelled
from reprise.runtime.errors import UserError
from tests.labels.browser import CLASSES, browsing, encoded, in_chromium, press, settled, until

CAT, DOG = f"own/{CLASSES[0]}", f"own/{CLASSES[1]}"


@pytest.fixture
def folder(tmp_path):
    for path in ("unlabelled", CAT, DOG):
        (tmp_path / path).mkdir(parents=True)
    for number in range(4):
        (tmp_path / f"unlabelled/{number}.png").write_bytes(encoded(number))
    return tmp_path


def book(folder):
    return Unlabelled(folder / "unlabelled", folder / "own", folder / "moved")


def where(folder):
    """Return where images 0, 1, ... lie."""
    found = {path.read_bytes(): path for path in folder.rglob("*.png")}
    assert len(found) == 4
    return [found[encoded(number)].parent.relative_to(folder).as_posix() for number in range(4)]


@in_chromium
def test_by_keyboard_alone_images_move_to_their_class_and_none_is_lost_though_the_server_is_killed(folder):
    with browsing(folder) as (browser, server):
        press(browser, "k")
        until(browser, "said", "this image has no label; press r")
        press(browser, "ar")
        press(browser, CLASSES[0], Keys.ENTER)
        settled(browser)
        assert where(folder) == [DOG, CAT, "unlabelled", "unlabelled"]
        server.kill()
        press(browser, "auda")  # the third is taken back, and has to have a class
        server.start()
        settled(browser)
        until(browser, "refused", "not saved, 2.png: an unlabelled image needs a class")
        press(browser, "pa")
        settled(browser)
        assert where(folder) == [DOG, CAT, DOG, DOG]
        server.kill()
        server.start()  # and there is nothing left to label
        browser.refresh()
        until(browser, "said", "nothing to review")
        press(browser, "u")
        settled(browser)
    assert where(folder) == [DOG, CAT, "unlabelled", DOG]


def test_an_image_replaces_nothing_and_links_stay(folder):
    mine, record = book(folder), {"label": "dog"}
    assert mine.decide("0.png", None, record) == record
    (folder / "unlabelled/0.png").symlink_to("1.png")
    (folder / DOG / "1.png").symlink_to(folder / DOG / "0.png")
    for name, before, after, reason in (
        ("1.png", None, record, "such a file already"),
        ("0.png", record, None, "such a file already"),
        ("0.png", None, {"label": CLASSES[0]}, "somebody else has decided: dog"),
    ):
        with pytest.raises(UserError, match=reason):
            mine.decide(name, before, after)
    with pytest.raises(UserError, match="gone, or a link"):
        book(folder).decide("0.png", None, {"label": CLASSES[0]})


@pytest.mark.parametrize("moved", [False, True], ids=["before", "after"])
def test_a_kill_before_or_after_any_move_leaves_an_image_that_the_next_page_finds(folder, monkeypatch, moved):
    replace, before = Path.replace, None

    def killed(path, target):
        if moved or path.suffix != ".png":
            replace(path, target)
        if path.suffix == ".png":
            raise KeyboardInterrupt

    for after, place in (({"label": "dog"}, DOG), ({"label": CLASSES[0]}, CAT), (None, "unlabelled")):
        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            context.setattr(Path, "replace", killed)
            book(folder).decide("0.png", before, after)
        found = book(folder)
        assert found.decided().get("0.png") == (after if moved else before)
        assert found.read("0.png") == encoded(0)
        assert found.decide("0.png", before, after) == after  # as the page sends it again
        assert where(folder) == [place, *["unlabelled"] * 3]
        before = after
