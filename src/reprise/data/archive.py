"""The raw data set, whatever its source: one folder with `images.zip` and `source.json`.

Each member of the archive is an encoded image named `SPLIT/CLASS/FILE`, SPLIT being `train`, `val`, `test` or, where
the source has no splits of its own, `unsplit`. Members are stored uncompressed with a fixed date, so equal images give
equal bytes on every machine. DVC handles one large file 8 times faster than 10,000 small ones.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from reprise.errors import UserError

UNSPLIT = "unsplit"
WAY_OUT = "run `dvc repro download`, or `dvc repro --force download` if it was altered"


@dataclass(frozen=True)
class RawImage:
    """One encoded image: where it belongs, its class and its file name (unique within split and class)."""

    split: str
    class_name: str
    file_name: str
    encoded: bytes

    @property
    def member(self) -> str:
        """Name in the archive."""
        return f"{self.split}/{self.class_name}/{self.file_name}"


@dataclass(frozen=True)
class Source:
    """What the archive holds: the data set's name, its classes in label order, the number of images."""

    name: str
    classes: list[str]
    images: int


def write_archive(folder: Path, name: str, classes: Iterable[str], images: Iterable[RawImage]) -> Source:
    """Write `images.zip` and `source.json` into a new folder; class names must be free of slashes."""
    folder.mkdir()
    count = 0
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for image in images:
            if image.member in archive.NameToInfo:
                raise UserError(f"two images are called {image.member}; rename one")
            member = zipfile.ZipInfo(image.member)  # dated 1980-01-01
            member.external_attr = 0o644 << 16
            member.create_system = 3
            archive.writestr(member, image.encoded)
            count += 1
    source = Source(name, list(classes), count)
    (folder / "source.json").write_text(json.dumps(asdict(source), indent=2) + "\n", encoding="utf-8")
    return source


class RawArchive:
    """Random access to the images of a raw folder.

    Raises UserError when the folder is missing, incomplete or not what `write_archive` writes.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "images.zip"
        try:
            self.source = Source(**json.loads((folder / "source.json").read_text(encoding="utf-8")))
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: no raw data there; {WAY_OUT}") from None
        except (ValueError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(f"{folder}: not readable as raw data ({error}); {WAY_OUT}") from None
        self.members = self._zip.namelist()

    def read(self, member: str) -> bytes:
        """Return one image's encoded bytes. Raises UserError where the archive was altered."""
        try:
            return self._zip.read(member)
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{self.path}: altered at {member} ({error}); {WAY_OUT}") from None

    def placed(self) -> Iterator[tuple[str, str]]:
        """Yield split and class name of every member, in the archive's order."""
        for member in self.members:
            split, class_name, _ = member.split("/", 2)
            yield split, class_name

    def sha256(self) -> str:
        """Return the checksum of the archive."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
