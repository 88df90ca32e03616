"""CFG: where options come from, seen when the class is built."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvconform.checks.class_model import ClassObservation, Raised
from kvconform.checks.model import Finding
from kvconform.engine.events import Event

#: Fields of KVTransferConfig that 0.32.0 removed (vllm/config/kv_transfer.py; there until 0.31.0).
REMOVED = ("kv_buffer_size", "kv_rank", "kv_parallel_size", "kv_ip")
_MISSING = re.compile(r"'KVTransferConfig' object has no attribute '(\w+)'")
_BEFORE = Event(0, 0)


def missing_fields(seen: ClassObservation) -> dict[str, Raised]:
    """Attributes of KVTransferConfig that a constructor asked for in vain, with what it raised."""
    missing: dict[str, Raised] = {}
    for raised in (seen.configured, *(role.raised for role in (seen.worker, seen.scheduler) if role is not None)):
        found = None if raised is None else _MISSING.search(raised.message)
        if raised is not None and found is not None:
            missing.setdefault(found.group(1), raised)
    return missing


def misplaced(seen: ClassObservation) -> Iterator[Finding]:
    """CFG-02: options as attributes of their own. CFG-03: fields that are gone."""
    for name, raised in missing_fields(seen).items():
        if name in REMOVED:
            yield Finding("CFG-03", f"no use of kv_transfer_config.{name}", f"the constructor raised {raised}", _BEFORE)
        else:
            expected = f"{name!r} read from kv_connector_extra_config"
            yield Finding("CFG-02", expected, f"the constructor raised {raised}", _BEFORE)


def built(seen: ClassObservation) -> int:
    """How many roles were built."""
    return sum(role is not None and role.built for role in (seen.worker, seen.scheduler))
