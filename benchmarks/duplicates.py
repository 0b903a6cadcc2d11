"""Near-duplicates between train and test of a real data set, and what the search for them costs.

    python benchmarks/duplicates.py ARCHIVE [--report FOLDER]     CIFAR-10 as an archive of {train,test}/CLASS/*.jpg
    python benchmarks/duplicates.py --hashes 100000 1000000       the search alone, on random hashes

The claims: of CIFAR-10's 10,000 test images, near-duplicates in train within a factor of two of the 3.3 % that were
counted with the help of people (Barz and Denzler, "Do we train on test data?", J. Imaging 2020: ciFAIR); found in
seconds; time and memory that grow nearly linearly. FOLDER gets the report, whose pictures show the pairs. The result is
in benchmarks/README.md.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from measure import ROOT, PeakMemory, machine
from reprise.data.download.sources import download
from reprise.data.prepare.duplicates import MOST_BITS, Twins, similar_images
from reprise.data.prepare.prepare import preprocess
from reprise.data.prepare.report import write_report
from reprise.params.load import load_params
from reprise.runtime.environment import cpus

COUNTED = 0.033


def search(hashes: np.ndarray, splits: np.ndarray) -> str:
    """Return what the search costs, in words."""
    memory = PeakMemory()
    memory.start()
    start = time.monotonic()
    similar_images(hashes, splits, Twins(np.full((len(hashes), 3), -1)), MOST_BITS)
    seconds = time.monotonic() - start
    memory.done.set()
    memory.join()
    return f"{len(hashes):,} hashes: {seconds:.2f} s, {memory.peak / 1e6:.0f} MB with the interpreter"


def look(archive: Path, folder: Path, report: Path | None) -> None:
    data = load_params(ROOT / "params.yaml", ["data.name=archive", f"data.path={archive.resolve()}"]).data
    download(data, folder / "raw", folder)
    memory = PeakMemory()
    memory.start()
    start = time.monotonic()
    metadata, findings = preprocess(folder / "raw", folder / "out", data, cpus())
    seconds = time.monotonic() - start
    memory.done.set()
    memory.join()
    images = len(findings.splits)
    print(
        f"preprocess: {images:,} images in {seconds:.1f} s, {images / seconds:,.0f} a second, "
        f"{memory.peak / 1e6:.0f} MB of memory"
    )
    test = findings.splits == 2
    for kind, twins in findings.twins.items():
        of_test = twins.rows[test, :2].max(axis=1)
        found = of_test >= 0
        share = found.mean() / COUNTED
        same = (findings.labels[of_test] == findings.labels[test])[found].mean() if found.any() else 1.0
        print(
            f"{kind}: {found.sum():,} of {metadata.counts['test']:,} test images ({found.mean():.2%}) also in train or "
            f"val, {share:.2f} times ciFAIR's count; {same:.1%} of them of the same class"
        )
    if report:
        write_report(findings, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--hashes", nargs="+", type=int, default=[])
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    if arguments.archive:
        with tempfile.TemporaryDirectory() as temporary:
            look(arguments.archive, Path(temporary), arguments.report)
    for count in arguments.hashes:
        random = np.random.default_rng(0)
        print(search(random.integers(0, 2**64, (count, 2), dtype=np.uint64), random.integers(0, 3, count)), flush=True)


if __name__ == "__main__":
    main()
