"""Stage 5: the published model as one ONNX file, which must give the probabilities that torch gives."""

from pathlib import Path

from reprise.export.outcome import Export
from reprise.model.artifact import load_card
from reprise.params.dependencies import Dependencies
from reprise.runtime.atomic import publishing
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import one_line_errors, say


def main() -> None:
    """Read the params and the model, export and compare, publish."""
    dependencies = Dependencies.of_stage("export")
    names = ["models/export", "metrics/export.json", "runs/export.json", "data/records/export.json"]
    with publishing(*map(Path, names), check=dependencies.check) as (folder, *outs, record):
        params = dependencies.begin()
        dependencies.check_earlier("train")
        result = Export("switched off by export.enabled: false")
        if params.export.enabled:
            weights, description = Path("models/model.safetensors"), Path("models/model.json")
            provenance = load_card(description).provenance
            settings = provenance.threads, provenance.reproducible
            before_torch(*settings)
            from reprise.evaluation.confidence import load_confidence
            from reprise.export.parity import export_model
            from reprise.model.backbone import load_model

            after_torch(*settings)
            dependencies.check_code()
            network, card = load_model(weights, description)
            fitted, size = load_confidence(Path("models/confidence.json"), card), params.evaluate.batch_size
            result = export_model(network, card, Path("data/processed"), size, folder, fitted)
        result.save(folder, *outs)
        dependencies.record().save(record)
    say(result.line())


if __name__ == "__main__":
    with one_line_errors():
        main()
