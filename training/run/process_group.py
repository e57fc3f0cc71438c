"""The process group of a run: its network interface, its limits of time, and its errors."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import torch.distributed as dist

from training.common.errors import UserError
from training.common.ranks import ranks_of_node, world_size

# Texts in errors of torch's process group, of gloo and of NCCL that mean that another rank is gone.
LOST_RANK = (
    "Connection closed by peer",
    "Connection reset",
    "Timed out",
    "Broken pipe",
    "recv timeout",
    "remote process exited or there was a network error",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
    "Connection closed by remote peer",
)

# An address of the block for documentation (RFC 5737): the way to it is the default one.
ELSEWHERE = "192.0.2.1"


def tells_of_lost_rank(error: RuntimeError) -> bool:
    """Whether an error means that another rank ended, or did not answer in time."""
    return any(sign in str(error) for sign in LOST_RANK)


def settle_gloo_interface() -> None:
    """Have gloo use the network interface on the way to MASTER_ADDR, unless the user has named one.

    By itself gloo takes the address of this host's name, which Ubuntu sets to 127.0.1.1: other nodes do not
    reach that.
    """
    address = os.environ.get("MASTER_ADDR")
    if address is None or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    has_other_nodes = world_size() > (ranks_of_node() or world_size())
    name = interface_to(address, has_other_nodes)
    if name:
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_to(address: str, has_other_nodes: bool) -> str | None:
    """The name of the network interface on the way to an address or a host, or None where there is none.

    has_other_nodes: a name of this host that only this host can reach does not count then, and the interface
    of the default route is taken; an address that was given as numbers does count.
    """
    here = _source_address(address)
    is_loopback = here is not None and ipaddress.ip_address(here).is_loopback
    if has_other_nodes and is_loopback and not _is_number(address):
        here = _source_address(ELSEWHERE)
    for name, addresses in psutil.net_if_addrs().items():
        if here in [each.address.split("%")[0] for each in addresses]:
            return name
    return "lo" if here is not None and is_loopback else None  # 127.0.1.1 and others are not listed


def _source_address(address: str) -> str | None:
    """The address that this machine has for one to which it sends; nothing is sent."""
    try:
        family, kind, *_, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as way:
            way.connect(target)
            return way.getsockname()[0].split("%")[0]
    except OSError:
        return None


def _is_number(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def control_group(timeout_s: float) -> dist.ProcessGroup | None:
    """A gloo group for flags that ranks exchange without waiting for their cards; None for a single rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))


@contextmanager
def port_in_use_refused() -> Iterator[None]:
    """A block that starts the process group. Raises UserError where another program has the port for it."""
    try:
        yield
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {os.environ['MASTER_PORT']}, at which the ranks meet, is in use by another program; give "
            "a free one: --master_port for deepspeed and torchrun, --main_process_port for accelerate, "
            "MASTER_PORT for srun"
        ) from None


def limit_collectives(timeout: timedelta, but: dist.ProcessGroup | None = None) -> None:
    """Set the timeout of all process groups but one, since DeepSpeed makes groups of its own without one."""
    if dist.is_initialized():
        for group in list(dist.distributed_c10d._world.pg_map):
            if group is not but:
                group.set_timeout(timeout)
