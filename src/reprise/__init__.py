"""Reprise: image classification that you can run again, compare and trust.

    from reprise import TIMMBackbone, LitClassifier, MNISTLitModule, PackedDataModule, load_model, mask_outputs

The library takes arguments and returns results: it reads no params.yaml, working directory, clock or environment, so
every function can be called from a notebook. Packages import in one direction: runtime, params, data, augment, loader,
model, features, training, evaluation, export, inference, repo, comparison, diagnostics, commands, cli.
"""

import sys
from importlib import import_module

if sys.platform == "win32":
    raise ImportError("Reprise needs a POSIX system, such as Linux: on Windows run it in WSL 2")

import reprise.runtime.code  # noqa: F401  first: it looks at the code before the rest is loaded
from reprise.runtime.torchvision_repair import TorchvisionRepair

sys.meta_path.insert(0, TorchvisionRepair())

# loaded when they are asked for: `import reprise` loads no torch
NAMES = {
    "LitClassifier": "reprise.training.module",
    "MNISTLitModule": "reprise.training.module",
    "PackedDataModule": "reprise.loader.datamodule",
    "TIMMBackbone": "reprise.model.backbone",
    "load_model": "reprise.inference.predict",
    "mask_outputs": "reprise.loader.batches",
}
__all__ = ["LitClassifier", "MNISTLitModule", "PackedDataModule", "TIMMBackbone", "load_model", "mask_outputs"]


def __getattr__(name: str) -> object:
    """Return one of NAMES."""
    if name not in NAMES:
        raise AttributeError(f"module 'reprise' has no attribute {name!r}")
    return getattr(import_module(NAMES[name]), name)
