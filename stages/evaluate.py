"""Stage 4: measure the published model on the test split, on the terms it was trained on."""

from pathlib import Path

from reprise.model.artifact import load_card
from reprise.params.dependencies import Dependencies
from reprise.runtime.atomic import publishing
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import one_line_errors


def main() -> None:
    """Read the params and the model, evaluate, publish."""
    dependencies = Dependencies.of_stage("evaluate")
    names = ["metrics/test.json", "metrics/per_class.csv", "metrics/confusion.csv", "data/predictions.csv"]
    names += ["models/README.md", "data/records/evaluate.json"]
    with publishing(*map(Path, names), check=dependencies.check) as (*outs, page, record):
        params = dependencies.begin()
        facts, weights = Path("models/model.json"), Path("models/model.safetensors")
        dependencies.check_earlier("train")
        trained = load_card(facts)
        terms = trained.provenance
        before_torch(terms.threads, terms.reproducible)
        from reprise.data.formats.packed import load_metadata
        from reprise.evaluation.evaluate import evaluate
        from reprise.evaluation.model_page import model_card
        from reprise.model.backbone import load_model

        after_torch(terms.threads, terms.reproducible)
        dependencies.check_code()
        network, card = load_model(weights, facts)
        data, given = Path("data/processed"), params.evaluate
        bins = given.calibration_bins
        result = evaluate(network, card, data, given.batch_size, bins, given.metrics)
        result.save(*outs)
        settings = trained.record.params if trained.record else {}
        page.write_text(model_card(card, load_metadata(data), settings, result, bins), encoding="utf-8")
        dependencies.record().save(record)
    print(f"evaluate: {card.architecture.model_name} on {len(result.ids):,} test images -> metrics/test.json")
    print(result.table())


if __name__ == "__main__":
    with one_line_errors():
        main()
