"""The test metrics over the commits of a branch: a table, and a picture that shows without a network."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from reprise.comparison.changes import different
from reprise.comparison.pictures import HEAD, Axes, document, escaped, label
from reprise.repo.project import Project
from reprise.repo.revisions import TEST, Revision, experiments
from reprise.runtime.errors import UserError
from reprise.runtime.intervals import wilson
from reprise.runtime.markup import HIDDEN

USUAL = ("accuracy", "loss", "f1", "ece")
EXPERIMENT_METRICS = ("val accuracy", "val loss", "test accuracy", "test loss", "parameters")
LONGEST = 50  # characters of a commit's subject
STEP, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 28, 110, 70, 20, 26, 18  # of a panel, pixels
NAMES = 64  # pixels below the panels, for the commits


@dataclass(frozen=True)
class Point:
    """The metrics of one commit, without those that are undefined; commit: its short id, or `workspace`."""

    commit: str
    subject: str
    metrics: dict[str, float]


def history(project: Project) -> list[Point]:
    """Return a point for each commit that changed the test metrics, oldest first; merges count as one commit.

    The workspace comes last where it differs. Commits whose metrics are no JSON are left out. Raises UserError if there
    is no point at all.
    """
    log = ("log", "--first-parent", "--reverse", "--format=%h %s", "--", TEST)
    commits = [line.partition(" ") for line in project.git(*log, check=False).splitlines()]
    found = [(Revision(project, name, name), subject) for name, _, subject in commits]
    if project.changed("HEAD", "--", TEST):
        found.append((Revision(project), "not committed"))
    points = []
    for revision, subject in found:
        with suppress(UserError):  # no JSON
            metrics = {name: value for name, value in revision.metrics.items() if value is not None}
            points += [Point(revision.name, subject, metrics)] * bool(metrics)
    if not points:
        raise UserError(f"{TEST}: no commit of this branch has it; `make repro` writes it, then `git commit`")
    return points


def chosen(points: Sequence[Point], names: Sequence[str]) -> list[str]:
    """Return the names to show, the usual ones unless some are given. Raises UserError for one that no commit has."""
    known = list(dict.fromkeys(name for point in points for name in point.metrics))
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{', '.join(unknown)}: no such metric; there are {', '.join(known)}")
    return list(names) or [name for name in USUAL if name in known] or known


def experiment_points(project: Project) -> list[Point]:
    """Return a point for the last commit and each finished experiment from it, with what it changed in params.

    Those that cannot be read are left out.
    """
    commit = project.git("rev-parse", "HEAD").strip()
    head = Revision(project, "HEAD", commit)
    points = []
    for run in (head, *experiments(project, commit)):
        with suppress(UserError):
            changed = ", ".join(f"{name}={value}" for name, _, value in different(head.params, run.params))
            measured = {f"val {name}": run.training.get(f"val_{name}") for name in ("accuracy", "loss")}
            tested = run.metrics if run.evaluated else {}  # those of another model otherwise
            measured |= {f"test {name}": tested.get(name) for name in ("accuracy", "loss")}
            measured["parameters"] = tested.get("parameters")
            points.append(
                Point(run.name, changed, {name: value for name, value in measured.items() if value is not None})
            )
    return points


def table(points: Sequence[Point], names: Sequence[str], title: str = "commit") -> str:
    """Return a table, a line for each point; `-` where a commit does not have a metric. title: of the first column."""
    rows = [[title, *names, ""]]
    for point in points:
        subject = HIDDEN.sub("?", point.subject)
        subject = subject if len(subject) <= LONGEST else f"{subject[: LONGEST - 3]}..."
        rows.append([point.commit, *(_number(point.metrics.get(name)) for name in names), subject])
    first, *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    line = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in widths), "{}"])
    return "\n".join(line.format(*row).rstrip() for row in rows)


def picture(points: Sequence[Point], names: Sequence[str]) -> str:
    """Return an SVG with a panel for each metric, the commits from left to right; accuracy with its 95 % interval."""
    width, panel = LEFT + max(len(points) - 1, 8) * STEP + RIGHT, TOP + HEIGHT + BOTTOM
    parts = [line for row, name in enumerate(names) for line in _panel(points, name, row * panel + TOP, width)]
    for index, point in enumerate(points):
        x, y = LEFT + index * STEP + 4, panel * len(names) - BOTTOM + 8
        parts.append(label(x, y, point.commit, "end", f"transform='rotate(-90 {x} {y})'"))
    return document(width, panel * len(names) + NAMES, parts)


def _panel(points: Sequence[Point], name: str, top: int, width: int) -> list[str]:
    spans = [(index, point, span) for index, point in enumerate(points) if (span := _span(point.metrics, name))]
    known = [end for *_, span in spans for end in span] or [0.0, 1.0]
    across = width - LEFT - RIGHT
    axes = Axes(LEFT, top, (across, HEIGHT), (0, across / STEP), (min(known), max(known)), f"test {name}")
    parts = axes.frame(across=False)
    for index, point, span in spans:
        x, y = axes.place((index, point.metrics[name]))
        title = escaped(f"{point.commit} {point.subject}: {point.metrics[name]:.6g}")
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{HEAD}'><title>{title}</title></circle>")
        if span[0] < span[1]:
            ends = " ".join(f"y{end}='{axes.place((index, value))[1]:.1f}'" for end, value in enumerate(span, start=1))
            parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' {ends} stroke='{HEAD}' opacity='0.4'/>")
    return [*parts, axes.line([(index, point.metrics[name]) for index, point, _ in spans], HEAD)]


def _span(metrics: dict[str, float], name: str) -> tuple[float, float] | None:
    """Return the interval of an accuracy, the value itself of another metric, None where there is no number."""
    value, images = metrics.get(name), metrics.get("images")
    if value is None or not math.isfinite(value):
        return None
    if name == "accuracy" and isinstance(images, int) and images > 0 and 0 <= value <= 1:
        return wilson(round(value * images), images)
    return value, value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
