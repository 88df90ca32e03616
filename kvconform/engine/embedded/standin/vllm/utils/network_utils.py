"""Addresses of this machine."""

from __future__ import annotations

import ipaddress
import socket
import uuid
from typing import Any

import vllm.envs as envs


def get_ip() -> str:
    """VLLM_HOST_IP, which the kit sets to the loopback interface."""
    return envs.VLLM_HOST_IP or "127.0.0.1"


def get_open_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def is_valid_ipv6_address(address: str) -> bool:
    """Whether it is one."""
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True


def split_host_port(host_port: str) -> tuple[str, int]:
    """The inverse of :func:`join_host_port`."""
    host, _, port = host_port.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_host_port(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if is_valid_ipv6_address(host) else f"{host}:{port}"


def get_tcp_uri(ip: str, port: int) -> str:
    """The same with a scheme."""
    return f"tcp://{join_host_port(ip, port)}"


def get_distributed_init_method(ip: str, port: int) -> str:
    """Where processes meet."""
    return get_tcp_uri(ip, port)


def get_open_zmq_ipc_path() -> str:
    """A path that nobody uses."""
    return f"ipc://{envs.VLLM_RPC_BASE_PATH}/{uuid.uuid4()}"


def make_zmq_path(scheme: str, host: str, port: int | None = None) -> str:
    """A ZeroMQ address."""
    return f"{scheme}://{host}" if port is None else f"{scheme}://{join_host_port(host, port)}"


def make_zmq_socket(
    ctx: Any,
    path: str,
    socket_type: Any,
    bind: bool | None = None,
    identity: bytes | None = None,
    linger: int | None = None,
    router_handover: bool = False,
    listener: Any = None,
) -> Any:
    """A ZeroMQ socket at an address; servers bind, others connect."""
    import zmq

    made = ctx.socket(socket_type)
    if identity is not None:
        made.setsockopt(zmq.IDENTITY, identity)
    if linger is not None:
        made.setsockopt(zmq.LINGER, linger)
    if router_handover:
        made.setsockopt(zmq.ROUTER_HANDOVER, 1)
    if bind is None:
        bind = socket_type not in (zmq.PUSH, zmq.SUB, zmq.XSUB)
    (made.bind if bind else made.connect)(path)
    return made
