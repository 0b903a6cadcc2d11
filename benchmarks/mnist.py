"""MNIST through the real torchvision code, from a loopback server, through all four stages in a temporary clone.

    python benchmarks/mnist.py FOLDER_WITH_THE_FOUR_FILES [key=value ...]

The params are those of the preset mnist-99. FOLDER holds the official train-images-idx3-ubyte.gz etc., whose checksums
torchvision verifies. Prints each stage's summary, the test metrics and the wall time; then runs the stages train and
evaluate once more by themselves, as DVC does, and prints the time of each from process start to process end. The claim
is a test accuracy of at least 0.99, and that these two take less than 30 s together on two cores; the result is in
benchmarks/README.md.
"""

import argparse
import functools
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from measure import ROOT, in_turns, machine, print_header, print_row, spread


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
    parser.add_argument("overrides", nargs="*", help="on top of the preset")
    parser.add_argument("--turns", type=int, default=3, help="of the two stages by themselves")
    arguments = parser.parse_args()
    if not (arguments.folder / "train-images-idx3-ubyte.gz").is_file():
        parser.error(f"{arguments.folder}: MNIST's four files, train-images-idx3-ubyte.gz and so on, are not there")
    handler = functools.partial(Quiet, directory=str(arguments.folder.resolve()))
    with (
        tempfile.TemporaryDirectory() as clone,
        Server(("127.0.0.1", 0), handler) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://127.0.0.1:{server.server_port}/"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), clone], check=True)
        changes = [f"data.mirror={mirror}", *arguments.overrides]
        options = [option for change in changes for option in ("-S", change)]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": "src"}
        preset = [sys.executable, "-m", "reprise", "preset", "mnist-99"]
        subprocess.run(preset, cwd=clone, check=True, env=environment, stdout=subprocess.DEVNULL)
        start = time.monotonic()
        subprocess.run(["dvc", "exp", "run", *options], cwd=clone, check=True, env=environment)
        print(f"{time.monotonic() - start:.0f} s in all\n{machine()}\n")
        server.shutdown()
        measured = in_turns(
            {
                stage: lambda script=f"stages/{stage}.py": seconds([sys.executable, script], clone, environment)
                for stage in ("train", "evaluate")
            },
            arguments.turns,
        )
        accuracy = json.loads(Path(clone, "metrics/test.json").read_text())["accuracy"]
    both = [sum(pair) for pair in zip(*measured.values(), strict=True)]
    print_header("process", "s")
    for name, times in [*measured.items(), ("both (bar: 30)", both), ("test accuracy (bar: 0.99)", [accuracy])]:
        print_row(name, spread(times, 4 if "accuracy" in name else 1))


def seconds(command: list[str], folder: str, environment: dict[str, str]) -> float:
    """Return the wall time of a process, from start to end."""
    start = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, env=environment, capture_output=True)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
