import os
import socket
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest
from torch import distributed as dist

from training.common.errors import UserError
from training.run import checkpoints, process_group
from training.run.checkpoints import CheckpointWriter, save_limit
from training.run.process_group import (
    interface_to,
    port_in_use_refused,
    settle_gloo_interface,
    tells_of_lost_rank,
)

Address = namedtuple("Address", "address")

# A box whose name is 127.0.1.1, as Ubuntu has it, with a network card at 10.0.0.5.
INTERFACES = {"lo": [Address("127.0.0.1")], "eth0": [Address("10.0.0.5"), Address("fe80::1%eth0")]}
ROUTES = {"node-0": "127.0.1.1", "127.0.0.1": "127.0.0.1", "10.0.0.9": "10.0.0.5", "192.0.2.1": "10.0.0.5"}


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: INTERFACES)
    monkeypatch.setattr(process_group, "_source_address", ROUTES.get)


@pytest.mark.parametrize(
    ("address", "has_other_nodes", "expected"),
    [
        ("10.0.0.9", True, "eth0"),
        ("node-0", True, "eth0"),
        ("node-0", False, "lo"),
        ("127.0.0.1", True, "lo"),
        ("unknown", True, None),
    ],
)
def test_gloo_takes_the_interface_on_the_way_to_the_first_node(
    box: None, address: str, has_other_nodes: bool, expected: str | None
) -> None:
    assert interface_to(address, has_other_nodes) == expected


def test_the_interface_is_set_unless_the_user_has_named_one(
    box: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"MASTER_ADDR": "node-0", "WORLD_SIZE": "16", "LOCAL_SIZE": "8"}
    monkeypatch.setattr(os, "environ", environment)
    settle_gloo_interface()
    assert environment.pop("GLOO_SOCKET_IFNAME") == "eth0"
    environment["GLOO_SOCKET_IFNAME"] = "ib0"
    settle_gloo_interface()
    assert environment["GLOO_SOCKET_IFNAME"] == "ib0"


def test_the_way_to_this_machine_itself_is_found() -> None:
    assert interface_to("127.0.0.1", has_other_nodes=False) == "lo"


@pytest.mark.parametrize(
    "words",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.9]:42",
        "NCCL error in: NCCLUtils.hpp, remote process exited or there was a network error, NCCL version",
        "NCCL communicator was aborted on rank 2.  Original reason for failure was: [Rank 2] Watchdog",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, OpType=BROADCAST)",
        "Internal check failed.\nLast error:\nNet : Connection closed by remote peer node-1",
    ],
)
def test_the_words_of_gloo_and_nccl_for_a_lost_rank_are_known(words: str) -> None:
    assert tells_of_lost_rank(dist.DistBackendError(words))
    assert not tells_of_lost_rank(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_the_ranks_wait_for_a_save_as_long_as_a_slow_disk_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = SimpleNamespace(args=SimpleNamespace(ddp_timeout=1800, world_size=2))
    monkeypatch.setattr(checkpoints, "checkpoint_bytes", lambda trainer: 113 * 10**9)
    assert save_limit(trainer) == 1800 + 11300  # at 10 MB/s
    limits = []
    monkeypatch.setattr(checkpoints, "control_group", limits.append)
    writer = CheckpointWriter(None, trainer)
    writer.wait_for_all()
    writer.wait_for_all()
    assert limits == [13100]


def test_a_port_in_use_is_one_line_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=f"port {port}.* in use.*--master_port"), port_in_use_refused():
            dist.TCPStore("127.0.0.1", port, 1, is_master=True)
