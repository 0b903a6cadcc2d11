"""Labels that are probably wrong, and what becomes of them."""

import sys
from argparse import Namespace

from reprise.commands.registry import argument, command, here
from reprise.runtime.errors import UserError, say


def number(text: str) -> int:
    """Return a number, the largest for `all`."""
    return sys.maxsize if text == "all" else max(0, int(text))


@command(
    argument("--folds", type=int, default=5, help="of the cross-validation (default: %(default)s)"),
    argument("--accept", type=number, metavar="N", help="take over the first N suggestions, or all; train nothing"),
)
def labels(options: Namespace) -> None:
    """Find labels that are probably wrong, by models that have not seen the images.

    reprise labels                train what is missing of five folds -> runs/labels
    reprise labels --accept 20    write the first 20 suggestions of runs/labels/labels.csv into data/corrections.csv
    reprise labels --accept all   all of them

    `git diff` shows the corrections; commit them, and `dvc repro` trains with them.
    """
    from reprise.data.prepare.corrections import CORRECTIONS, Correction, add_corrections, read_corrections
    from reprise.labels.report import doubts, read_doubts, write_report
    from reprise.labels.run import examine
    from reprise.repo.trials import workspace
    from reprise.runtime.atomic import publishing

    project = here()
    folder, path = project.root / "runs/labels", project.root / CORRECTIONS
    decided = read_corrections(path)
    if options.accept is not None:
        rows = [row for row in read_doubts(folder / "labels.csv") if row.suggested and row.id not in decided]
        taken, by = rows[: options.accept], project.git("config", "user.name", check=False).strip()
        why = "reprise labels: was {0.label}, score {0.score}".format
        add_corrections(path, [Correction(row.id, row.sha256, row.suggested, by, why(row)) for row in taken])
        left = f"{len(rows) - len(taken):,} suggestions are left"
        say(f"labels: {len(taken):,} corrections -> {CORRECTIONS}, {left}; `dvc repro` trains with them")
        return
    if options.folds < 2:
        raise UserError(f"--folds {options.folds}: at least 2 are needed, so that each image is held out once")
    project.refuse_edits("the folds are experiments of the last commit")
    with workspace(project, project.git("rev-parse", "HEAD").strip()) as tree, publishing(folder) as (partial,):
        found = examine(project, tree, options.folds)
        summary = write_report(found, doubts(found, decided), partial)
    say(f"labels: {summary} -> {project.short(folder / 'labels.md')}")
