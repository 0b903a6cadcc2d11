"""The page of `reprise labels --next`: images move to the folder of their class and back, and none is lost."""

from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from reprise.labels.review import Unlabelled
from reprise.runtime.errors import UserError
from tests.labels.browser import CLASSES, browsing, encoded, in_chromium, press, settled, until

CAT, DOG, HOME = f"own/{CLASSES[0]}", f"own/{CLASSES[1]}", "unlabelled"


@pytest.fixture
def folder(tmp_path):
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
def test_by_keyboard_alone_images_move_to_their_class_and_none_is_lost_though_the_server_is_killed(folder):
    with browsing(folder) as (browser, server):
        press(browser, "k")
        until(browser, "this image has no label; press r")
        press(browser, "ar")
        press(browser, CLASSES[0], Keys.ENTER)
        settled(browser)
        assert where(folder) == [DOG, CAT, HOME, HOME, DOG]
        server.kill()
        press(browser, "audaa")  # the third is taken back, then dropped; what follows cannot move
        server.start()
        settled(browser)
        for reason in ("2.ppm: an unlabelled image needs a class", "dog/3.ppm: there is such a file already", "a link"):
            until(browser, reason)
        press(browser, "ppa")
        settled(browser)
        assert where(folder) == [DOG, CAT, DOG, HOME, DOG]
        server.kill()
        (folder / HOME / "3.ppm").unlink()
        server.start()
        browser.refresh()
        until(browser, "nothing to review")
        press(browser, "u")
        until(browser, "taken back: 2.ppm")
    assert (folder / HOME / "2.ppm").read_bytes() == encoded(2)


@pytest.mark.parametrize("moved", [False, True], ids=["before", "after"])
def test_a_kill_before_or_after_any_move_leaves_an_image_that_the_next_page_finds(folder, monkeypatch, moved):
    replace, before = Path.replace, None

    def killed(path, target):
        if moved or path.suffix != ".ppm":
            replace(path, target)
        if path.suffix == ".ppm":
            raise KeyboardInterrupt

    for after, place in (({"label": "dog"}, DOG), ({"label": CLASSES[0]}, CAT), (None, HOME)):
        book = Unlabelled(folder / HOME, folder / "own", folder / "moved")
        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            context.setattr(Path, "replace", killed)
            book.decide("0.ppm", before, after)
        book = Unlabelled(folder / HOME, folder / "own", folder / "moved")
        assert book.decided().get("0.ppm") == (after if moved else before)
        assert book.decide("0.ppm", before, after) == after  # as the page sends it again
        assert where(folder) == [place, HOME, HOME, HOME, DOG]
        with pytest.raises(UserError, match="somebody else has decided"):
            book.decide("0.ppm", {"label": "?"}, {"label": "other"})
        before = after
