"""For the differential test: writes down every program that a run plays, with what came of it on this run's engine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from comparing import masked

from kvconform.checks import Examination
from kvconform.isolation import room
from kvconform.isolation.codec import dump_program, load_examination
from kvconform.isolation.nursery import Nursery
from kvconform.scenario.exploration import Refused
from kvconform.scenario.program import Program
from kvconform.stage import AT_ONCE, Manner

_PLAYED: dict[str, dict[str, dict[str, Any]]] = {}
_TRACES: list[dict[str, Any]] = []


def _load(data: Any) -> Examination:
    _TRACES.append(data["trace"])
    return load_examination(data)


def _recording(examine: Any) -> Any:
    def play(self: room.Room, program: Program, manner: Manner = AT_ONCE) -> Examination:
        _TRACES.clear()
        came: dict[str, Any] = {"error": ""}
        try:
            examination: Examination = examine(self, program, manner)
            came = {"error": "", **_TRACES[-1]}
        except Refused as error:
            came = {"error": f"refused: {masked(str(error))}"}
            raise
        except (room.HungError, room.CrashedError) as error:
            came = {"error": type(error).__name__}
            raise
        finally:
            data = dump_program(program)
            _PLAYED.setdefault(self.target.id, {})[json.dumps(data, sort_keys=True)] = came
        return examination

    return play


def pytest_configure(config: pytest.Config) -> None:
    """From here on every connector's process tells more, and what it tells is kept."""
    Nursery.module = "recording_child"
    room.load_examination = _load
    room.Room.examine = _recording(room.Room.examine)  # type: ignore[method-assign]


def pytest_sessionfinish() -> None:
    """Write it."""
    Path(os.environ["KVCONFORM_PLAYED"]).write_text(json.dumps(_PLAYED), encoding="utf-8")
