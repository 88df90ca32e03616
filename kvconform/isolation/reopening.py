"""A store that one process has filled, opened by others: one like the first, and one that hashes otherwise."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvconform.checks.model import Examination
from kvconform.isolation.room import CrashedError, HungError, Room
from kvconform.stage import Manner

if TYPE_CHECKING:
    from kvconform.conformance import Conformance
    from kvconform.isolation.nursery import Nursery
    from kvconform.scenario.program import Program


@dataclass(frozen=True)
class Reopened:
    """External tokens that were loaded, by a process with another seed of ``hash()`` and addresses of its own.

    ``forked`` are those that a process with the first one's seed loaded; None if that was not tried, because the other
    one had found something. ``obstacle`` is why nothing can be said.
    """

    otherwise: int = 0
    forked: int | None = None
    obstacle: str = ""


def reopen(conformance: Conformance, otherwise_hashing: Nursery, store: Program, ask: Program) -> Reopened:
    """Play ``store`` in one process and ``ask`` in others, on the same store.

    Args:
        conformance: the connector on trial.
        otherwise_hashing: where processes with another seed of ``hash()`` come from.
        store: what fills the store.
        ask: what should find it.

    Raises:
        Refused: the connector refused to start with this set-up.
    """
    room = conformance.room
    if room is None:
        return Reopened(obstacle="the run plays everything in one process")
    directory = Path(tempfile.mkdtemp(prefix="kvconform-"))
    try:
        with conformance.models(fresh=conformance.needs.fresh_model_names) as models:
            place = _Place(directory, models)
            _played(conformance, room.nursery, place, store)
            otherwise = _loaded(conformance, otherwise_hashing, place, ask)
            if otherwise:
                return Reopened(otherwise)
            return Reopened(0, _loaded(conformance, room.nursery, place, ask))
    except (HungError, CrashedError) as error:
        return Reopened(obstacle=f"a process that opened the store ended in the middle of it: {error}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True)
class _Place:
    """Where all of them find the store, and their models; see :class:`kvconform.stage.Manner`."""

    directory: Path
    models: str


def _loaded(conformance: Conformance, nursery: Nursery, place: _Place, program: Program) -> int:
    return _played(conformance, nursery, place, program).witnesses["LOAD-01"]["external tokens compared"]


def _played(conformance: Conformance, nursery: Nursery, place: _Place, program: Program) -> Examination:
    """In a process of its own, whose configuration names the directory instead of asking for a fresh one."""
    extra = _literal(conformance.stage.connector_spec(place.directory).extra_config)
    config = replace(conformance.config, kv_connector_extra_config=extra)
    with contextlib.closing(Room(conformance.target, config, nursery)) as room:
        manner = Manner(store_delay=conformance.needs.store_delay, models=place.models)
        return room.examine(conformance.fitted(program), manner)


def _literal(value: Any) -> Any:
    """A configuration value that has been filled in, as one without placeholders."""
    if isinstance(value, dict):
        return {key: _literal(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_literal(entry) for entry in value]
    return value.replace("{", "{{").replace("}", "}}") if isinstance(value, str) else value
