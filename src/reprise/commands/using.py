"""The trained model at work."""

import json
import os
import sys
import tempfile
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from reprise.commands.registry import argument, command
from reprise.runtime.errors import UserError, say, visible

FORMATS = ("table", "csv", "jsonl")
OF_A_MODEL = (
    argument("--model", default="models", metavar="M", help="folder, run, .safetensors or .onnx (models)"),
    argument("--runtime", choices=("torch", "onnx"), help="(torch, if it is installed and the weights are there)"),
    argument("--project", metavar="DIR", help="the project whose own code the model may run"),
)


@command(
    argument("images", nargs="+", metavar="IMAGE", help="image, folder, archive, CSV, or - for standard input"),
    *OF_A_MODEL,
    argument("--repo", help="the DVC repository that has the model (this one)"),
    argument("--rev", help="at this revision of Git's: a tag, a branch, a commit"),
    argument("--top", type=int, default=5, metavar="K", help="classes of an image, in table and jsonl (5)"),
    argument("--format", choices=FORMATS, help="(as the name of --out ends, otherwise table)"),
    argument("--out", type=Path, metavar="FILE", help="write there, whole or not at all"),
    argument("--strict", action="store_true", help="exit with 1 if an image cannot be used"),
)
def predict(options: Namespace) -> int:
    """Classify images.

    reprise predict cat.jpg
    reprise predict photos more.zip --out predictions.csv
    reprise predict - --model model.onnx < cat.jpg

    A row for each image, sorted by name within a folder or an archive; a CSV names image files, relative to itself. An
    image that cannot be used is a row with the reason. Of format csv: all probabilities, as in data/predictions.csv.
    """
    from tqdm import tqdm

    from reprise.inference.predict import load_model, model_files
    from reprise.runtime.atomic import publishing
    from reprise.runtime.environment import cpus
    from reprise.runtime.tables import row_writer

    out, images, bad = options.out, 0, 0
    if out and os.path.lexists(out) and not (out.is_file() and out.stat().st_mode & 0o200):  # DVC protects its cache
        raise UserError(f"--out '{out}': a folder, a device, a link to nowhere or write-protected; name a file")
    if out and out.resolve() in map(Path.resolve, model_files(Path(options.model))):
        raise UserError(f"--out {out}: would replace the model; name another file")
    if options.top < 1:
        raise UserError(f"--top {options.top}: has to be above 0")
    for path in (each for each in options.images if each != "-"):
        if not os.path.exists(path):  # noqa: PTH110  a Path of "" is the working directory
            raise UserError(f"{path or repr(path)}: no such file or folder")
        if out and out.exists() and out.samefile(path):
            raise UserError(f"--out {out}: would replace what is to be predicted; name another file")
    layout = options.format or (out.suffix[1:] if out and out.suffix[1:] in FORMATS else "table")
    with ExitStack() as stack:
        given = [_standard_input(stack) if each == "-" else each for each in options.images]
        place = {"repo": options.repo, "rev": options.rev, "project": options.project}
        model = load_model(options.model, runtime=options.runtime, **place)
        file = stack.enter_context(stack.enter_context(publishing(out.resolve()))[0].open("w")) if out else sys.stdout
        file.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
        write_row, terminal = row_writer(file), not out and sys.stdout.isatty()
        shown = visible if terminal else str  # names may hold what a terminal obeys
        columns = [*(f"p({name})" for name in model.card.classes), *model.confidence.columns]
        if layout == "csv":
            write_row(["id", "predicted", *map(shown, columns), "reason"])
        predictions = model.stream(given if given[1:] else given[0], options.top, cpus())
        quiet = terminal or None  # a bar would stand between the rows
        for each in tqdm(predictions, "predict", unit=" images", leave=False, disable=quiet):
            images, bad = images + 1, bad + bool(each.reason)
            if layout == "csv":
                write_row([shown(cell) if isinstance(cell, str) else cell for cell in each.row(len(columns))])
            else:
                say(json.dumps(each.plain()) if layout == "jsonl" else each.line(), file)
    said = f", {bad:,} of them cannot be used (see the reasons)" if bad else ""
    if out or bad:
        say(f"predict: {images:,} images{said}" + (f" -> {out}" if out else ""), file=sys.stderr)
    return int(options.strict and bad > 0)


@command(
    *OF_A_MODEL,
    argument("--fast", action="store_true", help="all CPUs or a GPU; the last digits depend on what is asked at once"),
    argument("--host", default="127.0.0.1", help="this address (127.0.0.1); 0.0.0.0: all of this machine's"),
    argument("--port", type=int, default=8000, help="(8000; 0: any that is free)"),
    argument("--max-mb", type=float, default=16, metavar="MB", help="of a request (16)"),
    argument("--requests", type=int, default=128, metavar="N", help="accepted at once, others are refused (128)"),
    argument("--timeout", type=float, default=10, metavar="S", help="seconds for a request to arrive (10)"),
)
def serve(options: Namespace) -> None:
    """Answer over HTTP, and show a page for people.

    reprise serve --model model.onnx --port 8000
    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict

    POST /predict: an image, or several as multipart/form-data. GET /model, /health, /metrics, /openapi.json. SIGTERM
    or Ctrl-C: what was accepted is answered, then it ends.
    """
    from reprise.inference.predict import load_model
    from reprise.inference.serve import listening, run

    if min(options.max_mb, options.requests, options.timeout) <= 0:
        raise UserError("--max-mb, --requests and --timeout have to be above 0")
    with listening(options.host, options.port) as server:
        model = load_model(options.model, runtime=options.runtime, project=options.project, exact=not options.fast)
        say(f"serve: http://{options.host}:{server.getsockname()[1]}")
        run(model, server, body=int(options.max_mb * 1e6), requests=options.requests, seconds=options.timeout)
    os._exit(0)  # a thread may still decode for a request that was given up


@command(OF_A_MODEL[0])
def benchmark(options: Namespace) -> None:
    """Show the latency of one image and the images/s of the best batch, for torch and onnxruntime on this machine."""
    from reprise.inference.latency import table

    say("\n".join(table(options.model)))


def _standard_input(stack: ExitStack) -> Path | bytes:
    """Return an image's bytes, or the path of an archive in a temporary folder. Raises UserError without any."""
    from reprise.data.formats.images import HEAD, kind_of

    if not (content := sys.stdin.buffer.read()):
        raise UserError("-: no data on standard input")
    if kind_of(content[:HEAD]) != "archive":
        return content
    path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "archive")
    path.write_bytes(content)
    return path
