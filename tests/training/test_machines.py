"""One training on two machines: an agent of torchrun on each, in two network namespaces or on the loopback address."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from subprocess import PIPE

import pytest

from tests.conftest import blocks
from tests.training.processes import PLAIN, SCRIPT, environment, read

NODES = ("train.num_nodes=2", "train.checkpoint_every.minutes=0")  # a checkpoint after step 16, or an epoch
NODE_DIES = "os.kill(os.getppid(), signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)"  # the agent, too
CABLE_PULLED = "os.system('ip link set cable down')"


@dataclass(frozen=True)
class Machines:
    """Two of them: what runs a command on each, the address of the first, the network interface of both."""

    prefixes: tuple[list[str], list[str]] = ([], [])
    address: str = "127.0.0.1"
    interface: str = "lo"


def free_port():
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def namespaces():
    """Two network namespaces, joined by a cable; the test is skipped where they cannot be made."""
    names = [f"reprise-{os.getpid()}-{number}" for number in (0, 1)]
    commands = [f"ip netns add {name}" for name in names]
    commands.append(f"ip link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
    for number, name in enumerate(names, 1):
        given = (f"addr add 10.9.8.{number}/24 dev cable", "link set lo up", "link set cable up")
        commands += [f"ip -n {name} {each}" for each in given]
    with ExitStack() as after:
        for command in commands:
            try:
                subprocess.run(command.split(), check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                why = str(getattr(error, "stderr", "") or error).strip()
                pytest.skip(f"two network namespaces need root and iproute2; `{command}` failed: {why}")
            if "netns add" in command:
                after.callback(subprocess.run, command.replace("add", "delete").split(), check=True)
        yield Machines(tuple(["ip", "netns", "exec", name] for name in names), "10.9.8.1", "cable")


@pytest.fixture
def train(digits, tmp_path):
    """Train on two machines; return the exit codes and what was said on each, and how many seconds it took."""

    def start(machines, *overrides, event="none 0 -1", happens="", second=()):
        script, out = tmp_path / "training.py", tmp_path / "out"
        script.write_text(SCRIPT)
        out.mkdir(exist_ok=True)
        port = free_port()
        agents = []
        for number, prefix in enumerate(machines.prefixes):
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={number}"]
            torchrun += [f"--master-addr={machines.address}", f"--master-port={port}"]
            training = [script, digits, out, event, *PLAIN, *NODES, *overrides, *(second if number else ())]
            given = environment(GLOO_SOCKET_IFNAME=machines.interface, EVENT=happens)
            agents.append(subprocess.Popen([*prefix, *torchrun, *training], env=given, stderr=PIPE, text=True))
        try:
            begun = time.monotonic()
            said = [agent.communicate(timeout=100)[1] for agent in agents]
            return [agent.returncode for agent in agents], said, time.monotonic() - begun
        finally:
            for agent in agents:
                agent.kill()

    return start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "who", "happens"),
    [
        pytest.param("loopback", 1, NODE_DIES, id="second-dies-on-loopback"),
        pytest.param("namespaces", 0, NODE_DIES, id="first-dies"),
        pytest.param("namespaces", 1, NODE_DIES, id="second-dies"),
        pytest.param("namespaces", 1, CABLE_PULLED, id="cable-pulled"),
    ],
)
def test_a_lost_machine_ends_the_other_and_both_go_on_to_the_bits_of_one_machine(
    kind, who, happens, request, train, undisturbed, tmp_path
):
    machines = Machines() if kind == "loopback" else request.getfixturevalue("namespaces")
    codes, said, seconds = train(machines, event=f"exec {who} 20", happens=happens)
    other = 1 - who
    assert codes[who] == (1 if happens == CABLE_PULLED else -signal.SIGKILL)
    assert codes[other] == 1, said[other]
    assert "error: another process of this training has ended, or its machine is lost" in said[other]
    assert "Timed out" not in said[other]
    assert seconds < 60  # from start to end
    assert not list((tmp_path / "out").glob("*.*"))
    if happens == CABLE_PULLED:
        subprocess.run([*machines.prefixes[who], "ip", "link", "set", "cable", "up"], check=True)
    codes, said, _ = train(machines)
    assert codes == [0, 0], said
    assert "continuing in epoch 2, step 1" in said[0]
    assert "epoch" not in said[1]
    for name in ("history.csv", "model.safetensors"):
        assert read(tmp_path / "out")[name] == undisturbed[0][name]


def test_machines_with_other_params_do_not_train_together(train, tmp_path):
    codes, said, _ = train(Machines(), second=["train.seed=1"])
    assert codes == [1, 1]
    for each in said:
        assert "error: the processes of this training differ in their params; bring params.yaml, code, data" in each
    assert not list((tmp_path / "out").glob("*.*"))


@pytest.mark.slow
def test_the_page_runs_dvc_on_the_first_machine_and_the_training_alone_on_the_second(reproduced, tmp_path):
    reproduced.set("train.num_nodes=2")
    reproduced.commit()
    other, port = reproduced.copy(tmp_path / "other"), str(free_port())
    here = [each.replace("10.0.0.1", "127.0.0.1").replace("29500", port) for each in blocks("docs/machines.md", "sh")]
    second = subprocess.Popen(here[1], shell=True, cwd=other.path, env=other.environment(), stdout=PIPE, text=True)
    try:
        first = reproduced.run("sh", "-c", here[0])
        assert second.communicate(timeout=60)[0] == ""
    finally:
        second.kill()
    assert second.returncode == 0
    assert first.stdout.count("train: test_resnet, best epoch") == 1
    assert not reproduced.clean()
    assert other.clean()
    assert reproduced.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
