"""What a cross-validation found: each metric's mean and sample standard deviation over the folds.

Runs belong together when they are equal in everything but `data.fold`: parameters, code and raw data.
"""

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from reprise.params.load import flat


@dataclass(frozen=True)
class Run:
    """One run of the pipeline: its time (ISO 8601), its params (nested), its code's and data's hashes, its metrics."""

    time: str
    params: dict[str, Any]
    inputs: dict[str, str]
    metrics: dict[str, float]


def finished_runs(table: list[dict[str, Any]]) -> list[Run]:
    """Return the finished runs of the newest commit from the rows of `dvc exp show --json`."""
    runs = []
    commit = next((row for row in table if row["rev"] != "workspace"), {})
    revisions = [commit, *(rev for found in commit.get("experiments") or [] for rev in (found["revs"] or [])[:1])]
    for revision in revisions:
        data = revision.get("data") or {}
        params = ((data.get("params") or {}).get("params.yaml") or {}).get("data")
        files = {path: (of or {}).get("data") or {} for path, of in (data.get("metrics") or {}).items()}
        if not params or not files.get("metrics/test.json"):
            continue  # queued, or failed
        deps = {path: (dep or {}).get("hash") or "" for path, dep in (data.get("deps") or {}).items()}
        runs.append(
            Run(
                data.get("timestamp") or "",
                params,
                {path: hash_ for path, hash_ in deps.items() if path.startswith(("src/", "stages/", "data/raw"))},
                {
                    name: value
                    for file in ("metrics/train.json", "metrics/test.json")
                    for name, value in (files.get(file) or {}).items()
                    if isinstance(value, float)  # not counts
                },
            )
        )
    return runs


def summarise(runs: list[Run]) -> str:
    """Return a Markdown table per cross-validation among these runs, headed by the settings in which they differ."""
    groups: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: run.time):
        data = run.params.get("data", {})
        if data.get("folds"):
            rest = {**run.params, "data": {key: value for key, value in data.items() if key != "fold"}}
            groups[json.dumps([rest, run.inputs], sort_keys=True)][data["fold"]] = run  # the newest of each fold
    every = [flat(next(iter(folds.values())).params) for folds in groups.values()]
    differing = {key for params in every for key in params if len({str(other.get(key)) for other in every}) > 1}
    parts = []
    for params, folds in zip(every, groups.values(), strict=True):
        differences = [f"{key}={params.get(key)}" for key in sorted(differing - {"data.fold"})]
        parts.append(_table(params["data.folds"], folds, differences))
    return "\n\n".join(parts)


def _table(count: int, runs: dict[int, Run], differences: list[str]) -> str:
    missing = [str(fold) for fold in range(count) if fold not in runs]
    title = f"{len(runs)} of {count} folds" + (f", missing: data.fold={','.join(missing)}" if missing else "")
    lines = [" ".join([f"{title}:", *differences]) if differences else title, ""]
    lines += ["| metric | mean | standard deviation |", "| --- | ---: | ---: |"]
    metrics = [run.metrics for _, run in sorted(runs.items())]
    for name in dict.fromkeys(name for found in metrics for name in found):
        values = [found[name] for found in metrics if name in found]
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        fewer = f" (defined in {len(values)} folds)" if len(values) < len(metrics) else ""
        lines.append(f"| {name}{fewer} | {statistics.mean(values):.4f} | {spread} |")
    return "\n".join(lines)
