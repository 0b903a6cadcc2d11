"""Fault injection: `kill -9` at random moments and inside system calls; what runs to its end has the same bytes.

    python tests/torture.py --kills 60      (make torture)

Each trial starts a command in a fresh clone, kills it several times (the stage, DVC alone so that the stage is left an
orphan, or everything at once), repeats the same command to its end and compares every out with an uninterrupted run.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.conftest import Workspace, tiny_clone

STAGES = ("download", "preprocess", "train", "evaluate", "export")
SETTING = ("train.epochs=4", "train.checkpoint_every.minutes=0")  # a checkpoint after every step
DOCTOR = "then `make doctor`"
QUIET = {"PYTHONDONTWRITEBYTECODE": "1"}  # writing bytecode is not what is tested
COMMANDS = {
    "dvc repro": ("dvc", "repro"),
    "dvc exp run --temp": ("dvc", "exp", "run", "--temp", "-S", "train.lr=0.002"),
}

# Found by every stage beside the library: counts what it does to files and kills at a given count.
COUNTER = """
import os, sys
stage = os.path.basename(sys.argv[0]).removesuffix(".py") if sys.argv and "stages/" in sys.argv[0] else None
plan = os.environ.get("TORTURE", "").split(":")
count = 0
def audit(event, arguments):
    global count
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate") or (
        event == "open" and isinstance(arguments[0], str) and "w" in (arguments[1] or "")
    ):
        count += 1
        if plan[0] == stage and count == int(plan[1]):
            os.killpg(0, 9) if plan[2] == "everything" else os.kill(os.getpid(), 9)
def report():
    if os.environ.get("TORTURE_COUNTS"):
        with open(os.environ["TORTURE_COUNTS"], "a") as file:
            file.write(f"{stage} {count}\\n")
if stage:
    import atexit
    sys.addaudithook(audit)
    atexit.register(report)
"""


@dataclass
class Reference:
    """An uninterrupted run: its outs, how long it took, how often each stage touched the file system."""

    outs: dict[str, bytes]
    seconds: float
    counts: dict[str, int]


def outs(workspace: Workspace) -> dict[str, bytes]:
    """Return every out and dvc.lock, by path."""
    folders = [workspace.path / name for name in ("data/raw", "data/processed", "data/report", "models", "metrics")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += [workspace.path / "data/predictions.csv", workspace.path / "dvc.lock"]
    return {str(path.relative_to(workspace.path)): path.read_bytes() for path in sorted(files)}


def base(path: Path) -> Workspace:
    """Return a clone without results in which the counter is part of every stage's process."""
    clone = tiny_clone(path)
    clone.set(*SETTING)
    (path / "src/sitecustomize.py").write_text(COUNTER)
    (path / ".git/info/exclude").write_text("")
    clone.commit()
    return clone


def collect(workspace: Workspace, command: str) -> dict[str, bytes]:
    """Return the outs of a command that ran to its end."""
    if "--temp" in command:
        names = workspace.run("dvc", "exp", "list", "--name-only").stdout.split()
        workspace.run("dvc", "exp", "apply", names[0])  # all are the same
    return outs(workspace)


def reference(workspace: Workspace, command: str, scratch: Path) -> Reference:
    """Run a command without disturbing it."""
    counts = scratch / "counts"
    started = time.monotonic()
    workspace.run(*COMMANDS[command], TORTURE_COUNTS=str(counts), **QUIET)
    result = collect(workspace, command)
    lines = [line.split() for line in counts.read_text().splitlines()]
    return Reference(result, time.monotonic() - started, {stage: int(count) for stage, count in lines})


def kill_once(workspace: Workspace, command: str, expected: Reference, rng: random.Random) -> str:
    """Start a command and kill it; return how, or "" if it was through before."""
    environment = workspace.environment() | QUIET
    inside = rng.random() < 0.5
    if inside:
        stage = rng.choice(STAGES)
        victim = rng.choice(["the stage", "everything"])
        count = rng.randint(1, expected.counts[stage])
        environment["TORTURE"] = f"{stage}:{count}:{victim}"
        how = f"{victim}, at file operation {count} of {stage}"
    process = subprocess.Popen(
        COMMANDS[command],
        cwd=workspace.path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    if not inside:
        after = rng.uniform(0.3, expected.seconds / 2)  # a later start has less left to do
        victim = rng.choice(["the stage", "DVC", "everything"])
        try:
            process.wait(timeout=after)
            return ""
        except subprocess.TimeoutExpired:
            how = f"{victim}, after {after:.1f} s"
        if victim == "everything":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "DVC":
            process.kill()
        else:
            for pid in children(process.pid):
                os.kill(pid, signal.SIGKILL)
    return how if process.wait(timeout=300) else ""


def children(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split() if int(pid) != parent]


def trial(workspace: Workspace, command: str, expected: Reference, kills: int, rng: random.Random) -> list[str]:
    """Kill a command several times, then let it run; return how it was killed. AssertionError names what differs."""
    killed: list[str] = []
    while len(killed) < kills and (how := kill_once(workspace, command, expected, rng)):
        killed.append(how)
    if workspace.run(*COMMANDS[command], check=False).returncode:  # killed while it wrote a lock file of its own
        workspace.run("python", "-m", "reprise", "doctor")
        workspace.run(*COMMANDS[command])
        killed[-1] += f" ({DOCTOR})"
    result = collect(workspace, command)
    different = sorted(
        path for path in result.keys() | expected.outs.keys() if result.get(path) != expected.outs.get(path)
    )
    assert not different, f"{command}, killed: {'; '.join(killed)}: differs in {', '.join(different)}"
    left = [
        str(path.relative_to(workspace.path))
        for folder in ("data", "models", "metrics", "runs")
        for path in (workspace.path / folder).rglob(".*.partial")
    ] + [str(path) for path in (workspace.path / "runs/checkpoints").glob("*")]
    assert not left, f"{command}, killed: {'; '.join(killed)}: left behind {', '.join(left)}"
    return killed


def main() -> None:
    """Torture both commands; print what was done and what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="in all, at least")
    parser.add_argument("--per-trial", type=int, default=5, help="before a command may run to its end")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    done: collections.Counter[str] = collections.Counter()
    doctored = 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        clone = base(scratch / "base")
        expected = {}
        for number, command in enumerate(COMMANDS):
            expected[command] = reference(clone.copy(scratch / f"reference-{number}"), command, scratch)
            print(f"{command}: {expected[command].seconds:.0f} s undisturbed", flush=True)
        trials = 0
        while done.total() < arguments.kills:
            command = list(COMMANDS)[trials % len(COMMANDS)]
            workspace = clone.copy(scratch / f"trial-{trials}")
            killed = trial(workspace, command, expected[command], arguments.per_trial, rng)
            print(f"trial {trials + 1}, {command}: same bytes after kills of " + "; ".join(killed), flush=True)
            done.update(how.partition(",")[0] for how in killed)
            doctored += sum(DOCTOR in how for how in killed)
            trials += 1
            subprocess.run(["rm", "-rf", workspace.path], check=True)
    kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(done.items()))
    print(f"{done.total()} kills in {trials} trials ({kinds}): every one ended in the bytes of an undisturbed run")
    print(f"{doctored} of the {trials} needed `make doctor` first: DVC's own lock file was torn")


if __name__ == "__main__":
    main()
