"""Stage 4: measure the published model on the test split, on the terms it was trained on."""

from pathlib import Path

from reprise.card import load_card
from reprise.errors import one_line_errors
from reprise.params import load_params
from reprise.process import after_torch, before_torch
from reprise.publish import publishing


def main() -> None:
    """Read the params and the model, evaluate, publish."""
    metrics = Path("metrics")
    with publishing(
        metrics / "test.json", metrics / "per_class.csv", metrics / "confusion.csv", Path("data/predictions.csv")
    ) as outs:
        params = load_params("params.yaml")
        facts, weights = Path("models/model.json"), Path("models/model.safetensors")
        terms = load_card(facts).provenance
        before_torch(terms.threads, terms.reproducible)
        from reprise.evaluation import evaluate
        from reprise.model import load_model

        after_torch(terms.threads, terms.reproducible)
        network, card = load_model(weights, facts)
        settings = params.evaluate
        result = evaluate(
            network, card, Path("data/processed"), settings.batch_size, settings.calibration_bins, settings.metrics
        )
        result.save(*outs)
    print(f"evaluate: {card.architecture.model_name} on {len(result.ids):,} test images -> metrics/test.json")
    print(result.table())


if __name__ == "__main__":
    with one_line_errors():
        main()
