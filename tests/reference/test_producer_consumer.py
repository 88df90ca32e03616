"""The parts of ProducerConsumerConnector: leases, the wire, and what becomes of both when a peer is gone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kvconform.reference._async_transfers import StreamOrder
from kvconform.reference._kv_pages import KVPages
from kvconform.reference._pd_client import ConsumerSide, Line
from kvconform.reference._pd_messages import Grant, HandOff, Pull, read_hand_off
from kvconform.reference._pd_server import HandOffServer, Leases
from kvconform.reference._pd_wire import WireError
from kvconform.reference.producer_consumer import PairOptions

CPU = torch.device("cpu")
BLOCKS = 8


def pages_of(seed: int) -> tuple[KVPages, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 255, (BLOCKS, 2, 16, 8), generator=generator, dtype=torch.uint8)
    return KVPages({"layer": tensor}, ["layer"], BLOCKS), tensor


def hand_off_of(server: HandOffServer, blocks: tuple[int, ...], transfer: str = "t") -> HandOff:
    return HandOff(transfer, server.address.host, (server.address.port,), blocks, 16 * len(blocks), "kv", "prompt")


def wait_for(happened: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    while not (answer := happened()) and time.monotonic() < end:
        time.sleep(0.005)
    return answer


@pytest.fixture
def leases() -> Leases:
    return Leases(20.0)


@pytest.fixture
def server(leases: Leases) -> Iterator[HandOffServer]:
    made = HandOffServer("127.0.0.1", pages_of(1)[0], leases)
    yield made
    made.close()


@pytest.fixture
def consumer() -> Iterator[tuple[ConsumerSide, torch.Tensor]]:
    pages, tensor = pages_of(2)
    made = ConsumerSide(0, pages, CPU, timeout=0.3, threads=2)
    yield made, tensor
    made.close()


# -- leases --


def test_a_lease_ends_once_when_it_is_given_back(leases: Leases) -> None:
    leases.grant(Grant("t", "r", (1,)), StreamOrder(CPU))
    assert leases.collect() == set()
    leases.release("t")
    assert leases.collect() == {"r"}
    leases.release("t")
    assert leases.collect() == set()


def test_a_lease_given_back_before_it_was_granted_ends_with_the_grant(leases: Leases) -> None:
    leases.release("t")
    assert leases.collect() == set()
    leases.grant(Grant("t", "r", (1,)), StreamOrder(CPU))
    assert leases.collect() == {"r"}


def test_a_lease_expires_though_an_older_one_is_being_read() -> None:
    leases = Leases(0.05)
    for name in ("old", "new"):
        leases.grant(Grant(name, name, (1,)), StreamOrder(CPU))
    with leases.reading("old"):
        assert wait_for(leases.collect) == {"new"}
        with pytest.raises(WireError, match="its lease has ended"), leases.reading("new"):
            pass
    assert wait_for(leases.collect) == {"old"}


# -- transfers --


def test_blocks_arrive_where_the_consumer_wants_them(
    server: HandOffServer, leases: Leases, consumer: tuple[ConsumerSide, torch.Tensor]
) -> None:
    side, tensor = consumer
    before = tensor.clone()
    side.start(Pull(1, "r", hand_off_of(server, (5, 2, 7)), (2, 7), (3, 0)))
    # The consumer is there before the producer's next step.
    leases.grant(Grant("t", "p", (5, 2, 7)), StreamOrder(CPU))
    assert wait_for(side.collect) == {"r"}
    assert side.take_load_errors() == set()
    source = pages_of(1)[1]
    assert torch.equal(tensor[[3, 0]], source[[2, 7]])
    untouched = [1, 2, 4, 5, 6, 7]
    assert torch.equal(tensor[untouched], before[untouched])
    assert wait_for(leases.collect) == {"p"}


def test_blocks_of_others_are_not_given_out(server: HandOffServer, leases: Leases) -> None:
    leases.grant(Grant("t", "p", (5,)), StreamOrder(CPU))
    line = Line(hand_off_of(server, (5,)), 0, 5.0)
    try:
        with pytest.raises(WireError, match=r"\[6\] are no blocks of this transfer"):
            line.fetch((5, 6), pages_of(1)[0].fingerprint)
        with pytest.raises(WireError, match="another shape or dtype"):
            line.fetch((5,), "something else")
    finally:
        line.close()
    assert leases.collect() == set()


def test_a_producer_that_is_gone_or_silent_fails_the_load_in_time(consumer: tuple[ConsumerSide, torch.Tensor]) -> None:
    side, tensor = consumer
    before = tensor.clone()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        side.start(Pull(1, "silent", HandOff("t", "127.0.0.1", (port,), (1, 2), 32, "kv", "p"), (1, 2), (4, 5)))
        assert wait_for(side.collect) == {"silent"}
        assert side.take_load_errors() == {4, 5}
    side.start(Pull(2, "gone", HandOff("t", "127.0.0.1", (port,), (1,), 16, "kv", "p"), (1,), (6,)))
    assert wait_for(side.collect) == {"gone"}
    assert side.take_load_errors() == {6}
    assert side.take_load_errors() == set()
    assert torch.equal(tensor, before)


def test_a_cancelled_load_is_reported_and_given_back(
    server: HandOffServer, leases: Leases, consumer: tuple[ConsumerSide, torch.Tensor]
) -> None:
    side, _ = consumer
    side._timeout = 5.0
    side.start(Pull(1, "r", hand_off_of(server, (5,)), (5,), (3,)))
    side.cancel(1)
    leases.grant(Grant("t", "p", (5,)), StreamOrder(CPU))
    assert wait_for(side.collect) == {"r"}
    assert wait_for(leases.collect) == {"p"}


def test_shutdown_wakes_whoever_waits_and_leaves_no_thread(leases: Leases) -> None:
    before = set(threading.enumerate())
    server = HandOffServer("127.0.0.1", pages_of(1)[0], leases)
    side = ConsumerSide(0, pages_of(2)[0], CPU, timeout=60.0, threads=1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        side.start(Pull(1, "r", HandOff("t", "127.0.0.1", (port,), (1,), 16, "kv", "p"), (1,), (4,)))
        assert wait_for(lambda: side._lines)
        idle = Line(hand_off_of(server, (5,)), 0, 5.0)
        start = time.monotonic()
        side.close()
        server.close()
        idle.close()
        assert time.monotonic() - start < 20.0
    assert set(threading.enumerate()) <= before


# -- what comes from outside --


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"do_remote_prefill": True},
        {"do_remote_prefill": True, "remote_block_ids": "7", "remote_ports": [1], "remote_num_tokens": 3},
        {"do_remote_prefill": False, "remote_block_ids": [1]},
        {"something": object()},
    ],
)
def test_parameters_in_other_words_are_no_hand_off(params: Any) -> None:
    assert read_hand_off(params) is None


def test_a_hand_off_survives_the_front_end() -> None:
    hand_off = HandOff("t", "127.0.0.1", (7, 8), (3, 1, 2), 40, "kv", "prompt")
    assert read_hand_off(hand_off.params("engine", "request")) == hand_off


@pytest.mark.parametrize("options", [{"lease_seconds": 0}, {"peer_timeout": "soon"}, {"threads": True}])
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be a positive number"):
        PairOptions.read(options)


def test_options_of_others_are_left_alone() -> None:
    assert PairOptions.read({"path": "/somewhere", "threads": 2}) == PairOptions(threads=2)
