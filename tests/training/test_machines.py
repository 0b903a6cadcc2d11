"""One training on two machines: two agents of torchrun, in network namespaces of their own or on the loopback address."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.training.processes import SCRIPT, environment
from tests.training.test_distributed import PLAIN, read

NODE_DIES = "os.kill(os.getppid(), signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)"  # torchrun's agent, too
OFTEN = "train.checkpoint_every.minutes=0"


@dataclass(frozen=True)
class Machines:
    """Two of them: how to run a command on each, the first one's address, the interface of both."""

    prefixes: list[list[str]] = field(default_factory=lambda: [[], []])
    address: str = "127.0.0.1"
    interface: str = "lo"


@pytest.fixture(scope="module")
def namespaces():
    """Two network namespaces, joined by a cable."""
    names = [f"reprise-{os.getpid()}-{number}" for number in (0, 1)]
    cable = [["ip", "netns", "add", name] for name in names]
    cable.append(f"ip link add cable netns {names[0]} type veth peer name cable netns {names[1]}".split())
    for number, name in enumerate(names):
        cable += [
            f"ip -n {name} {end}".split() for end in (f"addr add 10.9.8.{number + 1}/24 dev cable", "link set lo up")
        ]
        cable.append(f"ip -n {name} link set cable up".split())
    with ExitStack() as after:
        for command in cable:
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                reason = getattr(error, "stderr", None) or error
                pytest.skip(f"no network namespaces here (they want root and iproute2): {' '.join(command)}: {reason}")
            if "netns add" in " ".join(command):
                after.callback(subprocess.run, ["ip", "netns", "del", command[-1]], check=True)
        yield Machines([["ip", "netns", "exec", name] for name in names], "10.9.8.1", "cable")


@pytest.fixture
def train(digits, tmp_path):
    """Train on two machines; return exit code, output and seconds after the first one's end, of each."""

    def start(machines, name, *overrides, event="none 0 -1", program="", each=()):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        (tmp_path / "training.py").write_text(SCRIPT)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        started = []
        for number, prefix in enumerate(machines.prefixes):
            agent = [*prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={number}"]
            agent += [f"--master-addr={machines.address}", f"--master-port={port}", "--nproc-per-node=1"]
            command = [*agent, tmp_path / "training.py", digits, out, event, *PLAIN, "train.num_nodes=2", *overrides]
            given = environment(GLOO_SOCKET_IFNAME=machines.interface, EVENT=program)
            command += [each[number]] if each else []
            started.append(subprocess.Popen(command, env=given, stderr=PIPE, text=True))
        begun = time.time()
        said = [process.communicate(timeout=200)[1] for process in started]
        print(time.time() - begun)
        for p, s in zip(started, said):
            print(p.returncode, s)
        return [process.returncode for process in started], said, out

    return start


def test_it(namespaces, train):
    print(train(namespaces, "a"))


def test_kill(namespaces, train):
    print(train(namespaces, "k1", OFTEN, event="exec 1 20", program=NODE_DIES))
    print(train(namespaces, "k0", OFTEN, event="exec 0 20", program=NODE_DIES))


def test_cable(namespaces, train):
    print(train(namespaces, "c1", OFTEN, event="exec 1 20", program="os.system('ip link set cable down')"))


def test_cable0(namespaces, train):
    print(train(namespaces, "c0", OFTEN, event="exec 0 20", program="os.system('ip link set cable down')"))
