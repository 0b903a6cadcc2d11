"""What a person hands in, as a stream of named images, decoded by the pipeline's own `decode`.

An image is a path, an open file, the bytes of a file, an image of Pillow's, or an array, uint8 (H, W) or (H, W, C),
with C = 1, 2 (gray and opacity), 3 or 4 (RGB and opacity). A path may also lead to a folder, an archive, or a CSV that
names images.
"""

import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reprise.data.download.archives import MOST_BYTES, archive_files
from reprise.data.download.csv import read_file_names
from reprise.data.download.layouts import find_images
from reprise.data.download.sources import folder_files
from reprise.data.formats.images import HEAD, kind_of
from reprise.data.prepare.decode import ORIENTATION, BadImageError, decode
from reprise.data.prepare.workers import Map, spread
from reprise.model.artifact import Preprocessing
from reprise.runtime.errors import UserError, brief, reason

Named = tuple[str, Any]  # an image's name and what it is; an exception, if it cannot be read
Decoded = tuple[str, np.ndarray | str]  # its name and its pixels, or why it has none
TASK_IMAGES, TASK_BYTES = 64, 1 << 20  # of a worker's task, at most; of bytes, one image may have more
FIRST_TASKS = 128  # are decoded in this process, 8,192 images: for fewer, others are not worth their start of a second
SHAPES = ((), (1,), (2,), (3,), (4,))  # of one pixel of an array
PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")  # of Pillow, that a PNG keeps as they are


def named_images(images: Any) -> Iterator[Named]:
    """Yield what was handed in, one image at a time, in the order given; folders and archives by their sorted names.

    Names of images in a folder, an archive or a CSV are relative to it; in a list, its own path stands before them. An
    image without a file has its place in the list, from 0, as its name. Raises UserError for a folder, an archive or a
    CSV that cannot be read or has no images.
    """
    of_one = isinstance(images, str | bytes | bytearray | memoryview | Mapping) or hasattr(images, "read")
    several = not of_one and isinstance(images, Iterable) and getattr(images, "ndim", 4) == 4
    for place, image in enumerate(images if several else [images]):
        if isinstance(image, Mapping) or (isinstance(image, str) and not image):
            raise UserError(f"{brief(repr(image))}: neither a path nor an image; give one or a list of them")
        if isinstance(image, str | Path):
            yield from _of_path(Path(image), f"{image}/" if several else "")
        elif hasattr(image, "read"):
            yield str(place), _read(partial(image.read, MOST_BYTES))
        else:
            yield str(place), bytes(image) if isinstance(image, bytearray | memoryview) else image


def _of_path(path: Path, before: str) -> Iterator[Named]:
    head = b""
    if path.is_file():
        with suppress(OSError), path.open("rb") as file:  # it gets its reason as an image
            head = file.read(HEAD)
    if path.is_dir():
        if not any(path.iterdir()):
            raise UserError(f"{path} is an empty folder; look whether it is the right one")
        files = folder_files(path)
        yield from ((before + name, path / name) for name in find_images(files.names, files.read, files.tree))
    elif head and path.suffix.lower() == ".csv":
        yield from ((before + name, path.parent / name) for name in read_file_names(path.read_bytes(), str(path)))
    elif head and (kind_of(head) == "archive" or path.suffix.lower() == ".tar"):
        with tempfile.TemporaryDirectory() as scratch, archive_files(path, str(path), Path(scratch)) as files:
            for name in find_images(files.names, files.read, files.tree):
                yield before + name, _read(partial(files.read, name, -1))
    else:
        yield str(path), path


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (UserError, OSError, ValueError) as error:  # the others may be whole
        return error


def decoded(images: Iterable[Named], preprocessing: Preprocessing, workers: int) -> Iterator[Decoded]:
    """Yield the name of each image with its pixels, uint8 (image_size, image_size, channels), or why it has none.

    workers: processes that decode, see `spread`; they start where there are many images. A few tasks are ahead of what
    is asked for, and no more than that is in memory. Raises what `images` raises.
    """
    tasks, decode = _tasks(images), partial(decode_task, preprocessing)
    yield from chain.from_iterable(map(decode, islice(tasks, FIRST_TASKS if workers > 1 else None)))
    if following := next(tasks, None):
        with spread(workers) as map_tasks:
            yield from chain.from_iterable(_ahead(map_tasks, decode, chain([following], tasks), 2 * workers))


def _ahead(map_tasks: Map, function: Callable[[Any], Any], tasks: Iterator[Any], most: int) -> Iterator[Any]:
    """Map the function over the tasks in their order; while a result is used, up to `most` tasks beyond it have begun.

    `map_tasks` begins them when it is called, as that of an executor does.
    """
    begun: Iterator[Any] = iter(())
    while group := list(islice(tasks, most)):
        following = map_tasks(function, group)
        yield from begun
        begun = following
    yield from begun


def _tasks(images: Iterable[Named]) -> Iterator[list[Named]]:
    task: list[Named] = []
    size = 0
    for name, content in images:
        task.append((name, content))
        with suppress(OSError, ValueError, TypeError):  # what has no size is no image, or one of Pillow's
            size += content.stat().st_size if isinstance(content, Path) else getattr(content, "nbytes", len(content))
        if len(task) == TASK_IMAGES or size >= TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def decode_task(preprocessing: Preprocessing, task: list[Named]) -> list[Decoded]:
    """Return what `decoded` yields, for a few images."""
    results: list[Decoded] = []
    for name, content in task:
        try:
            results.append((name, pixels(content, preprocessing)))
        except (BadImageError, UserError) as error:
            results.append((name, str(error)))
        except (OSError, ValueError) as error:  # ValueError: a path with a zero in it
            results.append((name, getattr(error, "strerror", None) or reason(error)))
    return results


def pixels(content: Any, preprocessing: Preprocessing) -> np.ndarray:
    """Return the pixels of one image, uint8 (image_size, image_size, channels), as training and evaluation had them.

    content: a path, bytes, an image of Pillow's or an array. Raises BadImageError; OSError for a path.
    """
    if isinstance(content, Exception):
        raise content
    if isinstance(content, np.ndarray):
        shape = content.shape
        if content.dtype != np.uint8 or not content.size or shape[2:] not in SHAPES or len(shape) < 2:
            raise BadImageError(f"an array {content.dtype} {shape}; uint8 (H, W) or (H, W, 1 to 4) is needed")
        content = Image.fromarray(content[:, :, 0] if shape[2:] == (1,) else content)
    if isinstance(content, Path):
        status = content.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe may never end
            raise BadImageError("a folder or a device, not a file")
        if status.st_size > MOST_BYTES:
            raise BadImageError(f"a file of more than {MOST_BYTES >> 20} MiB")
        content = content.read_bytes()
    elif isinstance(content, Image.Image):
        content = _encoded(content)
    if not isinstance(content, bytes):
        raise BadImageError(f"{type(content).__name__}: a path, bytes, an image of Pillow's or an array is needed")
    kept = preprocessing
    return decode(content, kept.image_size, kept.channels, kept.resize, kept.depth or 16).pixels


def _encoded(image: Image.Image) -> bytes:
    """Return an image of Pillow's as a file with the same pixels, transparency and orientation."""
    if image.format == "TIFF" and image.mode.startswith("I"):  # whose white may be 0, which Pillow does not tell
        raise BadImageError("an opened TIFF of 16 bits; give its path or its bytes")
    file, exif = BytesIO(), Image.Exif()
    try:
        image.load()  # which turns a TIFF upright
        exif[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
        image.save(file, "PNG" if image.mode in PNG_MODES else "TIFF", exif=exif)
    except Exception as error:  # opened from bytes that are damaged, or of a mode that no file has
        raise BadImageError(reason(error)) from None
    return file.getvalue()
