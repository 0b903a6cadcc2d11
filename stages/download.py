"""Stage 1: bring the raw images in, as one archive in data/raw."""

from pathlib import Path

from reprise.data.sources import download
from reprise.errors import one_line_errors
from reprise.params import load_params
from reprise.publish import publishing


def main() -> None:
    """Read the params, fetch, publish."""
    with publishing(Path("data/raw")) as (raw,):
        params = load_params("params.yaml")
        source = download(
            params.data.name,
            raw,
            own=Path("data/own"),
            downloads=Path("data/.downloads"),
            mirror=params.data.mirror,
            variant=params.data.split,
        )
    print(f"download: {source.name}, {source.images:,} images in {len(source.classes)} classes -> data/raw")


if __name__ == "__main__":
    with one_line_errors():
        main()
