"""What each kind of augmentation costs: microseconds an image, one CPU thread, batches of 128.

Claim: cropping with padding and mirroring takes at most 5 us an image of 32x32x3, on bytes, before the conversion to
float. Each figure is the time of `augment` with one kind switched on, less that of the conversion alone (its own line;
for mixup and cutmix, less nothing: they are steps of their own), the least of 7 rounds over all kinds in turn.

    python benchmarks/augment.py
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from measure import machine
from reprise.augment.pipeline import augment, mix
from reprise.loader.batches import stateless_generator
from reprise.params.load import load_params
from reprise.params.schema import AugmentParams
from reprise.runtime.environment import after_torch

BATCH, ROUNDS, REPEATS = 128, 7, 20
SHAPES = {"28x28x1": (28, 1), "32x32x3": (32, 3)}
NOTHING = "conversion to float alone"
KINDS: dict[str, dict[str, object]] = {
    NOTHING: {},
    "flip": {"flip": True},
    "crop 4": {"crop": 4},
    "crop 4 + flip": {"crop": 4, "flip": True},
    "rotate + scale + shift": {"rotate": 10, "scale": 0.1, "shift": 0.08},
    "resized_crop": {"resized_crop": 0.35},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 0.4},
    "saturation": {"saturation": 0.4},
    "hue": {"hue": 0.1},
    "randaugment": {"policy": "randaugment"},
    "trivialaugment": {"policy": "trivialaugment"},
    "cutout": {"cutout": 0.25},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1},
}
GENERATORS = partial(stateless_generator, 0, 0, 0)


def step(kind: str, size: int, channels: int) -> Callable[[], object]:
    """Return one kind of augmentation of one batch, to be called."""
    default = load_params(Path(__file__).parents[1] / "params.yaml").train.augment.model_dump()
    off = {name: value if isinstance(value, str) else 0 for name, value in default.items()}
    params = AugmentParams.model_validate(off | {"flip": False, "policy": "none"} | KINDS[kind])
    images = torch.randint(0, 256, (BATCH, size, size, channels), dtype=torch.uint8)
    if not (params.mixup or params.cutmix):
        mirror = torch.arange(BATCH) % 2 == 0 if params.flip else None
        return lambda: augment(images, params, GENERATORS, mirror)
    floats = augment(images, params, GENERATORS)
    labels = torch.arange(BATCH) % 10
    return lambda: mix(floats, labels, 10, params, GENERATORS)


def seconds(work: Callable[[], object]) -> float:
    """Return the time of one call, of several."""
    started = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return (time.perf_counter() - started) / REPEATS


def main() -> None:
    """Measure, and print the table."""
    after_torch(1, "portable")
    steps = {(kind, shape): step(kind, *SHAPES[shape]) for kind in KINDS for shape in SHAPES}
    least = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for key, work in steps.items():
            least[key] = min(least[key], seconds(work))
    print(f"{machine()}\n", flush=True)
    print("| kind |", " | ".join(f"{shape}, us" for shape in SHAPES), "|")
    print("| --- |", " | ".join("---:" for _ in SHAPES), "|")
    for kind in KINDS:
        figures = []
        for shape, (_, channels) in SHAPES.items():
            base = 0 if kind in (NOTHING, "mixup", "cutmix") else least[NOTHING, shape]
            grey = channels == 1 and kind in ("saturation", "hue")
            figures.append("-" if grey else f"{(least[kind, shape] - base) / BATCH * 1e6:.1f}")
        print(f"| {kind} |", " | ".join(figures), "|")


if __name__ == "__main__":
    main()
