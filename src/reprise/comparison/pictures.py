"""The pictures of a comparison as SVG, which any browser shows without a network."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from reprise.comparison.changes import PartChange
from reprise.comparison.verdict import LEVEL
from reprise.evaluation.calibration import Calibration
from reprise.runtime.markup import HIDDEN

BASE, HEAD, GONE, NEW = "#8a8a8a", "#0b67b2", "#2a8a4a", "#c0392b"
FONT = "font-family='sans-serif' font-size='12'"
BLANK = "fill='none' stroke='#ccc'"
Point = tuple[float, float]


def document(width: int, height: int, parts: Sequence[str]) -> str:
    """Return an SVG of these parts, by its size in pixels."""
    size = f"width='{width}' height='{height}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} viewBox='0 0 {width} {height}' {FONT}>"
    return "\n".join([head, f"<rect {size} fill='white'/>", *parts, "</svg>\n"])


def label(x: float, y: float, content: object, anchor: str = "start", extra: str = "") -> str:
    """Return a text at a place in pixels, escaped. extra: further attributes."""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {extra}>{escaped(content)}</text>"


def escaped(content: object) -> str:
    """Return a value as text within SVG."""
    return escape(HIDDEN.sub("?", str(content)))


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "\u2026"


def _legend(x: float, y: float) -> list[str]:
    parts = []
    for left, color, name in ((x, BASE, "base"), (x + 56, HEAD, "head")):
        parts.append(f"<rect x='{left:.1f}' y='{y - 9:.1f}' width='10' height='10' fill='{color}'/>")
        parts.append(label(left + 14, y, name))
    return parts


class Axes:
    """A frame with the range of each axis at its ends, and the map from values to pixels.

    left, top, size: in pixels; x, y: the lowest and the highest value of each axis.
    """

    def __init__(self, left: float, top: float, size: Point, x: Point, y: Point, title: str) -> None:
        self.left, self.top, (self.width, self.height), self.x, self.y = left, top, size, x, y
        self.title = title

    def place(self, point: Point) -> Point:
        """Return the place of a point in pixels; a y out of range is drawn at the edge."""
        across = (point[0] - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (point[1] - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return self.left + self.width * across, self.top + self.height * (1 - min(max(up, 0), 1))

    def frame(self, across: bool = True) -> list[str]:
        """Return frame, title and the range of the y axis and, if `across`, of the x axis."""
        bottom = self.top + self.height
        parts = [
            f"<rect x='{self.left}' y='{self.top}' width='{self.width}' height='{self.height}' {BLANK}/>",
            label(self.left, self.top - 8, self.title, extra="font-weight='bold'"),
            label(self.left - 6, self.top + 10, f"{self.y[1]:.3g}", "end"),
            label(self.left - 6, bottom, f"{self.y[0]:.3g}", "end"),
        ]
        if across:
            parts.append(label(self.left, bottom + 16, f"{self.x[0]:.3g}"))
            parts.append(label(self.left + self.width, bottom + 16, f"{self.x[1]:.3g}", "end"))
        return parts

    def line(self, points: Sequence[Point], color: str, extra: str = "") -> str:
        """Return a line through the points, without those whose y is not finite."""
        placed = [self.place(point) for point in points if math.isfinite(point[1])]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        return f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='1.8' {extra}/>"


def curves(base: dict[str, list[float]], head: dict[str, list[float]]) -> str:
    """Draw loss and accuracy over the epochs of both runs; training dashed."""
    parts, left = [], 60.0
    for quantity in ("loss", "accuracy"):
        series = [
            (run.get("epoch", []), run[name], color, "stroke-dasharray='4 3'" if name.startswith("train") else "")
            for run, color in ((base, BASE), (head, HEAD))
            for name in (f"train_{quantity}", f"val_{quantity}")
            if name in run
        ]
        values = [value for _, ys, _, _ in series for value in ys if math.isfinite(value)]
        epochs = [epoch for xs, _, _, _ in series for epoch in xs]
        if values and epochs:
            low = 0.0 if quantity == "loss" else min(values)
            axes = Axes(left, 30, (280, 180), (min(epochs), max(epochs)), (low, max(values)), f"{quantity} by epoch")
            parts += axes.frame()
            parts += [axes.line(list(zip(xs, ys, strict=False)), color, dash) for xs, ys, color, dash in series]
        left += 360
    return document(740, 270, [*parts, *_legend(60, 256), label(200, 256, "dashed: training, solid: validation")])


def class_bars(changes: Sequence[PartChange]) -> str:
    """Draw the recall of each class for both models, in the order given."""
    parts = [
        label(180, 20, "recall by class", extra="font-weight='bold'"),
        *_legend(300, 20),
        label(432, 20, f"* p \u2264 {LEVEL} (Holm)"),
    ]
    for row, change in enumerate(changes):
        top = 34 + row * 24
        parts.append(label(172, top + 13, _short(change.name), "end"))
        for offset, right, color in ((0, change.base_right, BASE), (9, change.head_right, HEAD)):
            width = 360 * right / change.images
            parts.append(f"<rect x='180' y='{top + offset}' width='{width:.1f}' height='8' fill='{color}'/>")
        parts.append(label(548, top + 13, f"{change.difference:+.3f}" + (" *" if change.p <= LEVEL else "")))
    return document(620, 44 + 24 * len(changes), parts)


def reliability(base: Calibration, head: Calibration) -> str:
    """Draw accuracy over confidence of both models; on the diagonal a model is as sure as it is right."""
    axes = Axes(60, 30, (280, 280), (0, 1), (0, 1), "accuracy by confidence")
    parts = [*axes.frame(), axes.line([(0, 0), (1, 1)], "#ccc", "stroke-dasharray='4 3'")]
    for found, color in ((base, BASE), (head, HEAD)):
        parts.append(axes.line([(each.confidence, each.accuracy) for each in found.bins], color))
        most = max((each.images for each in found.bins), default=1)
        for each in found.bins:
            x, y = axes.place((each.confidence, each.accuracy))
            radius = 2 + 4 * (each.images / most) ** 0.5
            parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}' fill='{color}' fill-opacity='0.7'/>")
    return document(370, 350, [*parts, *_legend(60, 344)])


def confusion_difference(classes: Sequence[str], changed: Sequence[tuple[str, str, int, int]]) -> str:
    """Draw head's confusions minus base's: rows are labels, columns predictions; red where there are more now."""
    cell, left, top = max(10, min(28, 560 // max(len(classes), 1))), 170, 190
    number = {name: index for index, name in enumerate(classes)}
    size = cell * len(classes)
    parts = [
        label(10, 20, "confusions: head minus base", extra="font-weight='bold'"),
        label(10, 38, "rows: label, columns: prediction; red: more now"),
        f"<rect x='{left}' y='{top}' width='{size}' height='{size}' {BLANK}/>",
    ]
    for index, name in enumerate(classes):
        middle = (index + 0.5) * cell
        parts.append(label(left - 6, top + middle + 4, _short(name), "end"))
        x = left + middle + 4
        parts.append(label(x, top - 6, _short(name, 18), extra=f"transform='rotate(-90 {x:.1f} {top - 6})'"))
    most = max((abs(after - before) for _, _, before, after in changed), default=1)
    for name, guess, before, after in changed:
        if name in number and guess in number:
            x, y = left + number[guess] * cell, top + number[name] * cell
            more = after - before
            shade = f"fill='{NEW if more > 0 else GONE}' fill-opacity='{0.25 + 0.75 * abs(more) / most:.2f}'"
            parts.append(f"<rect x='{x}' y='{y}' width='{cell}' height='{cell}' {shade}/>")
            if cell >= 20:
                parts.append(label(x + cell / 2, y + cell / 2 + 4, f"{more:+d}", "middle"))
    return document(max(left + size, 300) + 20, top + size + 20, parts)
