"""What the workers report besides completions: whether it survives the way through vLLM's aggregator."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from kvconform.engine.events import Event, ReportsMerged, ReportTested
from kvconform.engine.snapshot import ObjectState, plain

_REPORTS = {
    "kv_connector_stats": "statistics",
    "kv_cache_events": "events",
    "kv_connector_worker_meta": "worker metadata",
}


def watched(outputs: Sequence[Any], engine: int, step: int) -> Iterator[Event]:
    """What can be said of the outputs of a step's workers before they are aggregated."""
    metadata = []
    for rank, output in enumerate(outputs):
        connector_output = output.kv_connector_output
        for name, what in _REPORTS.items():
            report = getattr(connector_output, name, None)
            if report is not None:
                # An object with a false __len__ or __bool__ is dropped (KVConnectorOutput.is_empty, aggregate; 0.32.0).
                lost = "" if report else next(_content(plain(report)), "")
                yield ReportTested(engine, step, what, rank, lost)
                if name == "kv_connector_worker_meta":
                    metadata.append(report)
    if len(metadata) > 1:
        yield ReportsMerged(engine, step, _merge_problem(metadata[0], metadata[1]))


def _merge_problem(first: Any, second: Any) -> str:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata

    held = {*_entries(plain(first)), *_entries(plain(second))}
    for one, other, order in ((first, second, "rank 0 with rank 1"), (second, first, "rank 1 with rank 0")):
        try:
            merged = copy.deepcopy(one).aggregate(copy.deepcopy(other))
        except Exception as error:
            return f"aggregating {order} raised {type(error).__name__}: {error}"
        if not isinstance(merged, KVConnectorWorkerMetadata):
            return f"aggregating {order} returned {merged!r}"
        missing = sorted(map(repr, held - set(_entries(plain(merged)))))
        if missing:
            return f"aggregating {order} lost {', '.join(missing[:5])}"
    return ""


def _entries(value: Any) -> Iterator[Any]:
    """Keys of mappings and members of sets, at any depth: what reports are about."""
    if isinstance(value, ObjectState):
        for item in value.attributes.values():
            yield from _entries(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item)
    elif isinstance(value, frozenset):
        yield from value


def _content(value: Any, *, top: bool = True) -> Iterator[str]:
    """Something inside the containers of a report; numbers and names beside them may be mere settings."""
    if isinstance(value, (ObjectState, dict)):
        items = value.attributes if isinstance(value, ObjectState) else value
        for item in items.values():
            if not top or isinstance(item, (dict, list, frozenset, ObjectState)):
                yield from _content(item, top=False)
    elif isinstance(value, (list, frozenset)):
        for item in value:
            yield from _content(item, top=False)
    elif value:
        yield repr(value)[:80]
