"""The two fixtures that everything else hangs on: the connector under test and its configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from kvconform.config import RunConfig
from kvconform.errors import UsageError
from kvconform.isolation.sharing import shared_with
from kvconform.report.spent import Spent
from kvconform.target import Target

if TYPE_CHECKING:
    from kvconform.isolation.nursery import Nursery
    from kvconform.isolation.room import Room

OTHERWISE_HASHING = "otherwise_hashing"
RUN_CONFIG: pytest.StashKey[RunConfig] = pytest.StashKey()


class UnusableTargetError(Exception):
    """A target that turned out to be unusable when it was imported; :mod:`kvconform.session` reports it once."""

    def __init__(self, target: str, sentence: str) -> None:
        super().__init__(sentence)
        self.target = target


@dataclass
class Rooms:
    """The processes of the connectors of a run; made when the first test asks for one."""

    config: pytest.Config
    #: Whether a test will want processes that hash otherwise; importing vLLM for them takes as long as for the first.
    hashing_otherwise_too: bool = False
    #: Where a process of xdist's reaches the nurseries of its run, see :mod:`kvconform.isolation.sharing`.
    shared: Sequence[str] = ()
    _nursery: Nursery | None = None
    _rooms: dict[str, Room] = field(default_factory=dict)

    def room(self, target: Target) -> Room:
        """The process of one connector; not started yet."""
        from kvconform.isolation.nursery import Nursery
        from kvconform.isolation.room import Room

        run_config = self.config.stash[RUN_CONFIG]
        if self._nursery is None:
            self._nursery = Nursery(run_config.resolved_device, engine=run_config.resolved_engine, shared=self.shared)
            if self.hashing_otherwise_too:
                self._nursery.otherwise_hashing().warm_up()
        if target.id not in self._rooms:
            self._rooms[target.id] = Room(target, run_config.for_target(target), self._nursery)
        return self._rooms[target.id]

    def otherwise_hashing(self, target: Target) -> Nursery:
        """Where processes with another seed of Python's ``hash()`` come from."""
        return self.room(target).nursery.otherwise_hashing()

    @property
    def spent(self) -> Spent:
        """Where the time has gone so far."""
        rooms = self._rooms.values()
        waited = 0.0 if self._nursery is None else self._nursery.waited_in_all
        return Spent(sum(room.played for room in rooms), sum(room.seconds for room in rooms), waited)

    def close(self) -> None:
        """End all processes."""
        for room in self._rooms.values():
            room.close()
        if self._nursery is not None:
            self._nursery.close()


@pytest.fixture(scope="session")
def _rooms(request: pytest.FixtureRequest) -> Iterator[Rooms]:
    """Where connectors are imported and run: never in pytest's own process."""
    wanted = any(OTHERWISE_HASHING in getattr(item, "fixturenames", ()) for item in request.session.items)
    shared = shared_with(request.config)
    # A worker of xdist does not know which tests it will get; one that imports for itself alone would do so in vain.
    wanted = wanted and (bool(shared) or not hasattr(request.config, "workerinput"))
    rooms = Rooms(request.config, wanted and (os.cpu_count() or 1) > 1, shared)
    yield rooms
    rooms.close()


@pytest.fixture(scope="session")
def kvconform_target(request: pytest.FixtureRequest, _rooms: Rooms) -> Target:
    """The connector under test, importable. Tests that use it, directly or not, run once per connector."""
    target: Target = request.param
    try:
        _rooms.room(target).load()
    except UsageError as error:
        raise UnusableTargetError(target.id, str(error)) from None
    return target


@pytest.fixture(scope="session", name=OTHERWISE_HASHING)
def _otherwise_hashing(kvconform_target: Target, _rooms: Rooms) -> Nursery:
    """Where processes with another seed of Python's ``hash()``, and other addresses, come from."""
    return _rooms.otherwise_hashing(kvconform_target)


@pytest.fixture(scope="session")
def kvconform_config(request: pytest.FixtureRequest, kvconform_target: Target) -> RunConfig:
    """The run's configuration for the connector under test, with its preset."""
    return request.config.stash[RUN_CONFIG].for_target(kvconform_target)
