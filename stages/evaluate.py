"""Stage 4: measure the published model on the test split, on the terms it was trained on."""

from pathlib import Path

from reprise.card import load_card
from reprise.errors import one_line_errors
from reprise.params_file import load_params
from reprise.process import after_torch, before_torch
from reprise.publish import publishing


def main() -> None:
    """Read the params and the model, evaluate, publish."""
    metrics = Path("metrics")
    with publishing(
        metrics / "test.json",
        metrics / "per_class.csv",
        metrics / "confusion.csv",
        Path("data/predictions.csv"),
        Path("models/README.md"),
    ) as (*outs, page):
        params = load_params("params.yaml")
        facts, weights = Path("models/model.json"), Path("models/model.safetensors")
        terms = load_card(facts).provenance
        before_torch(terms.threads, terms.reproducible)
        from reprise.data.packed import load_metadata
        from reprise.evaluation import evaluate
        from reprise.model import load_model
        from reprise.model_card import model_card

        after_torch(terms.threads, terms.reproducible)
        network, card = load_model(weights, facts)
        data, given = Path("data/processed"), params.evaluate
        bins = given.calibration_bins
        result = evaluate(network, card, data, given.batch_size, bins, given.metrics)
        result.save(*outs)
        settings = {"model": params.model.model_dump(), "train": params.train.model_dump()}
        page.write_text(model_card(card, load_metadata(data), settings, result, bins), encoding="utf-8")
    print(f"evaluate: {card.architecture.model_name} on {len(result.ids):,} test images -> metrics/test.json")
    print(result.table())


if __name__ == "__main__":
    with one_line_errors():
        main()
