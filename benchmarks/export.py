"""Export to ONNX for the smallest model of every family of timm that trains here, and what onnxruntime makes of it.

    python benchmarks/export.py > benchmarks/export.md

Claim: of 98 families' smallest models 92 are exported. A probability of 89 differs from torch's by up to 5.8e-3, in 80
by at most 1e-4: random networks round badly, torch's own differ as much from double precision, and trained ones differ
by 1e-6 to 2.3e-5. Three give NaN in torch, too, as they are made here. Batches of 1 and of 7 differ by at most 6.0e-6.
Not exported: four with attention of other than four dimensions, one that onnxruntime cannot run, one without an end
after 240 s. One trial each.

Models and image sizes are those of benchmarks/timm_models.md. Weights are random, scales of layers from 0.5 to 1,
statistics of batch norm those of the images, and the logits are brought to a mean of 0 and a standard deviation of 3,
as those of a trained network: the probabilities of a random one are nearly equal and would agree whatever happens. One
thread, 28 images.

Results are kept line by line in runs/export.jsonl; what is there is not done again, so remove it to begin anew.
"""

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import ROOT, machine, print_header, print_row
from reprise.params.load import load_params
from reprise.runtime.environment import after_torch, before_torch
from timm_models import PASSED, Row, apart, metadata, passing, said

KEPT = ROOT / "runs/export.jsonl"
FAMILY = re.compile(r"^\| (\w+): `(\w+)` \|[^|]*\| ([\d,]+) \|[^|]*\| (\d+) \| [\d.]+ \| passes \|$", re.MULTILINE)
LIMIT = 240  # seconds for a model


def exported(name: str, size: str) -> Row:
    """Export a model and compare: with torch, and rows of batches of 1 and 7 with each other."""
    import numpy as np
    import torch

    from reprise.export.onnx import NotExportableError, Pixels, export_onnx
    from reprise.export.session import open_onnx
    from reprise.model.backbone import create_network

    given = load_params(ROOT / "params.yaml", [f"model.name={name}"]).model
    network, architecture = create_network(given, metadata(int(size)), 0)
    images = pictures(int(size))
    model = as_trained(network, images)
    with tempfile.TemporaryDirectory() as folder:
        path, started = Path(folder, "model.onnx"), time.perf_counter()
        try:
            export_onnx(model, card(architecture), path)
        except NotExportableError as error:
            return {"outcome": "not exported", "reason": str(error)}
        seconds, opened = time.perf_counter() - started, open_onnx(path, 1)
    with torch.inference_mode():
        expected = Pixels(model, opened.card)(torch.from_numpy(images))[0].numpy()
    sevens, ones = (
        np.concatenate([opened(images[start : start + step]) for start in range(0, len(images), step)])
        for step in (7, 1)
    )
    numbers = {"difference": float(abs(sevens - expected).max()), "batches": float(abs(sevens - ones).max())}
    numbers["rounding"] = float(abs(in_float64(model, images) - expected).max())
    return {"outcome": PASSED, "export": seconds, "spread": float(expected.max(axis=1).mean()), **numbers}


def in_float64(model: Any, images: Any) -> Any:
    """Return the probabilities of the same network in double precision, NaN where it cannot be computed so."""
    import numpy as np
    import torch

    from reprise.augment.functional import to_unit

    pixels = to_unit(torch.from_numpy(images)).sub_(0.5).div_(0.5).double()
    try:
        with torch.inference_mode():
            return model.double()(pixels).softmax(dim=1).numpy()
    except Exception:  # a network that asks for float32 somewhere
        return np.full((1, 1), np.nan)


def pictures(size: int) -> Any:
    """Return 28 images, uint8 (28, size, size, 3): noise on colored gradients, each of its own contrast."""
    import numpy as np

    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 255, (28, 2, 2, 3))
    line = np.linspace(0, 1, size)
    ramp = np.stack([1 - line, line])
    smooth = np.einsum("nabc,ay,bx->nyxc", corners, ramp, ramp)
    noise = generator.normal(0, 1, (28, size, size, 3)) * generator.uniform(5, 60, (28, 1, 1, 1))
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def as_trained(network: Any, images: Any) -> Any:
    """Return the network with statistics of its own for batch norm, and logits of mean 0 and standard deviation 3."""
    import torch

    from reprise.augment.functional import to_unit

    pixels = to_unit(torch.from_numpy(images)).sub_(0.5).div_(0.5)
    for key, parameter in network.named_parameters():
        if parameter.ndim < 2 and not key.endswith("bias"):  # scales, some of which begin at 0 or 1e-5
            torch.nn.init.uniform_(parameter, 0.5, 1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum, module.training = 1.0, True
    with torch.no_grad():
        network(pixels)
        logits = network.eval()(pixels)

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", logits.mean(dim=0))
            self.register_buffer("factor", 3 / logits.std(dim=0))

        def forward(self, x: Any) -> Any:
            return (self.network(x) - self.mean) * self.factor

    return Scaled()


def card(architecture: Any) -> Any:
    """Return a card for such a model."""
    from reprise.model.artifact import ModelCard, Preprocessing, Training
    from reprise.runtime.provenance import trace

    size = architecture.image_size
    return ModelCard(
        architecture=architecture,
        classes=list("0123456789"),
        preprocessing=Preprocessing(image_size=size, channels=3, mean=[0.5] * 3, std=[0.5] * 3),
        training=Training(data="", splits_sha256="", pretrained=False, epoch=0, seed=0),
        provenance=trace("machine", 1, "cpu", {}, b"", "reprise.model.backbone"),
    )


def main() -> None:
    before_torch(1, "machine")
    import timm  # noqa: F401 (loaded once, not in each process)

    import reprise.export.parity  # noqa: F401

    after_torch(1, "machine")
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.touch()
    kept = {row["name"]: row for row in map(json.loads, KEPT.open())}
    models = FAMILY.findall((ROOT / "benchmarks/timm_models.md").read_text())
    for family, name, _, size in sorted(models, key=lambda model: int(model[2].replace(",", ""))):
        if name not in kept:
            kept[name] = {"family": family, "name": name, "size": size} | apart(exported, name, size, limit=LIMIT)
            with KEPT.open("a") as file:
                file.write(json.dumps(kept[name]) + "\n")
            print(json.dumps(kept[name]), file=sys.stderr, flush=True)
    report(sorted(kept.values(), key=lambda row: -row.get("difference", 9)))


def report(rows: list[Row]) -> None:
    """Print the table."""
    good = passing(rows)
    print(f"# Export to ONNX\n\n`python benchmarks/export.py`: {machine()}; one thread.\n")
    print(f"{len(good)} of {len(rows)} models are exported; the largest difference of a probability between torch and")
    print(f"onnxruntime is {max(row['difference'] for row in good):.1e}, between batches of 1 and of 7")
    print(f"{max(row['batches'] for row in good):.1e}. Size: of the images. s: of the export alone.\n")
    print_header(
        "family: model", "size", "s", "torch - onnxruntime", "torch - float64", "batches of 7 - of 1", "outcome"
    )
    for row in rows:
        numbers = [f"{row[name]:.1e}" if name in row else "" for name in ("difference", "rounding", "batches")]
        seconds = f"{row['export']:.1f}" if "export" in row else ""
        print_row(f"{row['family']}: `{row['name']}`", row["size"], seconds, *numbers, said(row))


if __name__ == "__main__":
    main()
