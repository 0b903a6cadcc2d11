"""Stage 4: measure the published model on the test split, on the terms it was trained on."""

from pathlib import Path

from reprise.card import load_card
from reprise.dependencies import Dependencies
from reprise.errors import one_line_errors
from reprise.process import after_torch, before_torch
from reprise.publish import publishing


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
        from reprise.data.packed import load_metadata
        from reprise.evaluation import evaluate
        from reprise.model import load_model
        from reprise.model_card import model_card

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
