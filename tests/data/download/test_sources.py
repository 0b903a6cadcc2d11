"""Each source yields the images it promises, checks their integrity, and says what to do without a network."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from reprise.data.download.sources import download
from reprise.data.formats.raw import RawArchive
from reprise.data.prepare.decode import decode
from reprise.params.load import load_params
from reprise.runtime.errors import UserError
from tests.conftest import PARAMS, data_params


def fetched(tmp_path, name, **options):
    download(data_params(name=name, path="own", **options), tmp_path / "raw", tmp_path / "downloads", tmp_path)
    return RawArchive(tmp_path / "raw")


def test_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    archive = fetched(tmp_path, "digits")
    assert archive.source.classes == [str(digit) for digit in range(10)]
    assert len(archive.members) == archive.source.images == 1797
    digits = load_digits()
    for index in range(1797):
        member = f"unsplit/{digits.target[index]}/{index:04d}.pgm"
        pixels = decode(archive.read(member), 8, 1)[0][:, :, 0]
        assert np.array_equal(pixels, np.rint(digits.images[index] * 255 / 16))


def idx(array):
    """Encode an array in the format of the MNIST files."""
    return gzip.compress(
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes(), mtime=0
    )


def serve_mnist(folder, monkeypatch):
    """Serve a tiny MNIST; teach torchvision its checksums."""
    random = np.random.default_rng(0)
    arrays, resources = {}, []
    for split, count in (("train", 20), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        arrays[split] = images
        for name, array in ((f"{split}-images-idx3-ubyte.gz", images), (f"{split}-labels-idx1-ubyte.gz", labels)):
            (folder / name).write_bytes(idx(array))
            resources.append((name, hashlib.md5(idx(array)).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    return arrays


def test_mnist_through_torchvision_from_a_mirror(tmp_path, monkeypatch, served):
    folder, address, _ = served
    arrays = serve_mnist(folder, monkeypatch)
    archive = fetched(tmp_path, "mnist", mirror=address)
    assert len(archive.source.classes) == 10
    test_seven = f"test/{archive.source.classes[7]}/00007.pgm"
    assert np.array_equal(decode(archive.read(test_seven), 28, 1)[0][:, :, 0], arrays["t10k"][7])
    assert archive.placed()[0] == ["train"] * 20 + ["test"] * 10


def test_an_altered_download_is_refused(tmp_path, monkeypatch, served):
    folder, address, _ = served
    serve_mnist(folder, monkeypatch)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"data\.name = mnist: could not download from http://127"):
        fetched(tmp_path, "mnist", mirror=address)


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)


def test_a_folder_of_class_folders(tmp_path, capsys):
    own = tmp_path / "own"
    for name in ("dog/2.png", "dog/deeper/1.JPG", "cat/a b.jpeg", "cat/.hidden.png", ".trash/x/1.png"):
        photo(own / name)
    (own / "cat/notes.t\x1b[2Jxt").write_text("not an image")
    archive = fetched(tmp_path, "folder")
    assert r".t\x1b[2jxt" in capsys.readouterr().err  # does nothing in a terminal
    assert archive.source.classes == ["cat", "dog"]
    assert list(archive.members) == ["unsplit/cat/a b.jpeg", "unsplit/dog/2.png", "unsplit/dog/deeper/1.JPG"]
    assert archive.read("unsplit/dog/2.png") == (own / "dog/2.png").read_bytes()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, "there is no folder"),
        ([], "holds no images"),
        (["1.png", "cat/1.png"], "an image outside a class folder"),
        (["test/cat/1.png"], "no train folder"),
    ],
)
def test_an_unusable_folder_says_what_is_expected(tmp_path, names, said):
    if names is not None:
        (tmp_path / "own").mkdir()
    for name in names or ():
        photo(tmp_path / "own" / name)
    with pytest.raises(UserError, match=said) as caught:
        fetched(tmp_path, "folder")
    assert "own/CLASS/IMAGE" in str(caught.value)


def test_a_link_to_another_folder_is_refused(tmp_path):
    own = tmp_path / "own"
    photo(own / "cat/1.png")
    photo(tmp_path / "far/1.png")
    (own / "far").symlink_to(tmp_path / "far")
    with pytest.raises(UserError, match="own/far is a symbolic link, behind which DVC does not look"):
        fetched(tmp_path, "folder")


def test_unreadable_files_are_all_listed(tmp_path):
    photo(tmp_path / "own/cat/1.png")
    for name in ("a", "b"):
        (tmp_path / f"own/cat/{name}.png").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"2 images cannot be read.*\n.*a\.png: No such file.*\n.*b\.png: No such file"):
        fetched(tmp_path, "folder")


def test_a_name_that_is_not_text_is_refused(tmp_path):
    photo(tmp_path / "own/cat/1.png")
    Path(os.fsdecode(bytes(tmp_path / "own/cat") + b"/\xff.png")).write_bytes(b"x")
    with pytest.raises(UserError, match=r"\\udcff\.png': the name is not UTF-8; rename it"):
        fetched(tmp_path, "folder")


# the first is the discard port: nothing listens
@pytest.mark.parametrize("mirror", ["http://127.0.0.1:9", "http://127.0.0.1:x/", "http://a..b/"])
def test_no_network_or_no_address_says_what_to_do(tmp_path, mirror):
    with pytest.raises(UserError, match=r"check the network, set data\.mirror to the http.* data/own/CLASS/"):
        fetched(tmp_path, "mnist", mirror=mirror)


@pytest.mark.parametrize("mirror", ["mirror.example/mnist", "file:///tmp", "file://", "ftp://x/", "data:,x", "http://"])
def test_a_mirror_is_a_web_address(tmp_path, mirror):
    with pytest.raises(
        UserError, match=r"data\.mirror = .* is not allowed: expected text or null \(http:// or https://"
    ):
        load_params(PARAMS, [f"data.mirror={mirror}"])
