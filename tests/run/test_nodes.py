"""Two nodes of one rank each, in two network namespaces, or else on two loopback addresses."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import SINGLE_TURN
from tests.launching import ZERO2, Running, free_port, kill, printed_losses

pytestmark = pytest.mark.slow

TIMEOUT_S = 20


class Network(NamedTuple):
    form: str
    addresses: tuple[str, str]
    enter: tuple[list[str], list[str]]  # what stands before a node's command
    cut: Callable[[list[Running]], None]  # takes the second node away
    mend: Callable[[], None]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    names = ("yayi-test-0", "yayi-test-1")
    addresses = ("192.0.2.1", "192.0.2.2")  # for documentation and tests (RFC 5737)
    try:
        ip("netns", "add", names[0])
    except (OSError, subprocess.CalledProcessError):
        yield Network(
            "loopback addresses",
            ("127.0.0.1", "127.0.0.2"),
            ([], []),
            lambda nodes: kill(nodes[1].family()),
            lambda: None,
        )
        return
    try:
        ip("netns", "add", names[1])
        ip(
            "link",
            "add",
            "node",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "node",
            "netns",
            names[1],
        )
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "node")
            for device in ("lo", "node"):
                ip("-n", name, "link", "set", device, "up")
        yield Network(
            "network namespaces",
            addresses,
            tuple(["ip", "netns", "exec", name] for name in names),
            lambda nodes: ip("-n", names[1], "link", "set", "node", "down"),
            lambda: ip("-n", names[1], "link", "set", "node", "up"),
        )
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def start(network: Network, hostfile: Path, *arguments: str) -> list[Running]:
    hostfile.write_text("".join(f"{address} slots=1\n" for address in network.addresses))
    port = free_port()
    return [
        Running(
            *network.enter[node], "deepspeed", "--hostfile", str(hostfile), "--no_ssh",
            "--node_rank", str(node), "--master_addr", network.addresses[0], "--master_port", str(port),
            "--module", "training.trainer", *arguments,
            OMP_NUM_THREADS="1",
        )
        for node in range(2)
    ]  # fmt: skip


def test_two_nodes_are_as_one_and_a_run_survives_the_loss_of_one(
    network: Network, base: str, forked, tmp_path: Path
) -> None:
    print(network.form)
    arguments = [
        "--deepspeed", ZERO2, "--data-path", str(SINGLE_TURN), "--input-model", base,
        "--local-output-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--test-size", "0",
        "--max-steps", "12", "--save-steps", "3", "--logging-steps", "1", "--lr", "3e-3",
        "--warmup-steps", "2", "--per-device-train-batch-size", "4", "--ddp-timeout", str(TIMEOUT_S),
    ]  # fmt: skip
    one = forked(2, *arguments, "--run-name", "one-node")
    assert one.returncode == 0, one.stderr
    expected = printed_losses(one.stdout)
    assert len(expected) == 12

    hostfile = tmp_path / "hostfile"
    nodes = start(network, hostfile, *arguments, "--run-name", "two-nodes")
    assert [node.finish() for node in nodes] == [0, 0], nodes[0].output + nodes[1].output
    assert printed_losses(nodes[0].output) == expected
    assert printed_losses(nodes[1].output) == {}  # rank 0 speaks

    nodes = start(network, hostfile, *arguments, "--run-name", "cut")
    assert nodes[0].wait_for_step(4)
    network.cut(nodes)
    assert nodes[0].finish(seconds=TIMEOUT_S + 60) != 0
    errors = [line for line in nodes[0].lines if line.startswith("error: ")]
    assert len(errors) == 1, nodes[0].output
    assert "another rank ended, or did not answer within --ddp-timeout" in errors[0]
    assert "continue by --resume" in errors[0]
    nodes[1].finish(seconds=TIMEOUT_S + 60)

    network.mend()
    printed = printed_losses(nodes[0].output)
    nodes = start(network, hostfile, *arguments, "--run-name", "cut", "--resume")
    assert [node.finish() for node in nodes] == [0, 0], nodes[0].output + nodes[1].output
    assert "continuing from" in nodes[0].output
    assert printed | printed_losses(nodes[0].output) == expected
