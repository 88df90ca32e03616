"""Consumer's worker: fetches what producers keep for us, in threads, and reports each load once."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from vllm.logger import init_logger

from ._async_transfers import BLOCKS_PER_COPY, StreamOrder
from ._kv_pages import KVPages
from ._pd_messages import HandOff, Pull
from ._pd_wire import WireError, receive_into, receive_message, send_message

logger = init_logger(__name__)


class Line:
    """A connection to the worker of our rank on the producer's side.

    Every wait on it is bounded: whoever says nothing for ``timeout`` seconds counts as gone.
    """

    def __init__(self, hand_off: HandOff, rank: int, timeout: float) -> None:
        """Raises OSError."""
        self._transfer_id = hand_off.transfer_id
        self._connection = socket.create_connection((hand_off.host, hand_off.ports[rank]), timeout)

    def fetch(self, block_ids: tuple[int, ...], fingerprint: str) -> None:
        """Ask for blocks; :meth:`receive` takes them. Raises OSError and WireError."""
        self._ask({"ask": "fetch", "block_ids": list(block_ids), "pages": fingerprint})

    def receive(self, host: torch.Tensor) -> None:
        """Raises OSError and WireError."""
        receive_into(self._connection, host.numpy().reshape(-1).data)

    def release(self) -> None:
        """Tell the producer that we need nothing more. Raises OSError and WireError."""
        self._ask({"ask": "release"})

    def _ask(self, message: dict[str, object]) -> None:
        send_message(self._connection, {**message, "transfer_id": self._transfer_id})
        answer = receive_message(self._connection)
        if answer is None or "error" in answer:
            raise WireError("the producer hung up" if answer is None else f"the producer says: {answer['error']}")

    def cut(self) -> None:
        """Wake up whoever waits on it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.close()


class ConsumerSide:
    """One rank's loads. All methods run in the engine's thread; loads and releases run in the pool.

    Args:
        rank: ours; the producer's worker of the same rank has our part.
        pages: the registered tensors.
        device: where they are.
        timeout: seconds after which a silent producer counts as gone.
        threads: transfers at a time.
    """

    def __init__(self, rank: int, pages: KVPages, device: torch.device, timeout: float, threads: int) -> None:
        self._rank = rank
        self._pages = pages
        self._device = device
        self._timeout = timeout
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kv-pull")
        self._running: dict[int, tuple[Pull, threading.Event, Future[bool]]] = {}
        self._load_errors: set[int] = set()
        self._lines: set[Line] = set()
        self._lock = threading.Lock()
        self._closing = False

    def start(self, pull: Pull) -> None:
        """Begin a load; its blocks belong to it until :meth:`collect` has named the request."""
        cancelled, order = threading.Event(), StreamOrder(self._device)
        self._running[pull.pull_id] = pull, cancelled, self._pool.submit(self._pull, pull, cancelled, order)

    def cancel(self, pull_id: int) -> None:
        """Nobody waits for this load any more. It may have ended in the meantime."""
        if pull_id in self._running:
            self._running[pull_id][1].set()

    def release(self, hand_off: HandOff) -> None:
        """Give back what we never began to load."""
        if self._rank < len(hand_off.ports):
            self._pool.submit(self._release, hand_off)

    def collect(self) -> set[str]:
        """Requests whose load has ended, well or not, each of them once."""
        received: set[str] = set()
        for pull_id, (pull, _, future) in list(self._running.items()):
            if future.done():
                del self._running[pull_id]
                received.add(pull.request_id)
                if not future.result():
                    # Whatever of it has arrived: the scheduler is to compute all of it.
                    self._load_errors.update(pull.local)
        return received

    def take_load_errors(self) -> set[int]:
        """Blocks that hold nothing useful; asked for right after :meth:`collect`, so no completion precedes them."""
        errors, self._load_errors = self._load_errors, set()
        return errors

    def close(self) -> None:
        """End every transfer and wait for its thread: the memory goes next."""
        self._closing = True
        with self._lock:
            for line in self._lines:
                line.cut()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._running.clear()

    # ---- In the threads ----

    def _pull(self, pull: Pull, cancelled: threading.Event, order: StreamOrder) -> bool:
        """Whether all blocks are in place; never raises."""
        try:
            with self._line(pull.hand_off) as line:
                complete = self._receive(line, pull, cancelled, order)
                if complete:
                    line.release()
        except OSError as error:
            logger.warning("The KV of request %s could not be fetched: %s", pull.request_id, error or repr(error))
            return False
        except WireError as error:
            logger.warning("The KV of request %s was refused: %s", pull.request_id, error)
            complete = False
        if not complete:
            # Whatever the reason, we shall not ask again.
            self._release(pull.hand_off)
        return complete

    def _receive(self, line: Line, pull: Pull, cancelled: threading.Event, order: StreamOrder) -> bool:
        if cancelled.is_set():
            return False
        line.fetch(pull.remote, self._pages.fingerprint)
        for start in range(0, len(pull.local), BLOCKS_PER_COPY):
            blocks = pull.local[start : start + BLOCKS_PER_COPY]
            host = torch.empty((len(blocks), self._pages.block_bytes), dtype=torch.uint8)
            line.receive(host)
            if cancelled.is_set():
                return False
            with order.behind():
                self._pages.write(blocks, host)
        return True

    def _release(self, hand_off: HandOff) -> None:
        """Try to; a producer that can't be told has a deadline of its own."""
        try:
            with self._line(hand_off) as line:
                line.release()
        except (OSError, WireError) as error:
            logger.warning("The producer of transfer %s was not told to end it: %s", hand_off.transfer_id, error)

    @contextlib.contextmanager
    def _line(self, hand_off: HandOff) -> Iterator[Line]:
        line = Line(hand_off, self._rank, self._timeout)
        with self._lock:
            self._lines.add(line)
        try:
            if self._closing:
                raise WireError("this engine is shutting down")
            yield line
        finally:
            with self._lock:
                self._lines.discard(line)
            line.close()
