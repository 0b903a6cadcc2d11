"""Stage 1: bring the raw images in, as one archive in data/raw."""

from pathlib import Path

from reprise.data.download.sources import download
from reprise.params.dependencies import Dependencies
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import one_line_errors


def main() -> None:
    """Read the params, fetch, publish."""
    dependencies = Dependencies.of_stage("download")
    outs = Path("data/raw"), Path("data/records/download.json")
    with publishing(*outs, check=dependencies.check) as (raw, record):
        params = dependencies.begin()
        if params.data.source.is_own and Path(params.data.source.path).is_absolute():
            why = "dvc.lock records it, and other machines lack it; a relative path, or a link, would do"
            print(f"download: warning: data.path = {params.data.source.path} is absolute: {why}")
        source = download(params.data.source, raw, Path("data/.downloads"))
        dependencies.record().save(record)
    print(f"download: {source.name}, {source.images:,} images in {len(source.classes)} classes -> data/raw")
    if source.origin and not params.data.source.sha256:
        print(f"  not pinned; to accept nothing else from now on: data.sha256: {source.origin['sha256']}")


if __name__ == "__main__":
    with one_line_errors():
        main()
