"""The report of a sweep: one page as Markdown with pictures beside it, and as HTML that holds all of it."""

import base64
import math
import operator
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from reprise.runtime.markup import html, table, text
from reprise.search.charts import charts
from reprise.search.space import Definition
from reprise.search.study import Trial

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
    for trial in good:
        space = {key: definition.space[key] for key in trial.params}
        study.add_trial(optuna.create_trial(values=trial.values, params=trial.params, distributions=space))
    return study


def write(folder: Path, definition: Definition, trials: Sequence[Trial], confirmed: str) -> Path:
    """Write report.md, report.html and their pictures into a folder, made if need be; return the first's path.

    confirmed: what the comparison of winner and baseline on new seeds says, or that there is none, as plain text. The
    same trials give the same bytes.
    """
    shares, best = importances(trials, definition), front(trials, definition)
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
        importances=table(
            ["parameter", "share"], [[text(key), _shown(share)] for key, share in shares.items() if share]
        ),
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
