"""Cross-validation: each metric's mean and sample standard deviation over the folds.

Runs belong to one cross-validation if they are equal in everything but `data.fold`: parameters, code and data.
"""

import statistics
from collections import defaultdict
from contextlib import suppress

from reprise.repo.project import Project
from reprise.repo.revisions import PROCESSED, Revision, experiments
from reprise.runtime.errors import UserError
from reprise.runtime.markup import table

FOLD = "data.fold"


def finished_runs(project: Project) -> list[Revision]:
    """Return HEAD and the finished experiments of DVC that began from it, oldest first."""
    head = project.git("rev-parse", "HEAD").strip()
    return [Revision(project, "HEAD", head), *experiments(project, head)]


def summarize(runs: list[Revision]) -> str:
    """Return a Markdown table for each cross-validation among these runs, headed by the params in which they differ.

    Of several runs on the same fold, the last one counts. Returns "" if no run has `data.folds`.
    """
    groups: dict[str, dict[int, Revision]] = defaultdict(dict)
    for run in runs:
        with suppress(UserError):  # its metrics or params are damaged: its fold is missing
            if run.metrics and run.params.get("data.folds"):
                groups[run.setting(FOLD, PROCESSED)][run.params[FOLD]] = run
    every = [next(iter(folds.values())).params for folds in groups.values()]
    differing = sorted({key for params in every for key in params if len({str(other.get(key)) for other in every}) > 1})
    parts = []
    for params, folds in zip(every, groups.values(), strict=True):
        count = params["data.folds"]
        missing = ",".join(str(fold) for fold in range(count) if fold not in folds)
        title = f"{len(folds)} of {count} folds" + (f", missing: {FOLD}={missing}" if missing else "")
        settings = [f"{key}={params.get(key)}" for key in differing if key != FOLD]
        parts.append(f"{title}: {' '.join(settings)}" if settings else title)
        parts.append(_table([folds[fold] for fold in sorted(folds)]))
    return "\n\n".join(parts)


def _table(runs: list[Revision]) -> str:
    """Return the rows of all metrics, without counts, over the runs in which they are defined."""
    rows = []
    metrics = [run.training | {f"test {name}": value for name, value in run.metrics.items()} for run in runs]
    for name in dict.fromkeys(name for found in metrics for name in found):
        values = [value for found in metrics if isinstance(value := found.get(name), float)]
        if values:
            fewer = f" (defined in {len(values)} folds)" if len(values) < len(runs) else ""
            spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
            rows.append([f"{name}{fewer}", f"{statistics.mean(values):.4f}", spread])
    return table(["metric", "mean", "standard deviation"], rows)
