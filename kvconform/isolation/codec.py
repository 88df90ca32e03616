"""Programs, histories and findings as JSON: what crosses between pytest and the connector's process, and case files.

Plain data in, plain data out: decoding builds the kit's own dataclasses from numbers, strings, lists and tables, and
nothing else; a file cannot name a class or a module.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import cattrs
from cattrs.strategies import configure_tagged_union

from kvconform.checks.model import Examination, Finding
from kvconform.engine import byte_events, events
from kvconform.engine.events import Event, HookCall
from kvconform.engine.history import History
from kvconform.scenario.program import Action, Program

T = TypeVar("T")

EVENT_TYPES: frozenset[type[Event]] = frozenset(
    kind
    for module in (events, byte_events)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
)


class CodecError(ValueError):
    """The text is not what the kit writes; one sentence."""


@cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    # Arguments and results of hooks are plain already; tuples in them come back as lists.
    converter.register_structure_hook_func(lambda kind: kind is Any, lambda value, _: value)
    configure_tagged_union(Action, converter, tag_name="action")
    return converter


def dump_program(program: Program) -> dict[str, Any]:
    """A program as plain data."""
    data: dict[str, Any] = _converter().unstructure(program, Program)
    return data


def load_program(data: Any) -> Program:
    """The inverse of :func:`dump_program`.

    Raises:
        CodecError: not a program, or one with values that no engine can be set up with.
    """
    return _structure(data, Program, "a scenario")


def dump_history(history: History) -> list[dict[str, Any]]:
    """A history as plain data: each event with its kind."""
    converter = _converter()
    return [{"event": type(event).__name__, **converter.unstructure(event)} for event in history.events]


def load_history(data: Any) -> History:
    """The inverse of :func:`dump_history`, but for tuples in hook arguments, which come back as lists."""
    kinds = {kind.__name__: kind for kind in EVENT_TYPES}
    history = History()
    for entry in data:
        fields = dict(entry)
        kind = kinds.get(fields.pop("event", ""))
        if kind is None:
            raise CodecError(f"unknown event {entry.get('event')!r} in a history")
        event = _structure(fields, kind, f"an event {kind.__name__}")
        if isinstance(event, HookCall) and isinstance(event.result, list):
            # Only tuples are recorded as such (describe_result); JSON has made lists of them.
            event = replace(event, result=_as_tuple(event.result))
        history.add(event)
    return history


def _as_tuple(result: Any) -> Any:
    return tuple(map(_as_tuple, result)) if isinstance(result, list) else result


def dump_examination(examination: Examination) -> dict[str, Any]:
    """An examination as plain data; a clean one travels without its history, which nobody will read."""
    index = {id(event): number for number, event in enumerate(examination.history.events)}
    return {
        "history": [] if examination.clean else dump_history(examination.history),
        "findings": [
            {**_converter().unstructure(finding), "at": index[id(finding.at)]} for finding in examination.findings
        ],
        "witnesses": {rule: dict(seen) for rule, seen in examination.witnesses.items()},
        "capabilities": dict(examination.capabilities),
        "offered": dict(examination.offered),
        "engine_bug": examination.engine_bug,
        "excused": list(examination.excused),
        "excused_symptom": examination.excused_symptom,
    }


def load_examination(data: Any) -> Examination:
    """The inverse of :func:`dump_examination`."""
    history = load_history(data["history"])
    findings = []
    for entry in data["findings"]:
        at = history.events[entry["at"]]
        fields = {**entry, "at": {"engine": at.engine, "step": at.step}}
        finding = _structure(fields, Finding, "a finding")
        findings.append(
            Finding(
                finding.rule,
                finding.expected,
                finding.observed,
                at,
                finding.details,
                finding.requests,
                finding.symptom,
            )
        )
    return Examination(
        history,
        tuple(findings),
        data["witnesses"],
        data["capabilities"],
        data["offered"],
        data["engine_bug"],
        tuple(data["excused"]),
        data["excused_symptom"],
    )


def _structure(data: Any, kind: type[T], what: str) -> T:
    try:
        return _converter().structure(data, kind)
    except Exception as error:
        reasons = "; ".join(cattrs.transform_error(error)[:3]) if isinstance(error, ExceptionGroup) else str(error)
        raise CodecError(f"not {what} that kvconform wrote: {reasons}") from error


def to_bytes(message: dict[str, Any]) -> bytes:
    """One message between pytest and the connector's process."""
    return json.dumps(message).encode()


def from_bytes(data: bytes) -> dict[str, Any]:
    """The inverse of :func:`to_bytes`."""
    message: dict[str, Any] = json.loads(data)
    return message


__all__ = [
    "CodecError",
    "dump_examination",
    "dump_history",
    "dump_program",
    "from_bytes",
    "load_examination",
    "load_history",
    "load_program",
    "to_bytes",
]
