"""Stage 2: decode, resize, split and check the images: packed arrays in data/processed, a report in data/report."""

import json
from pathlib import Path

from reprise.data.prepare.corrections import CORRECTIONS
from reprise.data.prepare.prepare import preprocess
from reprise.data.prepare.report import write_report
from reprise.params.dependencies import Dependencies
from reprise.runtime.atomic import publishing
from reprise.runtime.environment import cpus
from reprise.runtime.errors import UserError, one_line_errors, say


def main() -> None:
    """Read the params, prepare, publish."""
    dependencies = Dependencies.of_stage("preprocess")
    names = "data/processed", "data/report", "metrics/data.json", "data/records/preprocess.json"
    with publishing(*map(Path, names), check=dependencies.check) as (processed, report, metrics, record):
        params = dependencies.begin()
        dependencies.check_earlier("download")
        try:
            metadata, findings = preprocess(Path("data/raw"), processed, params.data.prepare, cpus(), Path(CORRECTIONS))
        except UserError as error:
            raise UserError(f"{error}\nwith all as it was, `dvc repro` brings the results from before back") from None
        write_report(findings, report)
        metrics.write_text(json.dumps(findings.metrics(), indent=2) + "\n", encoding="utf-8")
        dependencies.record().save(record)
    say(f"preprocess: {metadata.summary()} -> data/processed, data/report")


if __name__ == "__main__":
    with one_line_errors():
        main()
