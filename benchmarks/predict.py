"""`reprise predict` against a loop of PIL, torchvision's transforms and the model, image by image; memory; start.

    python benchmarks/predict.py ARCHIVE        cifar10-images.tar.gz: CIFAR-10 as JPEGs, or another archive of images

Claims, with the default model (`test_resnet` at 32 pixels; untrained, which changes no time): 5,000 JPEG files to a CSV
at 10 times the loop's images/s, both without their imports; as much memory for 50,000 images as for 1,000, within 10 %;
the first answer after less than 4 s with torch and 1.5 s with ONNX. Result: 10.2 times (3,111 images/s), 528 MB for
either number, 2.8 s with torch; benchmarks/README.md says on which machine. Contenders take turns.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import ROOT, machine
from reprise.runtime.environment import after_torch, before_torch

SCRIPT = """
import sys, time
from pathlib import Path
from reprise.inference.predict import load_model
images, out = sys.argv[1:]
model = load_model("model")
model.predict([])
start = time.perf_counter()
{body}
print(time.perf_counter() - start)
"""
OURS = """
from reprise.runtime.tables import write_csv
rows = ([each.name, each.label, *(f"{p:.6g}" for p in each.probabilities.tolist())] for each in model.stream(images))
write_csv(Path(out), ["id", "predicted", *model.card.classes], rows)
"""
LOOP = """
import csv, torch
from PIL import Image
from torchvision import transforms
kept = model.card.preprocessing
change = [transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize(kept.mean, kept.std)]
turn = transforms.Compose(change)
torch.set_num_threads(2)
with open(out, "w") as file, torch.inference_mode():
    rows = csv.writer(file)
    for path in sorted(Path(images).iterdir()):
        image = turn(Image.open(path).convert("RGB"))
        row = model.run.network(image[None]).softmax(1)[0].tolist()
        rows.writerow([path.name, model.card.classes[max(range(len(row)), key=row.__getitem__)], *row])
"""


def make_model(folder: Path) -> None:
    before_torch(1, "portable")
    from reprise.export.onnx import export_onnx
    from reprise.model.artifact import Architecture, ModelCard, Preprocessing, Training, load_card
    from reprise.model.backbone import build, save_model
    from reprise.runtime.provenance import trace

    after_torch(1, "portable")
    architecture = Architecture(model_name="test_resnet", num_classes=10, in_chans=3, image_size=32, kwargs={})
    card = ModelCard(
        architecture=architecture,
        classes=list("abcdefghij"),
        preprocessing=Preprocessing(image_size=32, channels=3, mean=[0.5] * 3, std=[0.25] * 3),
        training=Training(data="", splits_sha256="", pretrained=False, epoch=0, seed=0),
        provenance=trace("portable", 1, "cpu", {}, b"", "reprise.model.backbone"),
    )
    network = build(architecture).eval()
    save_model(network, card, folder / "model.safetensors", folder / "model.json")
    export_onnx(network, load_card(folder / "model.json"), folder / "model.onnx")


def run(folder: Path, *command: str) -> tuple[str, float, float]:
    """Return what a command printed, its seconds and its largest memory, in MB."""
    settings = {"PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | settings
    start = time.perf_counter()
    done = subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    said = done.stdout.read()
    _, status, used = os.wait4(done.pid, 0)
    done.returncode = status
    if status:
        sys.exit(f"{' '.join(command)[:200]}: failed")
    return said, time.perf_counter() - start, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    from reprise.data.download.archives import archive_files
    from reprise.data.download.layouts import find_images

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        make_model(folder / "model")
        with archive_files(arguments.archive, str(arguments.archive), folder) as files:
            names = find_images(files.names, files.read, files.tree)
            for count in (1_000, 5_000, min(50_000, len(names))):
                (folder / str(count)).mkdir()
                for number, member in enumerate(names[:count]):
                    (folder / str(count) / f"{number:05}.jpg").write_bytes(files.read(member, -1))
        print(f"{machine()}\n\n| what | figure |\n| --- | ---: |", flush=True)
        ours, loop, whole = [], [], []
        for _ in range(arguments.turns):
            ours.append(float(run(folder, "-c", SCRIPT.format(body=OURS), "5000", "a.csv")[0]))
            loop.append(float(run(folder, "-c", SCRIPT.format(body=LOOP), "5000", "b.csv")[0]))
            whole.append(run(folder, "-m", "reprise", "predict", "5000", "--model", "model", "--out", "c.csv")[1])
        with (folder / "a.csv").open() as first, (folder / "b.csv").open() as second:
            rows = list(zip(list(csv.reader(first))[1:], csv.reader(second), strict=True))
        assert len(rows) == 5_000
        print(f"| rows of the loop with another class | {sum(a[1] != b[1] for a, b in rows)} |")
        print(f"| images/s | {5_000 / statistics.median(ours):,.0f} |")
        print(f"| images/s of the loop | {5_000 / statistics.median(loop):,.0f} |")
        print(f"| ratio (bar: 10) | {statistics.median(b / a for a, b in zip(ours, loop, strict=True)):.1f} |")
        print(f"| the whole command, seconds | {statistics.median(whole):.2f} |", flush=True)
        for count in ("1000", str(min(50_000, len(names)))):
            command = "-m", "reprise", "predict", count, "--model", "model", "--out", "c.csv"
            _, seconds, memory = run(folder, *command)
            print(f"| {count} images | {seconds:.1f} s, {memory:.0f} MB |", flush=True)
        for kind in ("torch", "onnx"):
            command = "-m", "reprise", "predict", "1000/00000.jpg", "--model", "model", "--runtime", kind
            seconds = statistics.median(run(folder, *command)[1] for _ in range(arguments.turns))
            print(f"| start to first answer, {kind}, seconds | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
