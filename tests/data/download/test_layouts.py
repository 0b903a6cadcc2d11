"""Folders, zips and tars in every layout give the same raw archive; what is unsafe, damaged or unclear is refused."""

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.data.download import archives as unpack
from reprise.data.download.layouts import lay_out
from reprise.data.download.sources import download
from reprise.data.formats.raw import RawArchive
from reprise.runtime.errors import UserError
from tests.conftest import data_params


def pack_tar(tree, path, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in tree.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pack_zip(tree, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in tree.items():
            archive.writestr(name, content)
    return path


def pack(tree, folder, kind):
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "zip":
        return pack_zip(tree, folder / "own.zip")
    return pack_tar(tree, folder / f"own.{kind}", "w:gz" if kind == "tar.gz" else "w")


def unfold(tree, folder):
    folder.mkdir()
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


PARAMS = data_params()  # read once


def brought(path, place, **options):
    place.mkdir(parents=True, exist_ok=True)
    changes = {"name": "folder" if path.is_dir() else "archive", "path": str(path), **options}
    download(PARAMS.model_copy(update=changes), place / "raw", place / "downloads")
    return RawArchive(place / "raw")


def refusal(path, place, **options):
    """Return the one line with which it is refused; nothing may be left but what `publishing` clears."""
    with pytest.raises(UserError) as caught:
        brought(path, place, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not [left for left in place.iterdir() if left.name != "raw"]
    return message


CHARACTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\:") | st.just("\n")
NAMES = st.text(CHARACTERS, min_size=1, max_size=8).map(lambda name: f"x{name}")
IMAGES = st.tuples(st.sampled_from(["cat", "größe", "a b"]), NAMES, st.sampled_from([".jpg", ".PNG", "/deeper.gif"]))
TREES = st.tuples(
    st.sampled_from(["", "top folder/", "two/tops/"]),
    st.sampled_from([("",), ("train/", "Validation/", "test/")]),
    st.dictionaries(IMAGES, st.binary(max_size=40), min_size=1, max_size=5),
)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(TREES)
def test_a_folder_a_zip_and_a_tar_of_it_give_the_same_raw_archive(drawn):
    top, splits, images = drawn
    tree = {
        f"{top}{split}{'/'.join(parts[:2])}{parts[2]}": split.encode() + content
        for split in splits
        for parts, content in [*images.items(), (("dog", "1", ".bmp"), b"dog"), (("cat", "1", ".bmp"), b"cat")]
    }
    tree |= {"__MACOSX/cat/._1.jpg": b"x", f"{top}.DS_Store": b"x", f"{top}readme.txt": b"x"}
    with TemporaryDirectory() as folder:
        path = Path(folder)
        places = [unfold(tree, path / "own")]
        places += [pack(dict(reversed(tree.items())), path / f"of {kind}", kind) for kind in ("zip", "tar", "tar.gz")]
        archives = [brought(place, path / f"from {number}") for number, place in enumerate(places)]
        first = archives[0]
        assert {archive.path.read_bytes() for archive in archives} == {first.path.read_bytes()}
        assert all(archive.source.classes == first.source.classes for archive in archives)
        assert first.source.images == len(tree) - 3
        assert first.read(f"{'train' if len(splits) > 1 else 'unsplit'}/dog/1.bmp").endswith(b"dog")


CSV = "File Name;Class;Split;patient\nb.png;dog;train;p 1\nsub/a.png;cat;VALID;p2\n1.png;dog;test; p1 \n"
CSV += "c.png;cat;train;\n"
APART, COMPOSED = "cafe\u0301", "caf\u00e9"


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_a_csv_places_the_images_and_keeps_its_other_columns(tmp_path, kind, capsys):
    tree = {"set/any.csv": f"\ufeff{CSV}".encode(), "set/b.png": b"b", "set/sub/a.png": b"a", "set/deep/1.png": b"1"}
    tree |= {"set/c.png": b"c", "set/unnamed.png": b"?"}
    path = unfold(tree, tmp_path / "own") if kind == "folder" else pack(tree, tmp_path, kind)
    archive = brought(path, tmp_path / "out")
    assert archive.columns == {
        "train/dog/b.png": {"patient": "p 1"},
        "train/cat/c.png": {"patient": ""},
        "test/dog/deep/1.png": {"patient": "p1"},
        "val/cat/sub/a.png": {"patient": "p2"},
    }
    assert archive.columns.keys() == archive.members.keys()
    assert archive.read("test/dog/deep/1.png") == b"1"
    assert f"the CSV of {path} leaves 1 images out" in capsys.readouterr().err
    (tmp_path / "out/raw/columns.json").write_text("{}")
    with pytest.raises(UserError, match=r"columns\.json: altered since it was written.*dvc repro --force download"):
        _ = RawArchive(tmp_path / "out/raw").columns


def test_without_more_columns_there_is_no_file_for_them(tmp_path):
    tree = {"1.png": b"1", "2.png": b"2", "labels.csv": b"path,target\n1.png,a\n./2.png, b\n"}
    archive = brought(unfold(tree, tmp_path / "own"), tmp_path / "out")
    assert list(archive.members) == ["unsplit/a/1.png", "unsplit/b/2.png"]
    assert archive.columns == {}
    assert sorted(path.name for path in archive.folder.iterdir()) == ["images.zip", "source.json"]


@pytest.mark.parametrize(("named", "called"), [(APART, COMPOSED), (COMPOSED, APART)])
def test_a_csv_finds_names_whose_accents_are_written_another_way(named, called):
    table = f"image,label\n{named}.png,a\nx/{named}2.png,b\n".encode()
    names = [f"{called}.png", f"x/{called}2.png", "labels.csv"]
    assert sorted(image.name for image in lay_out(names, lambda name, most: table, "own")[0]) == sorted(names[:2])


def test_of_two_names_that_differ_only_in_how_accents_are_written_the_csv_gets_the_one_it_spells():
    table = f"image,label\n{COMPOSED}.png,a\n{APART}.png,b\n".encode()
    placed = lay_out([f"{APART}.png", f"{COMPOSED}.png", "labels.csv"], lambda name, most: table, "own")[0]
    assert {image.name: image.class_name for image in placed} == {f"{COMPOSED}.png": "a", f"{APART}.png": "b"}


TABLES = {
    "image,label\n1.png,a\ngone.png,b": "labels.csv, line 3: gone.png is not among the images; correct it",
    "image,label\n1.png,a\n\n1.png,a": "labels.csv, line 4: 1.png stands there already (",
    "image,label\n1.png,a\nsame.png,b": "labels.csv, line 3: same.png names 2 images; write the path",
    "image,color\n1.png,a": "no column for the label (label, labels, class, classname, target, category); its "
    "columns: image, color; rename one, or remove the CSV to use class folders",
    "name,label\n1.png,a": "no column for the file (filename,",
    "image,label,class\n1.png,a,b": "two columns for the label, label and class; rename one",
    "image,label,x,x\n1.png,a,1,2": "two columns are called x",
    "image,label\n1.png": "labels.csv, line 2: 1 values, but the header has 2 columns",
    "image,label\n1.png,a/b": "line 2: the label 'a/b' cannot name a class",
    "image,label\n1.png, ": "line 2: the label '' cannot name a class",
    "image,label,split\n1.png,a,hold": "line 2: the split 'hold' is none of train, val",
    "image,label,split\n1.png,a,train\ng/same.png,a,": "some lines have a split and some have none",
    "image,label,split\n1.png,a,test": "no line has the split train",
    "image,label,split\n1.png,a,train\ng/same.png,b,test": "class b is in test but not in train",
    "image,label\n1.png,a\ng/same.png,A": "the classes A and a differ only in case",
    'image,label\n"1.png,a': "line 2: not readable as CSV (",
    "image,label": "no line but the header",
    "": "its columns: none",
    "image,label\n1.png,\udcff": "not UTF-8 text; save it as `CSV UTF-8`",
}


@pytest.mark.parametrize(("table", "said"), TABLES.items(), ids=range(len(TABLES)))
def test_a_csv_with_a_mistake_is_refused_with_its_line(table, said):
    content = table.encode("utf-8", "surrogateescape")
    with pytest.raises(UserError) as caught:
        lay_out(["1.png", "g/same.png", "h/same.png", "labels.csv"], lambda name, most: content, "own")
    assert str(caught.value).startswith("own") and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["Cat/1.png", "cat/2.png"],
            "own: the classes Cat and cat differ only in case, accents, blanks, or as 1 and 1.0; rename one",
        ),
        ([f"{APART}/1.png", f"{COMPOSED.upper()}/2.png"], "differ only in case"),
        (["train/a/1.png", "val/a/1.png", "Valid/a/1.png"], "own: the folders Valid and val are the same split;"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "class c is in test but not in train"),
        (["x\ny/test/a/1.png", "x\ny/val/a/1.png"], "'own/x\\ny' has split folders but no train folder"),
        (["a/1.png", "b/2.png", "one.csv", "two.csv"], "own has 2 CSV files at the top (one.csv, two.csv); keep one"),
        (["readme", "inner.tar.gz"], "own holds no images (JPEG, PNG"),
        (["inner.tar.gz"], "but an archive, inner.tar.gz: unpack the outer one and set data.path to the inner one"),
    ],
)
def test_an_unclear_tree_is_refused(names, said):
    with pytest.raises(UserError) as caught:
        lay_out(names, lambda name, most: b"BZh9" if "inner" in name else b"", "own")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


IMAGE = {"cat/1.png": b"1" * 100, "dog/1.png": b"2" * 100}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "cat/../../evil.png", "C:\\evil.png", "../evil.txt"])
def test_a_member_that_leads_outside_is_refused(tmp_path, kind, name):
    said = refusal(pack(IMAGE | {name: b"x"}, tmp_path, kind), tmp_path / "out")
    assert said.startswith(f"{tmp_path}/own.{kind}: the member {name} leads outside the archive")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_a_device_is_refused(tmp_path, kind):
    path = pack_tar(IMAGE, tmp_path / "own.tar", "w")
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("cat/2.png")
        member.type, member.linkname = kind, "cat/1.png"
        tar.addfile(member)
    is_link = kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)
    said = "is a link; pack the file itself" if is_link else "is neither a file nor a"
    assert f"own.tar: cat/2.png {said}" in refusal(path, tmp_path / "out")


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = pack_zip(IMAGE, tmp_path / "own.zip")
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo("cat/2.png")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "1.png")
    assert "cat/2.png is a link" in refusal(path, tmp_path / "out")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = pack_zip(IMAGE, tmp_path / "own.zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert "own.zip: cat/1.png is encrypted; pack it again without a password" in refusal(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_two_members_of_one_name_and_giants_are_refused(tmp_path, kind, monkeypatch):
    doubled = pack(IMAGE | {"./cat/1.png": b"x"}, tmp_path / "doubled", kind)
    assert "two members are called cat/1.png" in refusal(doubled, tmp_path / "out")
    for name, limit in (("cat/1.png", "MOST_BYTES"), ("labels.csv", "MOST_CSV_BYTES")):
        giant = pack({name: bytes(100)}, tmp_path / "giant", kind)
        with monkeypatch.context() as patched:
            patched.setattr(unpack, limit, 99)
            assert f"{name} unpacks to 100 bytes, more than 99" in refusal(giant, tmp_path / "out2")


def test_a_zip_that_holds_more_or_less_than_it_declares_is_refused(tmp_path):
    for number, declared in enumerate((50, 150)):
        path = pack_zip(IMAGE, tmp_path / f"{number}.zip")
        content = bytearray(path.read_bytes())
        at = content.index(b"PK\1\2") + 24
        content[at : at + 4] = declared.to_bytes(4, "little")
        path.write_bytes(content)
        assert f"{number}.zip, cat/1.png: cut short or damaged (" in refusal(path, tmp_path / f"out{number}")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_altered_anywhere_is_read_or_refused_in_one_line(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "own.zip", "w", method) as archive:
        for name in ("cat/1.png", "dog/1"):
            archive.writestr(name, b"\x89PNG\r\n\x1a\n" * 20)
    content = (tmp_path / "own.zip").read_bytes()
    for place in range(0, len(content), 3):
        altered = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
        (tmp_path / "own.zip").write_bytes(altered)
        try:
            brought(tmp_path / "own.zip", tmp_path / f"out{place}")
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_cut_short_or_altered_anywhere_is_noticed(tmp_path, kind):
    whole = pack(IMAGE, tmp_path, kind)
    content = whole.read_bytes()
    full = brought(whole, tmp_path / "whole").path.read_bytes()
    end = len(content.rstrip(b"\0")) if kind == "tar" else len(content)  # a tar ends in a block of zeros or more
    for cut in sorted({*range(0, end, 29), *range(0, end, 512), end - 1}):
        whole.write_bytes(content[:cut])
        said = refusal(whole, tmp_path / f"cut {cut}")
        assert "cut short or damaged" in said or "an empty file" in said or "no archive" in said or "own.tar" in said
    for place in range(0, len(content), 37):  # whatever comes out: an image archive, or one line
        whole.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            read = brought(whole, tmp_path / f"bit {place}").path.read_bytes()
            assert kind != "tar.gz" or read == full  # in a zip a name may have changed, a tar does not sum its data
        except UserError as error:
            assert "\n" not in str(error)


def test_a_tar_header_of_absurd_size_neither_loops_nor_fills_memory(tmp_path):
    for number, (kind, size) in enumerate(((tarfile.XHDTYPE, 1 << 33), (tarfile.REGTYPE, -1024))):
        member = tarfile.TarInfo("cat/2.png")
        member.type, member.size = kind, size
        header = member.tobuf(tarfile.GNU_FORMAT)
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("readme"))
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(gzip.compress(plain.getvalue()[:512] + header + bytes(2048)))
        assert "absurd size in a header" in refusal(path, tmp_path / f"out{number}")


def zip_of_one_body(path, members, size):
    """Write a zip whose members all have the same packed bytes of `size` zeros."""
    pack_zip({"a/1.png": bytes(size)}, path)
    content = path.read_bytes()
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entries = b"".join(content[start:end].replace(b"a/1.png", b"%c/1.png" % (97 + n)) for n in range(members))
    places = struct.pack("<HHII", members, members, len(entries), start)
    path.write_bytes(content[:start] + entries + content[end : end + 8] + places + b"\0\0")
    return path


def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "FREE_BYTES", 1 << 20)
    zeros = bytes(1 << 20)
    paths = [zip_of_one_body(tmp_path / "overlapping.zip", 20, 1 << 20)]
    paths.append(pack({f"a/{n}.png": zeros for n in range(3)}, tmp_path / "images", "zip"))
    paths.append(pack({f"a/{n}.png": zeros for n in range(3)}, tmp_path / "images", "tar.gz"))
    paths.append(pack({f"a/{n}.bin": zeros for n in range(3)}, tmp_path / "others", "tar.gz"))
    tail = pack({"a/1.png": b"1", "b/1.png": b"2"}, tmp_path / "tail", "tar.gz")
    tail.write_bytes(tail.read_bytes() + gzip.compress(zeros * 3))
    for number, path in enumerate([*paths, tail]):
        said = refusal(path, tmp_path / f"out{number}")
        assert said.startswith(f"{path}: its {path.stat().st_size:,} bytes unpack to ")
        assert said.endswith("or more: a decompression bomb? If it is none, unpack it and set data.name: folder")
    kept = pack({f"{name}/1.png": os.urandom(1 << 20) for name in "abc"}, tmp_path / "kept", "tar.gz")
    assert brought(kept, tmp_path / "ok").source.images == 3  # as large, but of images


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_thousands_of_headers_for_one_member_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("p")
    member.type, member.size = kind, 512
    header = member.tobuf(tarfile.USTAR_FORMAT) + b"12 foo=bar1\n".ljust(512, b"\0")
    path = tmp_path / "own.tar"
    path.write_bytes(header * 3000 + tarfile.TarInfo("a/1.png").tobuf() + bytes(1024))
    assert "own.tar: cut short or damaged (maximum recursion depth exceeded" in refusal(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_what_a_file_is_follows_from_its_content(tmp_path, kind, capsys):
    jpeg, png, ppm = b"\xff\xd8\xff" + bytes(2000), b"\x89PNG\r\n\x1a\n" + bytes(9), b"P6 1 1 255\nabc"
    tree = {
        "bird/1.jpe": jpeg,
        "emu/0001": jpeg,
        "cat/1.pnm": ppm,
        "cat/2.apng": png,
        "cat/3.dat": png,
        "cat/4.heic": jpeg,
    }
    others = {
        "cat/x.mp4": b"\0\0\0\x20ftypisom",
        "cat/y.mp4": b"",
        "dog/labels.txt": b"\xff\xd8\xff",
        "cat/1.png~": png,
    }
    others |= {"cat/2.png_original": png, "README": b"read me", "emu/x.pdf": b"%PDF-"}
    left_behind = {
        "cat/@eaDir/1.jpg/SYNOFILE_THUMB_M.png": png,
        "$RECYCLE.BIN/S-1-5/$R1.png": png,
        "#recycle/1.png": png,
    }
    left_behind |= {".Trash-1000/files/1.png": png, ".AppleDouble/1.png": png, "__MACOSX/cat/._1.png": png}
    left_behind |= {"cat/Thumbs.db": png, "System Volume Information/1.png": png, "@Recycle/1.png": png}
    everything = tree | others | left_behind
    path = unfold(everything, tmp_path / "own") if kind == "folder" else pack(everything, tmp_path, kind)
    archive = brought(path, tmp_path / "out")
    assert {member: archive.read(member) for member in archive.members} == {
        f"unsplit/{name}": content for name, content in tree.items()
    }
    assert capsys.readouterr().err == (
        f"download: no images, left out of {path}: 2 .mp4 (cat/x.mp4), 1 .pdf (emu/x.pdf), 1 .png_original "
        "(cat/2.png_original), 1 .png~ (cat/1.png~), 1 .txt (dog/labels.txt), 1 without suffix (README)\n"
    )


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("1", b"\0\0\0\x20ftypheic", "HEIC"),
        ("1.dat", bytes(128) + b"DICM", "DICOM"),
        ("1.cr2", b"II*\0", ".cr2"),
        ("1.NEF", b"MM\0*", ".nef"),
        ("1.HEIC", b"x", ".heic"),
        ("1.svg", b"", ".svg"),
        ("1.j2k", b"\xff\x4f\xff\x51", "JPEG 2000"),
    ],
)
def test_images_of_other_kinds_are_named_and_not_lost(tmp_path, name, content, kind):
    path = unfold({"a/0.png": b"", f"b/{name}": content}, tmp_path / "own")
    said = refusal(path, tmp_path / "out")
    assert f"not read: {path}/b/{name} ({kind}); convert them" in said


@pytest.mark.parametrize("name", ["a/1.png", "a/1"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, name):
    path = unfold({"a/0.png": b"", "b/0.png": b""}, tmp_path / "own")
    os.mkfifo(path / name)  # reading it would wait for ever
    if name.endswith(".png"):
        with pytest.raises(UserError, match=r"1 images cannot be read.*\n.*a/1\.png: not a file"):
            brought(path, tmp_path / "out")
    else:
        assert brought(path, tmp_path / "out").source.images == 2


def test_a_folder_that_cannot_be_listed_ends_the_run(tmp_path, monkeypatch):
    path, listed = unfold({"a/0.png": b"", "b/0.png": b""}, tmp_path / "own"), os.scandir

    def scandir(folder):
        if str(folder).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="own/b"):
        brought(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n <!DOCTYPE html><html>Log in</html>", "an HTML page, not an archive"),
        (b"7z\xbc\xaf\x27\x1c", 'no archive (it begins with b"7z'),
        (b"", "an empty file"),
        (gzip.compress(b"not a tar", mtime=0), "cut short or damaged"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path, content, said):
    (tmp_path / "own.zip").write_bytes(content)
    assert said in refusal(tmp_path / "own.zip", tmp_path / "out").replace("'", '"')


def test_an_archive_of_another_checksum_or_none_at_all_is_refused(tmp_path):
    path = pack_zip(IMAGE, tmp_path / "own.zip")
    assert f"{path}: its SHA-256 is " in refusal(path, tmp_path / "out", sha256="0" * 64)
    (tmp_path / "folder").mkdir()
    for own, there in ((tmp_path / "gone.zip", "does not exist"), (tmp_path / "folder", "is a folder, for which")):
        with pytest.raises(UserError, match=f"no archive {own} \\(it {there}"):
            download(data_params(name="archive", path=str(own)), tmp_path / "raw", tmp_path / "downloads")


@pytest.mark.parametrize(("plain", "written"), [("kat__", "größe".encode("cp437")), ("kat", "日".encode())])
def test_names_of_a_zip_without_the_utf_8_flag_are_read_as_they_were_meant(tmp_path, plain, written):
    path = pack_zip({f"{plain}/1.png": b"1", "dog/1.png": b"2"}, tmp_path / "own.zip")
    path.write_bytes(path.read_bytes().replace(plain.encode(), written))
    assert brought(path, tmp_path / "out").source.classes[1] in ("größe", "日")
