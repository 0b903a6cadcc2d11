"""One training on two machines: an agent of torchrun on each, in two network namespaces or on the loopback address."""

import os
import signal
import subprocess
import sys
import time
from subprocess import PIPE

import pytest

from tests.conftest import blocks
from tests.training.processes import free_port, read

NODES = ("train.num_nodes=2", "train.checkpoint_every.minutes=0")  # a checkpoint after step 16, or an epoch
# the agent dies, too
NODE_DIES = "(out / 'lost').touch(); os.kill(os.getppid(), signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)"
CABLE_PULLED = "(out / 'lost').touch(); os.system('ip link set cable down')"


# what runs a command on each machine, the address of the first, the network interface of both
LOOPBACK = ([[], []], "127.0.0.1", "lo")


@pytest.fixture
def namespaces():
    """Two network namespaces, joined by a cable; the test is skipped where they cannot be made."""
    names = [f"reprise-{os.getpid()}-{number}" for number in (0, 1)]
    commands = [f"ip netns add {name}" for name in names]
    commands.append(f"ip link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
    for number, name in enumerate(names, 1):
        ends = (f"addr add 10.9.8.{number}/24 dev cable", "link set lo up", "link set cable up")
        commands += [f"ip -n {name} {end}" for end in ends]
    made = subprocess.run(["sh", "-xc", " && ".join(commands)], capture_output=True, text=True)
    if not made.returncode:
        yield [["ip", "netns", "exec", name] for name in names], "10.9.8.1", "cable"
    subprocess.run(["sh", "-c", f"ip netns delete {names[0]}; ip netns delete {names[1]}"], capture_output=True)
    if made.returncode:
        pytest.skip(f"two network namespaces need root and iproute2: {made.stderr}")


@pytest.fixture
def train(run, tmp_path):
    """Train on two machines; return what those ended with, and the folder of the result."""

    def start(machines, event="none 0 -1", happens=""):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--master-port={free_port()}"]
        prefixes, address, interface = machines
        torchrun.append(f"--master-addr={address}")
        launchers = [[*prefix, *torchrun, f"--node-rank={number}"] for number, prefix in enumerate(prefixes)]
        given = {"GLOO_SOCKET_IFNAME": interface, "EVENT": happens}
        return run(tmp_path.name, *NODES, event=event, launchers=launchers, tasks=(given, given))

    return start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "who", "happens"),
    [
        pytest.param("loopback", 1, NODE_DIES, id="second-dies-on-loopback"),
        pytest.param("namespaces", 0, NODE_DIES, id="first-dies"),
        pytest.param("namespaces", 1, CABLE_PULLED, id="cable-pulled"),
    ],
)
def test_a_lost_machine_ends_the_other_and_both_go_on_to_the_bits_of_one_machine(
    kind, who, happens, request, train, undisturbed
):
    machines = LOOPBACK if kind == "loopback" else request.getfixturevalue("namespaces")
    *both, out = train(machines, f"exec {who} 20", happens)
    assert time.time() - (out / "lost").stat().st_mtime < 60
    assert both[who].returncode == (1 if happens == CABLE_PULLED else -signal.SIGKILL)
    assert both[1 - who].returncode == 1
    assert "error: another process of this training has ended, or its machine is lost" in both[1 - who].stderr
    assert not list(out.glob("*.*"))
    if happens == CABLE_PULLED:
        subprocess.run([*machines[0][who], "ip", "link", "set", "cable", "up"], check=True)
    first, second, out = train(machines)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "continuing in epoch 2, step 1" in first.stderr
    assert "epoch" not in second.stderr
    for name in ("history.csv", "model.safetensors"):
        assert read(out)[name] == undisturbed[0][name]


@pytest.mark.slow
def test_the_page_runs_dvc_on_the_first_machine_and_the_training_alone_on_the_second(reproduced, tmp_path):
    reproduced.set("train.num_nodes=2")
    reproduced.commit()
    other, port = reproduced.copy(tmp_path / "other"), free_port()
    here = [each.replace("10.0.0.1", "127.0.0.1").replace("29500", port) for each in blocks("docs/machines.md", "sh")]
    second = subprocess.Popen(here[1], shell=True, cwd=other.path, env=other.environment(), stdout=PIPE, text=True)
    try:
        first = reproduced.run("sh", "-c", here[0])
        assert (second.communicate(timeout=60)[0], second.returncode) == ("", 0)
    finally:
        second.kill()
    assert first.stdout.count("train: test_resnet, best epoch") == 1
    assert other.clean()
    assert reproduced.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
