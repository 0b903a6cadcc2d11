"""The images that only one of two models has right, by name and on a sheet to look at."""

import json
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from reprise.comparison.pictures import BLANK, GONE, NEW, document, label
from reprise.comparison.verdict import Answers
from reprise.repo.revisions import PROCESSED, Revision

SHOWN = 24
TILE, CAPTION, COLUMNS = 96, 30, 8  # pixels, pixels, tiles


@dataclass(frozen=True)
class Flip:
    """One image: its name, its label, the class that each model predicted, and head's confidence."""

    id: str
    label: str
    base: str
    head: str
    confidence: float


def flips(answers: Answers, ids: list[str], fixed: bool) -> list[Flip]:
    """Return the images that only base has right or, if fixed, only head; those first of which head is surest.

    ids: the names of the images in head (N).
    """
    (base, head), (before, after) = answers.right, answers.predicted
    found = [
        Flip(ids[row], answers.labels[row], before[row], after[row], float(answers.confidence[1, row]))
        for row in np.flatnonzero(head & ~base if fixed else base & ~head).tolist()
    ]
    return sorted(found, key=lambda flip: (-np.nan_to_num(flip.confidence), flip.id))


def sheet(revision: Revision, shown: list[Flip], fixed: bool) -> bytes | None:
    """Return an SVG of these images, numbered, with both predictions; None if the images are not available."""
    ids, packed = (revision.out(f"{PROCESSED}/test_{part}") for part in ("ids.json", "images.npy"))
    row_of = {name: row for row, name in enumerate(json.loads(ids.read_bytes()))} if ids else {}
    if packed is None or not shown or any(flip.id not in row_of for flip in shown):
        return None
    images = np.load(packed, mmap_mode="r", allow_pickle=False)
    tiles = [(images[row_of[flip.id]], flip.base if fixed else flip.label, flip.head) for flip in shown]
    return contact_sheet(tiles, GONE if fixed else NEW)


def contact_sheet(tiles: list[tuple[np.ndarray, str, str]], color: str = NEW) -> bytes:
    """Return an SVG of images, numbered, each uint8 (H, W, C) with its first line and its second, which has the color.

    Captions are in the fonts of the reader, which have all scripts. Images smaller than a tile are enlarged by a whole
    number.
    """
    columns, parts = min(COLUMNS, len(tiles)), []
    for index, (pixels, first, second) in enumerate(tiles):
        x, y = 8 + index % columns * (TILE + 8), 8 + index // columns * (TILE + CAPTION + 8)
        tile = Image.fromarray(np.asarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
        tile.thumbnail((TILE, TILE), Image.Resampling.BOX)  # never larger
        size, content = tile.width * (TILE // tile.width), BytesIO()
        tile.save(content, "PNG", optimize=True)
        link = f"data:image/png;base64,{b64encode(content.getvalue()).decode()}"
        place = f"x='{x}' y='{y}' width='{size}' height='{size}'"
        parts += [
            f"<image {place} style='image-rendering:pixelated' href='{link}'/><rect {place} {BLANK}/>",
            f"<svg x='{x}' y='{y + TILE}' width='{TILE}' height='{CAPTION}'>",  # cuts a long caption off
            label(0, 13, f"{index + 1}: {first}"),
            label(0, 26, f"\u2192 {second}", extra=f"fill='{color}'") + "</svg>",
        ]
    rows = -(-len(tiles) // columns)
    return document(columns * (TILE + 8) + 8, rows * (TILE + CAPTION + 8) + 8, parts).encode()
