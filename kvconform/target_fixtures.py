"""The two fixtures that everything else hangs on: the connector under test and its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from kvconform.config import RunConfig
from kvconform.errors import UsageError
from kvconform.target import Target

if TYPE_CHECKING:
    from kvconform.isolation.nursery import Nursery
    from kvconform.isolation.room import Room

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
    _nursery: Nursery | None = None
    _rooms: dict[str, Room] = field(default_factory=dict)

    def room(self, target: Target) -> Room:
        """The process of one connector; not started yet."""
        from kvconform.isolation.nursery import Nursery
        from kvconform.isolation.room import Room

        run_config = self.config.stash[RUN_CONFIG]
        if self._nursery is None:
            self._nursery = Nursery(run_config.resolved_device, engine=run_config.resolved_engine)
        if target.id not in self._rooms:
            self._rooms[target.id] = Room(target, run_config.for_target(target), self._nursery)
        return self._rooms[target.id]

    def close(self) -> None:
        """End all processes."""
        for room in self._rooms.values():
            room.close()
        if self._nursery is not None:
            self._nursery.close()


@pytest.fixture(scope="session")
def _rooms(request: pytest.FixtureRequest) -> Iterator[Rooms]:
    """Where connectors are imported and run: never in pytest's own process."""
    rooms = Rooms(request.config)
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


@pytest.fixture(scope="session")
def kvconform_config(request: pytest.FixtureRequest, kvconform_target: Target) -> RunConfig:
    """The run's configuration for the connector under test, with its preset."""
    return request.config.stash[RUN_CONFIG].for_target(kvconform_target)
