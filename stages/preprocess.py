"""Stage 2: decode, resize and split the images into packed arrays in data/processed."""

from pathlib import Path

from reprise.data.preprocess import preprocess
from reprise.data.workers import available_cpus
from reprise.errors import one_line_errors
from reprise.params import load_params
from reprise.publish import publishing


def main() -> None:
    """Read the params, prepare, publish."""
    with publishing(Path("data/processed")) as (processed,):
        params = load_params("params.yaml")
        metadata = preprocess(
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
            group=params.data.group,
            folds=params.data.folds,
            fold=params.data.fold,
        )
    print(f"preprocess: {metadata.summary()} -> data/processed")


if __name__ == "__main__":
    with one_line_errors():
        main()
