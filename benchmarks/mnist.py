"""MNIST through the real torchvision code, from a loopback server, through all four stages in a temporary clone.

    python benchmarks/mnist.py FOLDER_WITH_THE_FOUR_FILES [key=value ...]

FOLDER holds the official train-images-idx3-ubyte.gz etc., whose checksums torchvision verifies. Prints each stage's
summary, the test metrics and the wall time. The claim is a test accuracy of at least 0.99 in a few epochs with a small
model; the result is in benchmarks/README.md.
"""

import argparse
import functools
import http.server
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ["train.epochs=4", "train.batch_size=128", "train.augment.rotate=8", "train.lr=0.005"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves without a word."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Does not mind that torchvision hangs up on its first request, which only asks for redirects."""

    def handle_error(self, *arguments: object) -> None:
        """Say nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", default=SETTINGS)
    arguments = parser.parse_args()
    handler = functools.partial(Quiet, directory=str(arguments.folder.resolve()))
    with (
        tempfile.TemporaryDirectory() as clone,
        Server(("127.0.0.1", 0), handler) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://127.0.0.1:{server.server_port}/"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), clone], check=True)
        changes = ["data.name=mnist", f"data.mirror={mirror}", *arguments.overrides]
        options = [option for change in changes for option in ("-S", change)]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        start = time.monotonic()
        subprocess.run(["dvc", "exp", "run", *options], cwd=clone, check=True, env={**os.environ, "PATH": path})
        print(f"{time.monotonic() - start:.0f} s in all: {' '.join(arguments.overrides)}")
        server.shutdown()


if __name__ == "__main__":
    main()
