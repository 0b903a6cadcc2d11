"""The pictures of a sweep as SVG, drawn by Vega-Lite without a browser or a network; equal trials give equal bytes.

charts.json has their specifications; here they get data, titles and the scale of each parameter.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vl_convert import vegalite_to_svg

from reprise.search.space import Definition
from reprise.search.study import Trial


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
