"""Makes torchvision from the package index import beside a CPU-only torch, whoever imports it.

The wheel's compiled operators are then missing, and torchvision fails with `operator torchvision::nms does not exist`
when it registers their fake kernels. Declaring the two schemas is enough: nothing here calls them. Where the operators
exist, nothing is touched. Nothing is loaded before torchvision is asked for.
"""

import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class TorchvisionRepair(MetaPathFinder):
    """Repairs in the moment in which torchvision is first imported, then lets the import go on."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Find nothing: the finders after this one do."""
        if fullname == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            repair()


def repair() -> None:
    """Load torchvision's operators if this torch can; otherwise declare the ones that its import asks for."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    for library in Path(spec.origin).parent.glob("_C.*"):
        with suppress(OSError):  # built against another torch: its operators stay missing
            torch.ops.load_library(library)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", SCHEMA)
            warnings.filterwarnings("ignore", message="Failed to load image Python extension")
