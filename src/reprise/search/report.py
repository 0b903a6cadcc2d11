"""The report of a sweep: one page as Markdown with pictures beside it, and as HTML that holds all of it.

The pictures are SVG, drawn by Vega-Lite without a browser or a network. charts.json has their specifications; here they
get data, titles and the scale of each parameter. Equal trials give equal bytes.
"""

import base64
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from vl_convert import vegalite_to_svg

from reprise.runtime.markup import html, table, text
from reprise.search.space import Definition
from reprise.search.study import Trial, as_optuna

PAGE = Path(__file__).with_name("report.txt")
FEWEST = 8  # complete trials; importances of fewer are chance
STYLE = "td,th{padding:.2em .6em;border-color:#ccc}img{max-width:100%}table{display:block;overflow-x:auto}"


def ranked(trials: Sequence[Trial], definition: Definition) -> list[Trial]:
    """Return the complete trials with numbers as objectives: the best in the first one first, of equals the earlier."""
    signs = [-1 if direction == "maximize" else 1 for _, direction in definition.objectives]
    good = [each for each in trials if each.state == "complete" and all(map(math.isfinite, each.values or [math.nan]))]
    return sorted(good, key=lambda each: (list(map(operator.mul, signs, each.values or [])), each.number))


def front(trials: Sequence[Trial], definition: Definition) -> list[Trial]:
    """Return those of `ranked` that no other one beats (Pareto front); of one objective: all with the best value."""
    good = ranked(trials, definition)
    return [good[number] for number in sorted(each.number for each in _study(good, definition).best_trials)]


def importances(trials: Sequence[Trial], definition: Definition) -> dict[str, float]:
    """Return {parameter: share of the first objective's variance that it explains} (fANOVA), the largest first.

    Of parameters that differ and that all complete trials have; {} of fewer than FEWEST, or if all reached the same.
    """
    good = ranked(trials, definition)
    given = {key: [each.params[key] for each in good if key in each.params] for key in definition.space}
    varied = [key for key, values in given.items() if len(values) == len(good) and len(set(values)) > 1]
    if len(good) < FEWEST or not varied or len({(each.values or [])[0] for each in good}) == 1:
        return {}  # or rounding would decide
    study, fanova = _study(good, definition), FanovaImportanceEvaluator(seed=0)
    return get_param_importances(study, evaluator=fanova, params=varied, target=lambda each: each.values[0])


def _study(good: Sequence[Trial], definition: Definition) -> optuna.Study:
    """Return a study of complete trials, which are numbered anew."""
    study = optuna.create_study(directions=[direction for _, direction in definition.objectives])
    study.add_trials([as_optuna(definition, trial) for trial in good])
    return study


def write(folder: Path, definition: Definition, trials: Sequence[Trial], confirmed: str) -> Path:
    """Write report.md, report.html and their pictures into a folder, made if need be; return the first's path.

    confirmed: what the comparison of winner and baseline on new seeds says, or that there is none, as plain text. The
    same trials give the same bytes.
    """
    shares = [[text(key), _shown(share)] for key, share in importances(trials, definition).items() if share]
    best = front(trials, definition)
    varied = [key for key, distribution in definition.space.items() if not distribution.single()]
    pictures = charts(ranked(trials, definition), best, definition, varied)
    named = dict(zip(definition.metrics, best[0].values or [], strict=True)) | best[0].params if best else {}
    values = ", ".join(f"{text(key)} {_shown(value)}" for key, value in named.items())
    page = PAGE.read_text("utf-8").format(
        definition=definition,
        states=Counter(trial.state for trial in trials),
        objectives=" and ".join(f"{metric} ({direction})" for metric, direction in definition.objectives),
        best=f"**{best[0].name}** with {values}" if best else "no trial is complete",
        confirmed="\n\n".join(map(text, confirmed.splitlines())),
        importances=table(["parameter", "share"], shares),
        trials=_table(definition, trials, varied),
    )
    page = re.sub(r"!\[.*\]\((.+)\)\n\n", lambda found: found[0] if found[1] in pictures else "", page)
    inside = {name: base64.b64encode(picture.encode()).decode() for name, picture in pictures.items()}
    whole = html(page).replace("Report", f"Sweep {definition.name}", 1).replace("</style>", STYLE + "</style>", 1)
    whole = re.sub(r'(?<=src=")[^"]+', lambda found: f"data:image/svg+xml;base64,{inside[found[0]]}", whole)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"report.md": page, "report.html": whole, **pictures}.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder / "report.md"


def _table(definition: Definition, trials: Sequence[Trial], keys: Sequence[str]) -> str:
    """Return all trials, the best first, then those without a result."""
    good, best = ranked(trials, definition), front(trials, definition)
    rows = []
    for trial in [*good, *sorted((each for each in trials if each not in good), key=lambda each: each.state)]:
        values = [*map(_shown, trial.values or [])] or ["-" for _ in definition.metrics]
        state = text(f"{trial.state}: {trial.reason}" if trial.reason else trial.state)
        name = f"**{trial.name}**" if trial in best else trial.name
        rows.append([name, *values, *(_shown(trial.params.get(key)) for key in keys), f"{trial.seconds:.1f}", state])
    return table(["trial", *definition.metrics, *map(text, keys), "seconds", "state"], rows)


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else text(value)


def charts(good: Sequence[Trial], best: Sequence[Trial], definition: Definition, keys: Sequence[str]) -> dict[str, str]:
    """Return {file name: SVG} of what can be drawn: `best.svg`, `front.svg` (of two objectives), `parameters.svg`.

    good: the complete trials; best: those of them that no other one beats; keys: the parameters that get a panel.
    """
    metrics, panels = definition.metrics, [key for key in keys if any(key in trial.params for trial in good)]
    rows = [
        {**each.params, "trial": each.number, "best": each in best} | dict(zip(metrics, each.values or [], strict=True))
        for each in good
    ]
    specs = Path(__file__).with_name("charts.json").read_text("utf-8")

    def chart(name: str, x: str, y: str) -> dict[str, Any]:
        spec: dict[str, Any] = json.loads(specs)[name]
        for axis, field in (("x", x), ("y", y)):
            spec["transform"].insert(0, {"calculate": f"datum[{json.dumps(field)}]", "as": axis})
            spec["encoding"][axis]["title"] = field
        spec["encoding"]["x"] |= _scale(definition.space[x]) if x in panels else {}
        return spec

    drawn = {
        "best.svg": [chart("best.svg", "trial", metric) for metric in metrics],
        "front.svg": [chart("front.svg", *reversed(metrics))] if len(metrics) == 2 else [],
        "parameters.svg": [chart("parameters.svg", key, metric) for key in panels for metric in metrics],
    }
    for spec, (_, direction) in zip(drawn["best.svg"], definition.objectives, strict=True):
        spec["layer"][1]["encoding"]["y"]["field"] = direction  # the running maximum, or minimum
    page = {**json.loads(specs)["page"], "data": {"values": rows}, "columns": 4 - len(metrics)}
    return {name: vegalite_to_svg({**page, "concat": parts}) for name, parts in drawn.items() if rows and parts}


def _scale(distribution: Any) -> dict[str, Any]:
    """Return kind, scale and ticks of the axis of a parameter: all that was searched."""
    if choices := getattr(distribution, "choices", None):
        return {"type": "nominal", "sort": choices, "axis": {"labelAngle": -20}}
    low, high, kind = distribution.low, distribution.high, "log" if distribution.log else "linear"
    ticks = [digit * 10.0**power for power in range(-12, 13) for digit in (1, 3)] if distribution.log else []
    axis = {"format": "~g", "tickCount": 5, "values": [tick for tick in ticks if low <= tick <= high] or None}
    return {"type": "quantitative", "scale": {"domain": [low, high], "nice": False, "type": kind}, "axis": axis}
