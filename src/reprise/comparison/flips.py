"""The images that only one of two models has right, by name and on a sheet to look at."""

import json
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
    """Return a PNG of these images, numbered, with both predictions; None if the images are not available."""
    ids, packed = (revision.out(f"{PROCESSED}/test_{part}") for part in ("ids.json", "images.npy"))
    if ids is None or packed is None or not shown:
        return None
    row_of = {name: row for row, name in enumerate(json.loads(ids.read_bytes()))}
    images = np.load(packed, mmap_mode="r", allow_pickle=False)
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    canvas = Image.new("RGB", (columns * (TILE + 8) + 8, rows * (TILE + CAPTION + 8) + 8), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for index, flip in enumerate(shown):
        if flip.id not in row_of:
            return None
        x, y = 8 + index % columns * (TILE + 8), 8 + index // columns * (TILE + CAPTION + 8)
        pixels = np.asarray(images[row_of[flip.id]])
        tile = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
        size = tile.width * max(1, TILE // tile.width) if tile.width <= TILE else TILE  # pixels stay square and sharp
        sharp = Image.Resampling.NEAREST if tile.width <= TILE else Image.Resampling.BOX
        canvas.paste(tile.resize((size, size), sharp), (x, y))
        was, now = (flip.base, flip.head) if fixed else (flip.label, flip.head)
        draw.text((x, y + TILE + 1), _fit(draw, font, f"{index + 1}: {was}"), "black", font)
        draw.text((x, y + TILE + 14), _fit(draw, font, f"-> {now}"), "#2a8a4a" if fixed else "#c0392b", font)
    content = BytesIO()
    canvas.quantize(256).save(content, "PNG", optimize=True)
    return content.getvalue()


def _fit(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, caption: str) -> str:
    """Return as much of a caption as fits below a tile; `?` for letters that the font lacks."""
    caption = caption.encode("latin-1", "replace").decode("latin-1")
    while draw.textlength(caption, font) > TILE:
        caption = caption[:-1]
    return caption
