"""Decoding and packing: images per second, memory beyond the packed arrays, and equal bytes whatever the processes.

    python benchmarks/preprocess.py FOLDER          images in [train|val|test/]CLASS/, as in data/own
    python benchmarks/preprocess.py --synthetic 25000 50000 100000

The claims: at least 4,000 images/s of 32 x 32 JPEGs with two processes, less than 600 MB of memory (all processes
together) beyond the packed arrays, the same bytes with one process and with two, and time and memory that grow linearly
with the number of images. Prints a Markdown table; the result is in benchmarks/README.md.
"""

import argparse
import hashlib
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from measure import ROOT, PeakMemory, machine
from reprise.data.download.sources import download
from reprise.data.formats.raw import RawImage, write_archive
from reprise.data.prepare.prepare import preprocess
from reprise.params.load import load_params


def measure(raw: Path, folder: Path, workers: int) -> tuple[float, int, int, str]:
    """Return seconds, peak bytes, images and a digest of all that was written."""
    memory = PeakMemory()
    memory.start()
    start = time.monotonic()
    metadata, _ = preprocess(raw, folder, load_params(ROOT / "params.yaml").data, workers)
    seconds = time.monotonic() - start
    memory.done.set()
    memory.join()
    digest = hashlib.sha256((folder / "metadata.json").read_bytes())  # it holds the checksums of the others
    return seconds, memory.peak, sum(metadata.counts.values()), digest.hexdigest()[:12]


def synthetic(count: int) -> Iterator[RawImage]:
    """Yield JPEGs of 32 x 32 in ten classes, no two alike."""
    blocks = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    for index, block in enumerate(blocks):
        buffer = io.BytesIO()
        Image.fromarray(block).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        yield RawImage("unsplit", str(index % 10), f"{index:06d}.jpg", buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--synthetic", nargs="+", type=int, default=[], metavar="IMAGES")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    print(
        "| images | processes | seconds | images/s | peak, MB | SHA-256 |\n| ---: | ---: | ---: | ---: | ---: | --- |"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for number, size in enumerate([None] * bool(arguments.folder) + arguments.synthetic):
            raw = Path(temporary, f"raw{number}")
            if size is None:
                own = ["data.name=folder", f"data.path={arguments.folder.resolve()}"]
                download(load_params(ROOT / "params.yaml", own).data, raw, Path(temporary))
            else:
                write_archive(raw, "synthetic", map(str, range(10)), synthetic(size))
            for workers in arguments.workers:
                out = Path(temporary, f"{number}-{workers}")
                seconds, peak, images, digest = measure(raw, out, workers)
                rate, megabytes = images / seconds, peak / 1e6
                print(
                    f"| {images:,} | {workers} | {seconds:.1f} | {rate:,.0f} | {megabytes:.0f} | `{digest}` |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
