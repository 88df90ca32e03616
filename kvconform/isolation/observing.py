"""pytest's side of looking at a connector class in processes that have seen nothing of it."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

from kvconform.checks.class_model import ClassObservation
from kvconform.engine.options import ConnectorSpec
from kvconform.isolation.codec import from_bytes
from kvconform.isolation.nursery import Nursery
from kvconform.isolation.room import why_not_started
from kvconform.target import Target

# Twice the patience with a constructor, an import, and room for slow machines.
LIMIT = 180.0


def observe_class(
    nursery: Nursery | None, target: Target, both: ConnectorSpec, scheduler: ConnectorSpec, device: str
) -> ClassObservation:
    """Import the class and build both roles in one fresh process, the scheduler role alone in another.

    Args:
        nursery: where processes come from; None observes in this process, where little can be fresh.
        target: the connector.
        both: its configuration for the process with both roles.
        scheduler: its configuration for the other one; the directories differ.
        device: "cpu" or "cuda".

    Raises:
        EngineUnusableError: no engine can be had in this environment.
        KitError: the kit's own fault.
    """
    if nursery is None:
        from kvconform.engine.vllm_engine.construction import observe

        return observe(both, device)
    seen = _ask(nursery, target, both, device, scheduler_only=False)
    if seen.scheduler is None:
        return seen
    alone = _ask(nursery, target, scheduler, device, scheduler_only=True)
    return replace(seen, scheduler_alone=alone.scheduler_alone)


def _ask(
    nursery: Nursery, target: Target, spec: ConnectorSpec, device: str, *, scheduler_only: bool
) -> ClassObservation:
    search_path = None if target.search_path is None else str(target.search_path)
    setup: dict[str, Any] = {
        "observe": asdict(spec),
        "search_path": search_path,
        "device": device,
        "scheduler_only": scheduler_only,
    }
    pid, pipe = nursery.start(setup)
    try:
        with pipe:
            if not pipe.poll(LIMIT):
                return ClassObservation(ended=f"a process that imports and builds it did not answer within {LIMIT:g} s")
            answer = from_bytes(pipe.recv_bytes())
            if "observation" not in answer:
                raise why_not_started(nursery, answer)
            return ClassObservation.from_dict(answer["observation"])
    except (EOFError, OSError):
        return ClassObservation(ended=f"a process that imports and builds it {_end(nursery, pid)}")
    finally:
        nursery.kill(pid)


def _end(nursery: Nursery, pid: int) -> str:
    for _ in range(100):
        code = nursery.ended(pid)
        if code is not None:
            return f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        time.sleep(0.02)
    return "closed its connection to the kit"
