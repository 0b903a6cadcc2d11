"""The Markdown page of a published model: data, training, metrics with confidence intervals, calibration and limits.

The same arguments give the same bytes.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from timm import get_pretrained_cfg

from reprise.data.formats.packed import Metadata
from reprise.evaluation.calibration import Calibration
from reprise.evaluation.evaluate import Evaluation, shown
from reprise.evaluation.groups import Groups
from reprise.model.artifact import ModelCard
from reprise.params.load import flat
from reprise.runtime.errors import brief
from reprise.runtime.intervals import wilson
from reprise.runtime.markup import HIDDEN, table, text

# as their publishers state it; of other data sets it is not known here
LICENSES = {
    **dict.fromkeys(("clevr_classification", "digits", "semeion"), "CC BY 4.0"),
    **dict.fromkeys(("kmnist", "oxford_iiit_pet"), "CC BY-SA 4.0"),
    **dict.fromkeys(("eurosat", "fashion_mnist", "omniglot"), "MIT"),
    "pcam": "CC0",
}
KEPT = "The code has changed since: `reprise keep` showed in a short training that it gives the same bits as {}."
FEW = 100  # a class with fewer test images is named among the limits


def model_card(
    card: ModelCard,
    metadata: Metadata,
    settings: dict[str, Any],
    evaluation: Evaluation,
    title: str | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Return the page, which begins with the metadata block of Hugging Face's model cards.

    settings: the parameters of model and training, {section: {name: value}}; defaults: by dotted name, of which those
    that stand so fold away. title: the project's name.
    """
    project = f"{text(title)}: " if title else ""
    name, images = card.architecture.model_name, len(evaluation.labels)
    right = int(evaluation.confusion.diag().sum())
    return "\n\n".join(
        [
            _metadata(title or f"{name}-{metadata.data}", metadata, evaluation),
            f"# {project}{text(name)}, trained on {text(metadata.data)}",
            f"{_share(right, images)} of {images:,} test images are classified correctly (95 % interval: Wilson's). "
            "Written by the stage `evaluate`; `model.json` holds what is needed to use the weights.",
            "## Data",
            _properties(_data(card, metadata)),
            "## Training",
            _training(card, settings, defaults),
            "## Metrics",
            _metrics(evaluation, right, images),
            "## Classes",
            _classes(evaluation),
            "## Groups",
            _groups(evaluation.groups),
            "## Calibration",
            _calibration(evaluation.calibration) + _confidence(evaluation),
            "## Limits",
            _limits(card, metadata, evaluation),
            "## Provenance",
            _properties(flat({**card.provenance.model_dump(), "weights_sha256": card.weights_sha256})),
            *([KEPT.format(card.kept[0])] if card.kept else []),
        ]
    ) + "\n"  # fmt: skip


def _data(card: ModelCard, metadata: Metadata) -> dict[str, str]:
    kept, seen = card.preprocessing.image_size, card.architecture.image_size
    size = f"{kept} x {kept}" + (f", resized to {seen} x {seen}" if seen != kept else "")
    return {
        "data set": metadata.data,
        "license of the data": LICENSES.get(card.training.data, "not known"),
        "classes": f"{len(metadata.classes):,}",
        **{f"{split} images": f"{count:,}" for split, count in metadata.counts.items()},
        "left out": f"{metadata.dropped:,}",
        **({"labels corrected": f"{metadata.relabeled:,}"} if metadata.relabeled else {}),
        **{f"test images {what} by corrections": f"{n:,}" for what, n in (metadata.test_corrections or {}).items()},
        "input": f"{size}, {'gray' if card.preprocessing.channels == 1 else 'RGB'}, {card.preprocessing.resize}",
        "archive, SHA-256": metadata.source_sha256,
        "splits, SHA-256": metadata.splits_sha256,
    }


def _metadata(name: str, metadata: Metadata, evaluation: Evaluation) -> str:
    """Return what a hub reads (https://huggingface.co/docs/hub/model-cards): YAML, each value written as JSON."""
    measured = {key: evaluation.metrics.get(key) for key in ("accuracy", "f1")}
    result: dict[str, Any] = {
        "task": {"type": "image-classification"},
        "dataset": {"type": metadata.data, "name": metadata.data, "split": "test"},
        "metrics": [{"type": key, "value": value} for key, value in measured.items() if value is not None],
    }
    block = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm"],
        "metrics": [each["type"] for each in result["metrics"]],
        "model-index": [{"name": name, "results": [result]}],
    }
    lines = [f"{key}: {HIDDEN.sub('?', json.dumps(value, ensure_ascii=False))}" for key, value in block.items()]
    return "\n".join(["---", *lines, "---"])


def _training(card: ModelCard, settings: dict[str, Any], defaults: Mapping[str, Any]) -> str:
    origin = card.training.start
    published = get_pretrained_cfg(card.architecture.model_name)
    known = published if published and origin and origin.source in (published.hf_hub_id, published.url) else None
    terms = f"license: {text((known and known.license) or 'not known')}"
    start = f"the weights {text(origin.source)} ({terms}; SHA-256 {origin.sha256})" if origin else "random weights"
    averaged, kind = "averaged " if card.training.averaged else "", card.training.head or "epoch"
    values = flat(settings)
    usual = {key: value for key, value in values.items() if key in defaults and defaults[key] == value}
    own = {key: value for key, value in values.items() if key not in usual}
    folded = f"\n\n<details><summary>{len(usual)} at their defaults</summary>\n\n{_properties(usual)}\n</details>"
    return (
        f"From {start}, seed {card.training.seed}; these are the {averaged}weights of {kind} {card.training.epoch}, "
        f"which validates best.\n\n{_properties(own) if own else ''}{folded if usual else ''}"
    )


def _metrics(evaluation: Evaluation, right: int, images: int) -> str:
    rows = [["accuracy", f"{right / images:.4f}", _interval(right, images)]]
    rows += [[text(name), shown(value), ""] for name, value in evaluation.metrics.items() if name != "accuracy"]
    note = evaluation.note()
    return table(["metric", "test", "95 % interval"], rows) + (f"\n\n{text(note)}." if note else "")


def _classes(evaluation: Evaluation) -> str:
    rows = [
        [text(name), f"{images:,}", _share(found, images), _share(found, claimed)]
        for name, found, images, claimed in evaluation.class_counts()
    ]
    return table(["class", "test images", "recall (95 % interval)", "precision (95 % interval)"], rows)


def _groups(found: Groups) -> str:
    rows = []
    for each in found.judged[:5]:
        names = text(each.name), text(found.range_of(each))
        rows.append([*names, f"{each.images:,}", _share(each.right, each.images), f"{each.p:.2g}"])
    header = ["group", "values", "test images", "accuracy (95 % interval)", "p, Holm"]
    return f"By Holm-corrected tests, {text(found.sentence())}.\n\n{table(header, rows)}"


def _calibration(found: Calibration) -> str:
    rows = [
        [f"{each.low:.3f} to {each.high:.3f}", f"{each.images:,}", f"{each.confidence:.4f}", f"{each.accuracy:.4f}"]
        for each in found.bins
    ]
    return (
        f"The model is {found.confidence:.4f} confident on average and right in {found.accuracy:.4f} of cases.\n\n"
        + table(["confidence", "test images", "mean confidence", "accuracy"], rows)
    )  # fmt: skip


def _confidence(evaluation: Evaluation) -> str:
    """Return what was fitted, with what came of it on the test images; "" if nothing was."""
    fitted = evaluation.confidence.model_dump(exclude={"weights_sha256"}, exclude_defaults=True)
    if not fitted:
        return ""
    rows = [
        [name, *(f"{value:.4f} ({low:.4f} to {high:.4f})" for value, low, high in found)]
        for name, found in evaluation.measured.items()
    ]
    shortened = {name: brief(str(value), 300) for name, value in fitted.items()}  # by class, there are many thresholds
    header = ["test", "measured (95 % interval)", "without the temperature"]
    said = "Fitted on the validation images, which also chose the epoch, and measured on the test images:"
    broken = f"\n\n**{text(evaluation.broken_promises().capitalize())}.**" if evaluation.broken_promises() else ""
    return f"\n\n{said}\n\n{_properties(shortened)}\n\n{table(header, [[*row, ''][:3] for row in rows])}{broken}"


def _limits(card: ModelCard, metadata: Metadata, evaluation: Evaluation) -> str:
    counts = evaluation.class_counts()
    _, name, found, images = min((found / images, name, found, images) for name, found, images, _ in counts if images)
    absent = sum(images == 0 for _, _, images, _ in counts)
    few = sum(0 < images < FEW for _, _, images, _ in counts)
    size = min(card.preprocessing.image_size, card.architecture.image_size)
    limits = [
        f"It knows {len(card.classes):,} classes and nothing else: any image is given one of them"
        f"{', or unknown' * (evaluation.confidence.answer_log_odds is not None)}.",
        f"It sees {size} x {size} pixels; what is lost at that size is lost to it.",
        f"The test images come from the same source as the training images ({text(metadata.data)}); on others, "
        "expect less.",
        card.training.head == "knn head"
        and "It holds the features of every training image: hand it out as you would hand out those images.",
        found < images
        and f"Weakest class: {text(name)}, {found:,} of {images:,} found, recall {_share(found, images)}.",
        few and f"Classes with fewer than {FEW} test images: {few:,}; see the width of their intervals.",
        absent and f"Classes without a test image: {absent:,}; nothing is known of them.",
        metadata.dropped
        and f"Left out, unreadable, in a later split too or by corrections: {metadata.dropped:,} images.",
    ]
    return "\n".join(f"- {limit}" for limit in limits if limit)


def _properties(facts: dict[str, Any]) -> str:
    return table(["", ""], [[text(name), text(value)] for name, value in facts.items()])


def _share(successes: int, trials: int) -> str:
    return f"{successes / trials:.4f} ({_interval(successes, trials)})" if trials else "none"


def _interval(successes: int, trials: int) -> str:
    low, high = wilson(successes, trials)
    return f"{low:.4f} to {high:.4f}"
