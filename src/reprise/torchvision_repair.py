"""Makes torchvision from the package index import beside a CPU-only torch; import this before torchvision does.

The wheel's compiled operators are then missing, and torchvision fails with `operator torchvision::nms does not exist`
when it registers their fake kernels. Declaring the two schemas is enough: nothing here calls them. Where the
operators exist, nothing is touched.
"""

import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def repair() -> None:
    """Load torchvision's operators if this torch can; otherwise declare the ones that its import asks for."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C.*"):
        with suppress(OSError):  # built against another torch: its operators stay missing
            torch.ops.load_library(library)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _SCHEMA)
            warnings.filterwarnings("ignore", message="Failed to load image Python extension")


repair()
