"""The comparison of two revisions as one Markdown page with pictures beside it, and as a few lines for a terminal."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reprise.comparison import pictures
from reprise.comparison.changes import PartChange, code_changes, different, provenance_changes, significant
from reprise.comparison.compare import Comparison
from reprise.comparison.flips import SHOWN, Flip, sheet
from reprise.comparison.verdict import LEVEL, POWER, Interval
from reprise.runtime.intervals import wilson
from reprise.runtime.markup import HIDDEN, html, table, text

ROWS = 20  # of a table: classes, confusions, names; the rest is counted
PARAM_ROWS = 60
LONGEST = 80  # characters of a name or value


def summary(found: Comparison) -> str:
    """Return the verdict and what a reviewer has to know in a few lines of plain text."""
    lines = [f"{found.verdict.word}: {_sentence(found)}"]
    for what, word, some in _changed(found):
        shares = [f"{_cut(c.name)} {c.base_right}/{c.images} -> {c.head_right}/{c.images}" for c in some]
        lines.append(f"{what} found {word} than before: {_listed(shares)}")
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join(HIDDEN.sub("?", line) for line in lines)


def write(found: Comparison, folder: Path) -> Path:
    """Write `report.md`, `report.html` and their pictures into a folder, made if need be; return the first's path."""
    folder.mkdir(parents=True, exist_ok=True)
    files = _pictures(found)
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)  # that of an earlier comparison
        if content:
            (folder / name).write_bytes(content)
    page = folder / "report.md"
    page.write_text(markdown(found, {name for name, content in files.items() if content}), encoding="utf-8")
    page.with_suffix(".html").write_text(html(page.read_text(encoding="utf-8")), encoding="utf-8")
    return page


def _pictures(found: Comparison) -> dict[str, bytes | None]:
    """Return {file name: content} of all pictures; None for those that cannot be drawn."""
    base, head = found.base.history, found.head.history
    named = dict.fromkeys(name for label, guess, _, _ in found.confusions for name in (label, guess))
    confusion = pictures.confusion_difference(sorted(list(named)[:ROWS]), found.confusions)
    return {
        "broken.svg": sheet(found.head, found.broken[:SHOWN], fixed=False),
        "fixed.svg": sheet(found.head, found.fixed[:SHOWN], fixed=True),
        "curves.svg": pictures.curves(base, head).encode() if base or head else None,
        "classes.svg": pictures.class_bars(found.classes[:ROWS]).encode(),
        "reliability.svg": pictures.reliability(*found.calibrations).encode(),
        "confusion.svg": confusion.encode() if named else None,
    }


def markdown(found: Comparison, files: set[str]) -> str:
    """Return the page; files: the pictures that lie beside it. The same comparison gives the same bytes."""

    def picture(name: str, description: str) -> str:
        return f"![{description}]({name})" if name in files else ""

    images = "images were right and are wrong now"
    parts = [
        f"# {found.verdict.word.capitalize()}: {text(found.head)} against {text(found.base)}",
        _sentence(found),
        "\n>\n".join(f"> **Note:** {text(note)}" for note in found.notes),
        _verdict_table(found),
        *_named_parts(found),
        "## Metrics",
        _metrics(found),
        "## Classes",
        _parts(found.classes, "class", "classes", "recall"),
        picture("classes.svg", "recall by class of both"),
        *(["## Groups", _parts(found.groups, "group", "groups", "accuracy")] if found.groups else []),
        "## Images",
        f"{len(found.broken):,} {images}, {len(found.fixed):,} the reverse; those first of which head is surest.",
        *_flips("Right before, wrong now", found.broken, picture("broken.svg", "right before, wrong now")),
        *_flips("Wrong before, right now", found.fixed, picture("fixed.svg", "wrong before, right now")),
        "## Confusions",
        _confusions(found),
        picture("confusion.svg", "confusions, head minus base"),
        "## Calibration",
        _calibration(found),
        picture("reliability.svg", "accuracy by confidence of both"),
        "## Training",
        picture("curves.svg", "loss and accuracy by epoch of both") or "No history of the epochs.",
        "## Parameters",
        _differences(different(found.base.params, found.head.params), "parameter") or "The same parameters.",
        "## Data",
        _data(found),
        "## Provenance",
        *_provenance(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sentence(found: Comparison) -> str:
    """Return the verdict in words."""
    verdict, seeds = found.verdict, found.verdict.seeds
    judged = seeds or verdict
    if seeds:
        before, after = (sum(runs.values()) / len(runs) for runs in (seeds.base, seeds.head))
        what = f"mean accuracy over {len(seeds.base)} and {len(seeds.head)} seeds"
        test, whose = f"p = {_p(seeds.p)}, over seeds and images", "These seeds and images"
    else:
        before, after = (right / verdict.images for right in verdict.right)
        what, test, whose = "accuracy", f"McNemar's exact p = {_p(verdict.p)}", "These images"
    low, high = map(_points, judged.interval)
    said = (
        f"{what} {before:.4f} -> {after:.4f} on {verdict.images:,} common test images, {_points(judged.difference)} "
        f"points (95 % interval {low} to {high}; {test})."
    )
    if judged.p > LEVEL:
        least = f"a difference of {100 * judged.detectable:.2g} points or more"
        least = "no difference at all" if math.isnan(judged.detectable) else least
        said += f" {whose} show {least} in {POWER:.0%} of cases; a smaller one may be there unseen."
    elif not (seeds or verdict.same_setting):
        said += " That is said of these two models; whether another seed says the same, `--seeds` tells."
    if verdict.same_setting:
        said += " Only the seed differs: a difference between these two is training noise, not a better setting."
    return said


def _verdict_table(found: Comparison) -> str:
    verdict, seeds, images = found.verdict, found.verdict.seeds, found.verdict.images
    accuracies = [_with_interval(right / images, wilson(right, images)) for right in verdict.right]
    losses, test = [f"{loss:.4f}" for loss in verdict.loss], f"McNemar's exact p = {_p(verdict.p)}"
    loss_change = _with_interval(verdict.loss[1] - verdict.loss[0], verdict.loss_interval, "+")
    rows = [
        ["accuracy (95 % interval)", *accuracies, _with_interval(verdict.difference, verdict.interval, "+")],
        ["loss, nats (95 % interval of the difference)", *losses, loss_change],
        ["images that it alone has right", f"{verdict.broken:,}", f"{verdict.fixed:,}", test],
    ]
    if seeds:
        runs = [", ".join(f"{seed}: {share:.4f}" for seed, share in of.items()) for of in (seeds.base, seeds.head)]
        change = f"{_with_interval(seeds.difference, seeds.interval, '+')}, p = {_p(seeds.p)}"
        rows.append(["accuracy by seed", *runs, change])
    return table(["", text(found.base), text(found.head), "change"], rows)


def _changed(found: Comparison) -> list[tuple[str, str, list[PartChange]]]:
    kinds = {"classes": found.classes, "groups": found.groups}
    return [(what, word, some) for what, parts in kinds.items() for word, some in significant(parts).items()]


def _named_parts(found: Comparison) -> list[str]:
    lines = []
    for what, word, some in _changed(found):
        named = [f"**{_name(c.name)}** ({_points(c.difference)} points)" for c in some]
        lines.append(f"{what.capitalize()} found {word} than before: {_listed(named)}.")
    return lines


def _metrics(found: Comparison) -> str:
    rows = []
    for name, base, head, better, word in found.metrics:
        change = None if base is None or head is None else head - base
        rows.append([_name(name), _number(base), _number(head), _number(change, "+"), better, word])
    return table(["metric, each on its own test set", "base", "head", "change", "better is", ""], rows)


def _parts(found: list[PartChange], what: str, several: str, share: str) -> str:
    words = {change.name: word for word, some in significant(found).items() for change in some}
    rows = []
    for change in found:
        recalls = [f"{right / change.images:.4f}" for right in (change.base_right, change.head_right)]
        values = [*recalls, f"{change.difference:+.4f}", _p(change.p), words.get(change.name, "")]
        rows.append([_name(change.name), change.images, *values])
    header = [what, "images", f"{share}, base", f"{share}, head", "change", "p, Holm", ""]
    return "Worst first.\n\n" + _table(header, rows, several)


def _flips(title: str, flips: Sequence[Flip], picture: str) -> list[str]:
    """Return a heading, the picture and the table of images that only one of the two models has right."""
    if not flips:
        return []
    rows = []
    for number, flip in enumerate(flips, start=1):
        rows.append([number, *map(_name, (flip.id, flip.label, flip.base, flip.head)), f"{flip.confidence:.3f}"])
    shown = _table(["", "image", "label", "base said", "head says", "confidence"], rows, "images", SHOWN)
    return [f"### {title}", picture or "The images themselves are not in DVC's cache.", shown]


def _confusions(found: Comparison) -> str:
    rows = [
        [_name(label), _name(guess), before, after, f"{after - before:+d}"]
        for label, guess, before, after in found.confusions
    ]
    return _table(["label", "taken for", "base", "head", "change"], rows, "confusions") or "The same confusions."


def _calibration(found: Comparison) -> str:
    rows = []
    for name, one, right in zip(("base", "head"), found.calibrations, found.verdict.right, strict=True):
        shares = one.error, one.confidence, right / found.verdict.images
        rows.append([name, *(f"{share:.4f}" for share in shares)])
    return table(["", "expected calibration error", "mean confidence", "accuracy"], rows)


def _data(found: Comparison) -> str:
    if found.data is None:
        return "Not available, see above."
    rows = []
    for what, some in found.data.items():
        names = [_name(name) + (f" ({' -> '.join(map(_name, moved))})" if moved else "") for name, *moved in some]
        rows += [[what, f"{len(some):,}", _listed(names)]] * bool(some)
    return _table(["images", "number", ""], rows) or "The same images, in the same splits, with the same labels."


def _provenance(found: Comparison) -> list[str]:
    unknown = [text(revision) for revision in dict.fromkeys((found.base, found.head)) if not revision.model]
    changed = _differences(provenance_changes(found.base, found.head), "term")
    files = [_name(file) for file in code_changes(found.base, found.head)]
    return [
        f"models/model.json of {' and '.join(unknown)} is not in DVC's cache."
        if unknown
        else changed or "Both were trained with the same packages, threads and device.",
        "Results may differ because of these, and not because of what was meant to change." if changed else "",
        f"Code of the stages that differs: {_listed(files, ROWS)}." if files else "The stages' code is the same.",
    ]


def _differences(rows: list[tuple[str, Any, Any]], what: str) -> str:
    return _table([what, "base", "head"], [[*map(_name, row)] for row in rows], f"{what}s", PARAM_ROWS)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], what: str = "", most: int = ROWS) -> str:
    """Return a table of the first rows, and the number of others; "" of none."""
    more = f"\n\nand {len(rows) - most:,} more {what}" if len(rows) > most else ""
    return table(header, rows[:most]) + more if rows else ""


def _listed(cells: Sequence[str], most: int = 5) -> str:
    return ", ".join(cells[:most]) + (f" and {len(cells) - most:,} more" if len(cells) > most else "")


def _name(value: object) -> str:
    return "-" if value is None else text(_cut(str(value)))


def _cut(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[: LONGEST // 2 - 2]}...{value[-LONGEST // 2 + 1 :]}"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign},}" if isinstance(value, int) else f"{value:{sign}.4f}"


def _with_interval(value: float, interval: Interval, sign: str = "") -> str:
    return f"{value:{sign}.4f} ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _p(p: float) -> str:
    return "0.0001 or less" if p <= 0.0001 else f"{p:.4f}"
