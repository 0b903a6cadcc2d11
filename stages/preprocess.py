"""Stage 2: decode, resize, split and check the images: packed arrays in data/processed, a report in data/report."""

import json
from pathlib import Path

from reprise.data.preprocess import preprocess
from reprise.data.report import write_report
from reprise.data.workers import available_cpus
from reprise.errors import one_line_errors
from reprise.params_file import load_params
from reprise.publish import publishing


def main() -> None:
    """Read the params, prepare, publish."""
    outs = (Path("data/processed"), Path("data/report"), Path("metrics/data.json"))
    with publishing(*outs) as (processed, report, metrics):
        params = load_params("params.yaml")
        metadata, findings = preprocess(
            Path("data/raw"),
            processed,
            image_size=params.data.image_size,
            val_fraction=params.data.val_fraction,
            test_fraction=params.data.test_fraction,
            seed=params.data.seed,
            workers=available_cpus(),
            channels=params.data.channels,
            resize=params.data.resize,
            on_corrupt=params.data.on_corrupt,
            on_leak=params.data.on_leak,
            group=params.data.group,
            folds=params.data.folds,
            fold=params.data.fold,
        )
        write_report(findings, report)
        metrics.write_text(json.dumps(findings.metrics(), indent=2) + "\n", encoding="utf-8")
    print(f"preprocess: {metadata.summary()} -> data/processed, data/report")


if __name__ == "__main__":
    with one_line_errors():
        main()
