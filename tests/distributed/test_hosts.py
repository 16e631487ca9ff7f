"""Two hosts of two ranks, each host a network namespace of this machine, joined by a virtual cable."""

import shutil
import subprocess
import uuid
from contextlib import ExitStack

import pytest

from tests.distributed.launching import ENVIRONMENT, ROOT, is_as_unbroken, torchrun
from tests.train.tiny import write_data

ADDRESSES = ("10.213.0.1", "10.213.0.2")


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Names of two network namespaces that reach each other at ADDRESSES."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (Debian's package iproute2)")
    name = f"um{uuid.uuid4().hex[:6]}"
    names = [f"{name}{number}" for number in range(2)]
    with ExitStack() as undo:
        for host in names:
            made = ip("netns", "add", host)
            if made.returncode != 0:
                pytest.skip(f"needs the right to make network namespaces: ip netns add: {made.stderr.strip()}")
            undo.callback(ip, "netns", "del", host)
        cable = f"link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}"
        made = ip(*cable.split())
        if made.returncode != 0:
            pytest.skip(f"needs the right to make virtual network cables: ip link add: {made.stderr.strip()}")
        for host, address in zip(names, ADDRESSES, strict=True):
            for words in (["addr", "add", f"{address}/24", "dev", host], ["link", "set", host, "up"]):
                assert ip("-n", host, *words).returncode == 0
            assert ip("-n", host, "link", "set", "lo", "up").returncode == 0
        yield names


@pytest.mark.slow
def test_two_hosts_meet_train_and_outlive_a_killed_rank(hosts, tmp_path):
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    agents = []
    for host, address in zip(hosts, ADDRESSES, strict=True):
        meets_here = int(address == ADDRESSES[0])  # torchrun knows addresses only by the machine's name
        options = ["--nnodes", "2", "--nproc-per-node", "2", "--max-restarts", "1", "--rdzv-backend", "c10d"]
        options += ["--rdzv-id", hosts[0], "--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--local-addr", address]
        options += ["--rdzv-conf", f"is_host={meets_here}"]
        command = torchrun(options, "kill", 3, data, out)
        agents.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, *command],
                cwd=ROOT,
                env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": host},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        errors = [agent.communicate(timeout=500)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(error[-3000:] for error in errors)
    assert out.with_suffix(".marker").exists()
    assert is_as_unbroken(out, data, tmp_path, world_size=4)
