"""Producer's worker: what it keeps for consumers, for how long, and the server that hands it out."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.logger import init_logger

from ._async_transfers import BLOCKS_PER_COPY, StreamOrder
from ._kv_pages import KVPages
from ._pd_messages import Grant, WorkerAddress
from ._pd_wire import WireError, receive_message, send_message

logger = init_logger(__name__)

# How often a waiting thread looks whether it is to end.
_TICK = 0.05


@dataclass
class _Lease:
    """``order`` is the point in the device's work behind which the blocks are complete."""

    grant: Grant
    order: StreamOrder
    deadline: float
    readers: int = 0
    released: bool = False


class Leases:
    """Blocks of finished requests that consumers may read. Used by the engine's thread and by the server's threads.

    A lease ends when the consumer gives it back, or at its deadline; signs of life of the consumer move the deadline.
    As long as somebody reads, it does not end: the blocks would be given away under the reader's hands.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._leases: dict[str, _Lease] = {}
        # Transfers that were given back before the engine's step has brought us the grant, and those whose lease has
        # ended: id -> when.
        self._early: dict[str, float] = {}
        self._over: dict[str, float] = {}
        self._changed = threading.Condition()

    def grant(self, grant: Grant, order: StreamOrder) -> None:
        with self._changed:
            lease = self._leases[grant.transfer_id] = _Lease(grant, order, time.monotonic() + self.seconds)
            lease.released = self._early.pop(grant.transfer_id, None) is not None
            self._changed.notify_all()

    def release(self, transfer_id: str) -> None:
        """The consumer needs nothing more of it; an unknown id may be one that we hear of in a moment."""
        with self._changed:
            if transfer_id in self._leases:
                self._leases[transfer_id].released = True
            elif transfer_id not in self._over:
                self._early[transfer_id] = time.monotonic()

    @contextlib.contextmanager
    def reading(self, transfer_id: str) -> Iterator[_Lease]:
        """Keep a lease for as long as this is open.

        A consumer may be here before our own engine's next step, which brings the grant, so it is waited for.

        Raises:
            WireError: there is no such lease, or not any more.
        """
        with self._changed:
            known = lambda: transfer_id in self._leases or transfer_id in self._over  # noqa: E731
            self._changed.wait_for(known, timeout=self.seconds)
            lease = self._leases.get(transfer_id)
            if lease is None or lease.released:
                raise WireError(f"nothing is kept under {transfer_id}; its lease has ended, or there never was one")
            lease.readers += 1
        try:
            yield lease
        finally:
            with self._changed:
                lease.readers -= 1
                self._renew(lease)

    def renew(self, lease: _Lease) -> None:
        """The consumer shows signs of life."""
        with self._changed:
            self._renew(lease)

    def _renew(self, lease: _Lease) -> None:
        lease.deadline = time.monotonic() + self.seconds

    def collect(self) -> set[str]:
        """Requests whose blocks the engine may have back, each of them once. Every lease is looked at, in any order."""
        now = time.monotonic()
        ended: set[str] = set()
        with self._changed:
            self._early = {transfer: when for transfer, when in self._early.items() if when > now - self.seconds}
            # Somebody who comes still later waits in vain for as long as for a grant, and is refused then.
            self._over = {transfer: when for transfer, when in self._over.items() if when > now - 10 * self.seconds}
            for transfer_id, lease in list(self._leases.items()):
                if not lease.readers and (lease.released or now > lease.deadline):
                    del self._leases[transfer_id]
                    self._over[transfer_id] = now
                    ended.add(lease.grant.request_id)
                    if not lease.released:
                        logger.warning(
                            "No consumer fetched the KV of request %s within %s s.",
                            lease.grant.request_id,
                            self.seconds,
                        )
        return ended


class HandOffServer:
    """Listens on a port that the system chooses, one thread per connection.

    A connection carries requests one after the other: ``fetch`` of some blocks, answered by their bytes, and
    ``release``.
    """

    def __init__(self, host: str, pages: KVPages, leases: Leases) -> None:
        self._pages = pages
        self._leases = leases
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closing = False
        self._listener = socket.create_server((host, 0))
        self._listener.settimeout(_TICK)
        self.address = WorkerAddress(host, int(self._listener.getsockname()[1]))
        self._acceptor = threading.Thread(target=self._accept, name="kv-hand-off", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Close every connection, and wait for the threads."""
        self._closing = True
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError as error:
                logger.warning("A consumer could not be accepted: %s", error)
                continue
            # A consumer that falls silent in the middle of something must not keep a thread, or a lease, for ever.
            connection.settimeout(self._leases.seconds)
            thread = threading.Thread(target=self._serve, args=(connection,), name="kv-hand-off", daemon=True)
            with self._lock:
                self._connections.add(connection)
                self._threads = [each for each in self._threads if each.is_alive()]
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer until the consumer hangs up; nothing is ever raised into the thread."""
        try:
            while not self._closing and (message := receive_message(connection)) is not None:
                try:
                    self._answer(connection, message)
                except WireError as error:
                    send_message(connection, {"error": str(error)})
        except (OSError, WireError) as error:
            if not self._closing:
                logger.warning("A connection with a consumer ended: %s", error)
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket, message: dict[str, Any]) -> None:
        transfer_id = str(message.get("transfer_id"))
        if message.get("ask") == "release":
            self._leases.release(transfer_id)
            send_message(connection, {})
        elif message.get("ask") == "fetch":
            with self._leases.reading(transfer_id) as lease:
                self._send_blocks(connection, lease, message)
        else:
            raise WireError(f"I can't {message.get('ask')!r}")

    def _send_blocks(self, connection: socket.socket, lease: _Lease, message: dict[str, Any]) -> None:
        if message.get("pages") != self._pages.fingerprint:
            raise WireError("the consumer's pages have another shape or dtype than ours")
        blocks: Sequence[int] = message.get("block_ids") or ()
        if not all(isinstance(block, int) for block in blocks):
            raise WireError("block ids that are no numbers")
        if not set(blocks) <= set(lease.grant.block_ids):
            raise WireError(f"{sorted(set(blocks) - set(lease.grant.block_ids))} are no blocks of this transfer")
        send_message(connection, {})
        for start in range(0, len(blocks), BLOCKS_PER_COPY):
            with lease.order.behind():
                portion = self._pages.read(blocks[start : start + BLOCKS_PER_COPY])
            connection.sendall(portion.numpy().data)
            self._leases.renew(lease)
