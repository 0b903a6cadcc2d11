"""The comparison as one Markdown page with pictures beside it, and as a few lines for a terminal."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reprise.comparison import pictures
from reprise.comparison.changes import code_changes, different, provenance_changes
from reprise.comparison.compare import Comparison
from reprise.comparison.flips import SHOWN, Flip, sheet
from reprise.comparison.verdict import LEVEL, POWER, Interval
from reprise.runtime.markup import HIDDEN, table, text

ROWS = 20  # of a table: classes, confusions, names; the rest is counted
PARAM_ROWS = 60
LONGEST = 80  # characters of a name or value


def summary(found: Comparison) -> str:
    """Return the verdict and what a reviewer has to know in a few lines of plain text."""
    lines = [f"{found.verdict.word}: {_sentence(found)}"]
    for word, some in (("worse", found.worse_classes), ("better", found.better_classes)):
        if some:
            recalls = [f"{_cut(c.name)} {c.base_right}/{c.images} -> {c.head_right}/{c.images}" for c in some]
            lines.append(f"classes found {word} than before: {_listed(recalls)}")
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join(HIDDEN.sub("?", line) for line in lines)


def write(found: Comparison, folder: Path) -> Path:
    """Write `report.md` and its pictures into a folder, made if need be; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    files = _pictures(found)
    for name in ("broken.png", "fixed.png", "curves.svg", "classes.svg", "reliability.svg", "confusion.svg"):
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    page = folder / "report.md"
    page.write_text(markdown(found, set(files)), encoding="utf-8")
    return page


def _pictures(found: Comparison) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name, shown, fixed in (("broken.png", found.broken, False), ("fixed.png", found.fixed, True)):
        if content := sheet(found.head, shown[:SHOWN], fixed):
            files[name] = content
    if found.base.history or found.head.history:
        files["curves.svg"] = pictures.curves(found.base.history, found.head.history).encode()
    files["classes.svg"] = pictures.class_bars(found.classes[:ROWS]).encode()
    files["reliability.svg"] = pictures.reliability(*found.calibrations).encode()
    if found.confusions:
        named = [name for label, guess, _, _ in found.confusions for name in (label, guess)]
        classes = sorted(list(dict.fromkeys(named))[:ROWS])
        files["confusion.svg"] = pictures.confusion_difference(classes, found.confusions).encode()
    return files


def markdown(found: Comparison, files: set[str]) -> str:
    """Return the page; files: the pictures that lie beside it. The same comparison gives the same bytes."""
    parts = [
        f"# {found.verdict.word.capitalize()}: {text(found.head)} against {text(found.base)}",
        _sentence(found),
        *["\n".join(f"> **Note:** {text(note)}" + "\n>" for note in found.notes).removesuffix("\n>")]
        * bool(found.notes),
        _verdict_table(found),
        *_named_classes(found),
        "## Metrics",
        _metrics(found),
        "## Classes",
        _classes(found),
        _picture("classes.svg", "recall by class of both", files),
        *_flips(found, files),
        "## Confusions",
        _confusions(found),
        _picture("confusion.svg", "confusions, head less base", files),
        "## Calibration",
        _calibration(found),
        _picture("reliability.svg", "accuracy by confidence of both", files),
        "## Training",
        _picture("curves.svg", "loss and accuracy by epoch of both", files) or "No history of the epochs.",
        "## Parameters",
        _differences(different(found.base.params, found.head.params), "parameter", "The same parameters."),
        "## Data",
        _data(found),
        "## Provenance",
        *_provenance(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sentence(found: Comparison) -> str:
    """Return the verdict in words."""
    verdict, seeds = found.verdict, found.verdict.seeds
    if seeds:
        difference, interval, p, least = seeds.difference, seeds.interval, seeds.p, seeds.detectable
        before, after = (_mean(runs) for runs in (seeds.base, seeds.head))
        what = f"mean accuracy over {len(seeds.base)} and {len(seeds.head)} seeds"
        test, whose = f"p = {_p(p)}, over seeds and images", "These seeds and images"
    else:
        difference, interval, p, least = verdict.difference, verdict.interval, verdict.p, verdict.detectable
        before, after = verdict.base_right / verdict.images, verdict.head_right / verdict.images
        what, test, whose = "accuracy", f"McNemar's exact p = {_p(p)}", "These images"
    said = (
        f"{what} {before:.4f} -> {after:.4f} on {verdict.images:,} common test images, {_points(difference)} points "
        f"(95 % interval {_points(interval[0])} to {_points(interval[1])}; {test})."
    )
    if p > LEVEL:
        least_said = (
            "no difference at all" if math.isnan(least) else f"a difference of {100 * least:.2g} points or more"
        )
        said += f" {whose} show {least_said} in {POWER:.0%} of cases; a smaller one may be there unseen."
    elif not (seeds or verdict.same_setting):
        said += " That is said of these two models; whether another seed says the same, `--seeds` tells."
    if verdict.same_setting:
        said += " Only the seed differs: a difference between these two is training noise, not a better setting."
    return said


def _verdict_table(found: Comparison) -> str:
    verdict = found.verdict
    rows: list[list[Any]] = [
        [
            "accuracy (95 % interval)",
            f"{verdict.base_right / verdict.images:.4f} {_span(verdict.base_interval)}",
            f"{verdict.head_right / verdict.images:.4f} {_span(verdict.head_interval)}",
            f"{verdict.difference:+.4f} {_span(verdict.interval, '+')}",
        ],
        [
            "loss, nats (95 % interval of the difference)",
            f"{verdict.base_loss:.4f}",
            f"{verdict.head_loss:.4f}",
            f"{verdict.head_loss - verdict.base_loss:+.4f} {_span(verdict.loss_interval, '+')}",
        ],
        [
            "images that it alone has right",
            f"{verdict.broken:,}",
            f"{verdict.fixed:,}",
            f"McNemar's exact p = {_p(verdict.p)}",
        ],
    ]
    if verdict.seeds:
        rows.append(
            [
                "accuracy by seed",
                *(
                    ", ".join(f"{seed}: {accuracy:.4f}" for seed, accuracy in runs.items())
                    for runs in (verdict.seeds.base, verdict.seeds.head)
                ),
                f"{verdict.seeds.difference:+.4f} {_span(verdict.seeds.interval, '+')}, p = {_p(verdict.seeds.p)}",
            ]
        )
    return table(["", text(found.base), text(found.head), "change"], rows)


def _named_classes(found: Comparison) -> list[str]:
    lines = []
    for word, some in (("worse", found.worse_classes), ("better", found.better_classes)):
        if some:
            named = [f"**{_name(c.name)}** ({_points(c.difference)} points)" for c in some]
            lines.append(f"Classes found {word} than before: {_listed(named)}.")
    return lines


def _metrics(found: Comparison) -> str:
    rows = [
        [
            _name(row.name),
            _number(row.base),
            _number(row.head),
            _number(row.head - row.base, "+") if row.base is not None and row.head is not None else "-",
            row.better,
            row.change,
        ]
        for row in found.metrics
    ]
    return table(["metric, each on its own test set", "base", "head", "change", "better is", ""], rows)


def _classes(found: Comparison) -> str:
    header = ["class", "images", "recall, base", "recall, head", "change", "p, Holm", ""]
    rows = [
        [
            _name(change.name),
            change.images,
            f"{change.base_right / change.images:.4f}",
            f"{change.head_right / change.images:.4f}",
            f"{change.difference:+.4f}",
            _p(change.p),
            "" if change.p > LEVEL else "better" if change.difference > 0 else "worse",
        ]
        for change in found.classes
    ]
    return "Worst first.\n\n" + table(header, rows[:ROWS]) + _more(len(rows) - ROWS, "classes")


def _flips(found: Comparison, files: set[str]) -> list[str]:
    parts = [
        "## Images",
        f"{len(found.broken):,} images were right and are wrong now, {len(found.fixed):,} the reverse; those first of "
        "which head is surest.",
    ]
    for title, some, picture in (
        ("Right before, wrong now", found.broken, "broken.png"),
        ("Wrong before, right now", found.fixed, "fixed.png"),
    ):
        if some:
            rows = [_flip(number, flip) for number, flip in enumerate(some[:SHOWN], start=1)]
            header = ["", "image", "label", "base said", "head says", "confidence"]
            shown = _picture(picture, title.lower(), files)
            parts += [f"### {title}", shown or "The images themselves are not in DVC's cache."]
            parts.append(table(header, rows) + _more(len(some) - SHOWN, "images"))
    return parts


def _flip(number: int, flip: Flip) -> list[object]:
    return [number, *map(_name, (flip.id, flip.label, flip.base, flip.head)), f"{flip.confidence:.3f}"]


def _confusions(found: Comparison) -> str:
    rows = [
        [_name(label), _name(guess), before, after, f"{after - before:+d}"]
        for label, guess, before, after in found.confusions
    ]
    if not rows:
        return "The same confusions."
    header = ["label", "taken for", "base", "head", "change"]
    return table(header, rows[:ROWS]) + _more(len(rows) - ROWS, "confusions")


def _calibration(found: Comparison) -> str:
    header = ["", "expected calibration error", "mean confidence", "accuracy"]
    right = (found.verdict.base_right, found.verdict.head_right)
    rows = [
        [name, f"{one.ece:.4f}", f"{one.confidence:.4f}", f"{count / found.verdict.images:.4f}"]
        for name, one, count in zip(("base", "head"), found.calibrations, right, strict=True)
    ]
    return table(header, rows)


def _data(found: Comparison) -> str:
    data = found.data
    if data is None:
        return "Not to be had, see above."
    names = {"added": data.added, "removed": data.removed, "other content": data.replaced}
    moves = {"moved between splits": data.moved, "relabelled": data.relabelled}
    cells = {what: [_name(name) for name in some] for what, some in names.items()}
    for what, some in moves.items():
        cells[what] = [f"{_name(name)} ({_name(one)} -> {_name(other)})" for name, one, other in some]
    rows = [[what, f"{len(some):,}", _listed(some)] for what, some in cells.items() if some]
    if not rows:
        return "The same images, in the same splits, with the same labels."
    return table(["images", "number", ""], rows)


def _provenance(found: Comparison) -> list[str]:
    unknown = [text(revision) for revision in dict.fromkeys((found.base, found.head)) if not revision.model]
    changed = provenance_changes(found.base, found.head)
    files = code_changes(found.base, found.head)
    parts = [
        f"models/model.json of {' and '.join(unknown)} is not in DVC's cache."
        if unknown
        else _differences(changed, "term", "Both were trained on the same terms: packages, threads, device.")
    ]
    if changed:
        parts.append("Results may differ because of these, and not because of what was meant to change.")
    if files:
        parts.append(f"Code of the stages that differs: {_listed([_name(file) for file in files], ROWS)}.")
    else:
        parts.append("The stages' code is the same.")
    return parts


def _differences(rows: list[tuple[str, Any, Any]], what: str, none: str) -> str:
    if not rows:
        return none
    cells = [[_name(name), _name(one), _name(other)] for name, one, other in rows]
    return table([what, "base", "head"], cells[:PARAM_ROWS]) + _more(len(rows) - PARAM_ROWS, f"{what}s")


def _picture(name: str, description: str, files: set[str]) -> str:
    return f"![{description}]({name})" if name in files else ""


def _more(count: int, what: str) -> str:
    return f"\n\nand {count:,} more {what}" if count > 0 else ""


def _listed(cells: Sequence[str], most: int = 5) -> str:
    return ", ".join(cells[:most]) + (f" and {len(cells) - most:,} more" if len(cells) > most else "")


def _name(value: object) -> str:
    return "-" if value is None else text(_cut(str(value)))


def _cut(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[: LONGEST // 2 - 2]}...{value[-LONGEST // 2 + 1 :]}"


def _number(value: object, sign: str = "") -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:{sign},}"
    return f"{value:{sign}.4f}" if isinstance(value, float) else _name(value)


def _span(interval: Interval, sign: str = "") -> str:
    return f"({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _p(p: float) -> str:
    return "0.0001 or less" if p <= 0.0001 else f"{p:.4f}"


def _mean(runs: dict[int, float]) -> float:
    return sum(runs.values()) / len(runs)
