"""What became of an export: the metrics that Git keeps, and the differences that depend on the CPU, apart from them."""

import json
from dataclasses import dataclass
from pathlib import Path

ONNX, REASON = "model.onnx", "not-exported.txt"


@dataclass(frozen=True)
class Export:
    """An export that passed the parity gate or, with a reason, none.

    images: number compared; changed: those whose predicted class differs although torch's two best probabilities are
    more than 2 * tolerance apart; size_mb: of the file, in 10^6 bytes. What follows depends on the CPU: largest
    difference of a probability; ties: images whose class differs between two that are as good as equal.
    """

    reason: str = ""
    tolerance: float = 0.0
    images: int = 0
    changed: int = 0
    size_mb: float = 0.0
    largest: float = 0.0
    ties: int = 0

    def save(self, folder: Path, metrics: Path, exact: Path) -> None:
        """Write the metrics and exact differences as JSON and, where there is no model, the reason to the folder."""
        tracked: dict[str, object] = {"exported": not self.reason, "passed": not self.reason}
        if self.reason:
            tracked["reason"] = self.reason
            folder.mkdir(exist_ok=True)
            (folder / REASON).write_text(f"{self.reason}\n", encoding="utf-8")
        else:
            tracked |= {name: getattr(self, name) for name in ("tolerance", "images", "changed", "size_mb")}
        metrics.write_text(json.dumps(tracked, indent=2) + "\n", encoding="utf-8")
        exact.write_text(json.dumps({"largest_difference": self.largest, "ties": self.ties}) + "\n", encoding="utf-8")

    def line(self) -> str:
        """Return a line for the terminal."""
        if self.reason:
            return f"export: no ONNX file: {self.reason}"
        compared = f"onnxruntime agrees with torch on {self.images:,} images within {self.tolerance:g}"
        return f"export: {compared} -> models/export/{ONNX}"
