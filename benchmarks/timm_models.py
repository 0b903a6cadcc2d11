"""Every model of timm through this library's own functions: build, one forward, count; a model of each family trains.

    python benchmarks/timm_models.py > benchmarks/timm_models.md

Claim: of the 1,371 models of timm 1.0.31, 1,361 build, run and are counted, and so do the three of this library. The
other ten are refused in one line: seven are encoders without a classifier, three have five-dimensional weights, which
channels-last memory does not take. The smallest model trains in each of 98 families of timm and in this library's own.

Build: `create_network`, which also runs one forward pass, and `count_flops`, at the size that timm's configuration
names; on the meta device or, where that one does not do and there are fewer than 100 M parameters, on the CPU. Train:
the smallest model of each family (timm's module) for one epoch of two steps on noise, at the smallest size that is not
refused; save, load, evaluate, and the loaded one must give equal probabilities.

Results are kept line by line in runs/timm_models.jsonl; what is there is not done again, so remove it to begin anew.
"""

import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import ROOT, machine, print_header, print_row
from reprise.params.load import load_params
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import UserError

KEPT = ROOT / "runs/timm_models.jsonl"
SIZES = (32, 64, 96, 128, 160, 192, 224, 256)
ON_CPU = 100_000_000  # parameters at most
PASSED = "passes"
Row = dict[str, Any]


def built(name: str, device: str = "meta") -> Row:
    """Build a model for ten classes of colour images, run it once (`create_network` does) and count."""
    import timm
    import torch

    from reprise.model.backbone import count_flops, create_network

    given = load_params(ROOT / "params.yaml", [f"model.name={name}"]).model
    config = timm.get_pretrained_cfg(name)
    size = max(config.input_size[1:])
    with torch.device(device):
        try:
            network, architecture = create_network(given, metadata(size), 0)
        except UserError as error:
            parameters = sum(part.numel() for part in timm.create_model(name, num_classes=10).parameters())
            if device == "meta" and parameters < ON_CPU:
                return built(name, "cpu")
            refused = {"outcome": "refused", "reason": str(error)}
            return refused | {"size": size, "device": device, "parameters": parameters}
        flops = count_flops(network, architecture)
    counted = {"outcome": PASSED} if flops else {"outcome": "not counted"}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return counted | {"size": size, "device": device, "parameters": parameters, "flops": flops}


def metadata(size: int) -> Any:
    """Return a description of ten classes of colour images."""
    from reprise.data.formats.packed import Metadata

    facts = {"data": "", "classes": list("0123456789"), "image_size": size, "channels": 3}
    return Metadata(**facts, mean=[0.5] * 3, std=[0.5] * 3, counts={}, source_sha256="", splits_sha256="", sha256={})


def trained(name: str, folder: str) -> Row:
    """Train, save, load and evaluate a model at the smallest size that is not refused."""
    import timm

    row: Row = {}
    native = max(timm.get_pretrained_cfg(name).input_size[1:])
    for size in (*SIZES, *([native] if native not in SIZES else [])):
        started = time.perf_counter()
        try:
            row = {"size": size, "outcome": _trained(name, size, Path(folder))}
        except UserError as error:
            row = {"size": size, "outcome": "refused", "reason": str(error)}
            continue
        row["seconds"] = time.perf_counter() - started
        break
    return row


def _trained(name: str, size: int, folder: Path) -> str:
    import torch

    from reprise.evaluation.evaluate import evaluate
    from reprise.model.backbone import load_model
    from reprise.training.train import train
    from synthetic import write_packed

    data = folder / str(size)
    if not data.exists():
        write_packed(data, 16, size, 3, others=8)
    overrides = ["train.epochs=1", "train.batch_size=8", "train.threads=1", "train.reproducible=machine"]
    params = load_params(ROOT / "params.yaml", [f"model.name={name}", *overrides])
    result = train(data, params.model, params.train)
    with tempfile.TemporaryDirectory(dir=folder) as saved:
        files = [Path(saved, file) for file in ("model.safetensors", "model.json", "train.json", "history.csv")]
        result.save(*files)
        loaded = load_model(*files[:2])
    first, second = (evaluate(*made, data, 8, 10) for made in ((result.network, result.card), loaded))
    if not torch.equal(first.probabilities, second.probabilities):
        return "the loaded one differs"
    return PASSED if second.metrics["flops"] else "not counted"


def apart(work: Callable[..., Row], *arguments: str, limit: int) -> Row:
    """Return what a call gives in a process of its own, or what befell it there; limit: seconds."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_send, args=(there, work, arguments))
    started = time.perf_counter()
    process.start()
    there.close()
    try:
        row: Row = here.recv() if here.poll(limit) else {"outcome": f"no end after {limit} s"}
    except EOFError:
        row = {"outcome": "killed"}
    process.kill()
    process.join()
    return {"seconds": time.perf_counter() - started} | row


def _send(pipe: Any, work: Callable[..., Row], arguments: tuple[str, ...]) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            row = work(*arguments)
        except Exception as error:
            row = {"outcome": "traceback", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    if row["outcome"] == "not counted":
        row["reason"] = (said.getvalue().splitlines() or ["no operation seen"])[-1]
    pipe.send(row)


def main() -> None:
    before_torch(1, "machine")
    import timm

    import reprise.runtime.torchvision_repair
    import reprise.training.train  # noqa: F401 (loaded once, not in each process)

    after_torch(1, "machine")
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.touch()
    kept = {(row["stage"], row["name"]): row for row in map(json.loads, KEPT.open())}

    def once(stage: str, name: str, work: Callable[..., Row], *arguments: str, limit: int) -> Row:
        if (stage, name) not in kept:
            row = {"stage": stage, "name": name, "family": family(name)}
            kept[stage, name] = row | apart(work, name, *arguments, limit=limit)
            with KEPT.open("a") as file:
                file.write(json.dumps(kept[stage, name]) + "\n")
            print(json.dumps(kept[stage, name]), file=sys.stderr, flush=True)
        return kept[stage, name]

    def family(name: str) -> str:
        return timm.models.model_entrypoint(name).__module__.removeprefix("timm.models.")

    builds = [once("build", name, built, limit=120) for name in timm.list_models()]
    smallest: dict[str, Row] = {}
    for row in sorted(builds, key=lambda row: (row["outcome"] != PASSED, row.get("parameters", 0))):
        smallest.setdefault(row["family"], row)
    with tempfile.TemporaryDirectory() as folder:
        trainings = [once("train", smallest[key]["name"], trained, folder, limit=600) for key in sorted(smallest)]
    report(builds, trainings)


def report(builds: list[Row], trainings: list[Row]) -> None:
    """Print the tables."""
    totals, good = Counter(row["family"] for row in builds), Counter(row["family"] for row in passing(builds))
    print(f"# timm's models\n\n`python benchmarks/timm_models.py`: {machine()}; one thread.\n")
    print(
        f"{len(passing(builds)):,} of {len(builds):,} models build, run and are counted; the smallest that does trains,"
    )
    print(f"is saved, loaded and evaluated in {len(passing(trainings))} of {len(trainings)} families.\n")
    print(
        "## The smallest model of each family\n\nSize: of the images in training, the smallest that is not refused of"
    )
    print(f"{', '.join(map(str, SIZES))} and timm's own; GFLOPs are of timm's own. Seconds: of training,")
    print("saving, loading and evaluating twice.\n")
    print_header("family: model", "of the family build", "parameters", "GFLOPs", "size", "s", "outcome")
    measured = {row["name"]: row for row in builds}
    for row in trainings:
        family, facts = row["family"], measured[row["name"]]
        figures = f"{facts.get('parameters') or 0:,}", f"{(facts.get('flops') or 0) / 1e9:.2f}", row.get("size", "-")
        share = f"{good[family]} of {totals[family]}"
        print_row(f"{family}: `{row['name']}`", share, *figures, f"{row['seconds']:.1f}", said(row))
    print("\n## Models that do not build, run or count\n")
    print_header("model", "parameters", "size", "outcome")
    for row in builds:
        if row["outcome"] != PASSED:
            print_row(f"`{row['name']}`", f"{row.get('parameters') or 0:,}", row.get("size", "-"), said(row))


def passing(rows: list[Row]) -> list[Row]:
    """Return the rows of what passes."""
    return [row for row in rows if row["outcome"] == PASSED]


def said(row: Row) -> str:
    """Return the outcome with its reason, fit for a cell."""
    reason = f": {row['reason']}" if "reason" in row else ""
    return (row["outcome"] + reason).replace("|", "\\|")


if __name__ == "__main__":
    main()
