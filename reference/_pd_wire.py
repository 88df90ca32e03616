"""Framing on a TCP connection: small JSON messages, and raw bytes whose length both sides know."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")
# A message lists block ids; this is enough for a million of them.
_LONGEST = 1 << 24


class WireError(Exception):
    """The peer went away, took too long, or said something that is not in the protocol; one sentence."""


def send_message(connection: socket.socket, message: dict[str, Any]) -> None:
    """Raises OSError."""
    data = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive_message(connection: socket.socket) -> dict[str, Any] | None:
    """One message, or None if the peer has closed the connection. Raises OSError and WireError."""
    first = connection.recv(1)
    if not first:
        return None
    header = bytearray(_LENGTH.size)
    header[:1] = first
    receive_into(connection, memoryview(header)[1:])
    (length,) = _LENGTH.unpack(header)
    if length > _LONGEST:
        raise WireError(f"a message of {length} bytes; this is no peer of ours")
    data = bytearray(length)
    receive_into(connection, memoryview(data))
    try:
        message = json.loads(data)
    except ValueError as error:
        raise WireError(f"a message that is no JSON: {error}") from None
    if not isinstance(message, dict):
        raise WireError(f"a message that is no table: {message!r:.80}")
    return message


def receive_into(connection: socket.socket, buffer: memoryview) -> None:
    """Fill ``buffer``. Raises OSError, and WireError if the connection ends before."""
    received = 0
    while received < len(buffer):
        count = connection.recv_into(buffer[received:])
        if not count:
            raise WireError(f"the peer closed the connection {len(buffer) - received} bytes too early")
        received += count
