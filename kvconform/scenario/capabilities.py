"""Scenarios that call for a capability, for connectors that declare it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from kvconform.capabilities import Capability
from kvconform.checks import Examination
from kvconform.scenario import failures, hybrid, producer_consumer, transfer
from kvconform.scenario.exploration import Refused
from kvconform.scenario.program import Program


@dataclass(frozen=True)
class Demonstration:
    """Programs that call for one capability; ``lacking`` says what did not happen in them."""

    programs: Callable[[], tuple[Program, ...]]
    lacking: str


def _plain() -> tuple[Program, ...]:
    return (transfer.reload().examples[0],)


def _restart() -> tuple[Program, ...]:
    return transfer.restart().examples[:1]


def _broken_store() -> tuple[Program, ...]:
    return failures.failed_loads("recompute").examples


def _groups() -> tuple[Program, ...]:
    return hybrid.several_groups().examples[:1]


DEMONSTRATIONS: Mapping[str, Demonstration] = {
    "sync-load": Demonstration(_plain, "no stored prompt was offered for a load in the same step"),
    "async-load": Demonstration(_plain, "no stored prompt was offered for an asynchronous load"),
    "delayed-free": Demonstration(_plain, "request_finished never kept the blocks of a request"),
    "async-save": Demonstration(_plain, "request_finished never kept the blocks of a request for a save"),
    "handshake": Demonstration(_plain, "get_handshake_metadata returned nothing"),
    "stats": Demonstration(_plain, "get_kv_connector_stats returned nothing"),
    "events": Demonstration(_plain, "no KV cache event came out"),
    "failure-report": Demonstration(_broken_store, "no failed load was reported, although the store was broken"),
    "hma": Demonstration(_groups, "nothing was loaded for a request with several KV cache groups"),
    "pd": Demonstration(producer_consumer.demonstration, "no finished request returned kv_transfer_params"),
    "producer": Demonstration(producer_consumer.demonstration, "no finished request returned kv_transfer_params"),
    "worker-meta": Demonstration(_plain, "build_connector_worker_meta returned nothing"),
    "persistence": Demonstration(_restart, "a restarted engine was offered nothing of what was stored before"),
}


class Player(Protocol):
    """What tries programs and counts what they showed."""

    def examine(self, program: Program) -> Examination:
        """Play and judge one program."""

    def capability(self, name: str) -> Capability:
        """What is known by now."""


def demonstrate(player: Player, name: str) -> Capability:
    """Play the scenarios of one capability, unless it was seen before, and say what is known then."""
    if not player.capability(name).exercised:
        for program in DEMONSTRATIONS[name].programs():
            with contextlib.suppress(Refused):
                player.examine(program)
    return player.capability(name)
