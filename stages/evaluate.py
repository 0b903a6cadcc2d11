"""Stage 4: measure the published model on the test split, on the terms it was trained on."""

from pathlib import Path

from reprise.model.artifact import load_card
from reprise.params.dependencies import Dependencies, param_values
from reprise.params.load import load_params
from reprise.params.reset import DEFAULTS
from reprise.runtime.atomic import publishing
from reprise.runtime.checksums import write_sealed
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import one_line_errors


def main() -> None:
    """Read the params and the model, evaluate, publish."""
    dependencies = Dependencies.of_stage("evaluate")
    names = [f"metrics/{name}" for name in ("test.json", "per_class.csv", "confusion.csv", "risk_coverage.csv")]
    names += ["data/predictions.csv", "metrics/groups.csv", "data/groups.csv", "models/confidence.json"]
    names += ["models/README.md", "data/records/evaluate.json"]
    with publishing(*map(Path, names), check=dependencies.check) as (*outs, groups, members, fit, page, record):
        params = dependencies.begin()
        weights, description = Path("models/model.safetensors"), Path("models/model.json")
        dependencies.check_earlier("train")
        provenance = load_card(description).provenance
        settings = provenance.threads, provenance.reproducible
        before_torch(*settings)
        from reprise.data.formats.packed import load_metadata
        from reprise.evaluation.evaluate import check_budget, evaluate
        from reprise.evaluation.fitting import fit_confidence
        from reprise.evaluation.gates import check_gates, check_names
        from reprise.evaluation.model_page import model_card
        from reprise.model.backbone import load_model

        after_torch(*settings)
        dependencies.check_code()
        network, card = load_model(weights, description)
        data, asked = Path("data/processed"), params.evaluate
        check_names(asked.gates, card.classes)
        confidence = fit_confidence(network, card, data, asked)
        result = evaluate(network, card, data, asked.batch_size, asked.calibration_bins, asked.metrics, confidence)
        write_sealed(fit, confidence.model_dump())
        check_budget({**result.metrics, "size_mb": weights.stat().st_size / 1e6}, params.evaluate.budget)
        check_gates(result, params.evaluate.gates, params.evaluate.gate_confidence)
        result.save(*outs)
        result.groups.save(groups, members, result.ids)
        trained_with, metadata = card.record.params if card.record else {}, load_metadata(data)
        named = metadata.model_copy(update={"data": params.data.title or metadata.data})
        defaults = param_values(load_params(DEFAULTS))
        page.write_text(model_card(card, named, trained_with, result, params.evaluate.title, defaults), "utf-8")
        dependencies.record().save(record)
    print(f"evaluate: {card.architecture.model_name} on {len(result.ids):,} test images -> metrics/test.json")
    print(result.table())


if __name__ == "__main__":
    with one_line_errors():
        main()
