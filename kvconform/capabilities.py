"""What a connector can do, looked at three ways: declared in its configuration, detected, and exercised in a run.

*Detected* means that the class has what the capability needs. *Exercised* counts how often it was seen at work. A rule
with a capability is asked of a connector that declares it, whose class has it, or that shows it in the scenarios that
call for it (:mod:`kvconform.scenario.capabilities`): always the same ones, so that the answer does not depend on which
tests ran before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvconform.checks.calls import is_asynchronous, is_held
from kvconform.checks.class_model import ClassShape
from kvconform.engine.byte_events import Compared
from kvconform.engine.events import FINISH_HOOKS, ChildCall, EngineStarted, EventsPublished, HookCall, ProgramAction
from kvconform.engine.history import History
from kvconform.rules.model import CAPABILITIES

#: Asked of every connector: the engine decides about them, not the connector.
OF_EVERY_CONNECTOR: frozenset[str] = frozenset({"base", "multi-worker", "async-scheduling", "multi-connector"})

#: Asked of the class by vLLM itself (supports_hma, 0.32.0): no scenario can show what the class does not have.
BY_CLASS_ALONE: frozenset[str] = frozenset({"hma"})

#: Hooks and class-level answers whose override is the capability's claim (KVConnectorBase_V1, 0.32.0).
_OVERRIDES: Mapping[str, tuple[str, ...]] = {
    "layerwise": ("requires_piecewise_for_cudagraph",),
    "failure-report": ("get_block_ids_with_load_errors", "get_transfer_results"),
    "handshake": ("get_handshake_metadata",),
    "stats": ("get_kv_connector_stats",),
    "prom": ("build_prom_metrics",),
    "events": ("take_events", "get_kv_connector_kv_cache_events"),
    "worker-meta": ("build_connector_worker_meta",),
    "push": ("has_pending_push_work",),
    "sleep": ("supports_sleep_mode",),
}

#: What it takes to see a capability that only behaviour shows.
_BEHAVIOUR: Mapping[str, str] = {
    "sync-load": "no match query was answered with tokens to load in the same step",
    "async-load": "no match query was answered with an asynchronous load",
    "delayed-free": "request_finished never kept a request's blocks",
    "async-save": "request_finished never kept a request's blocks for a save",
    "pd": "no finished request returned kv_transfer_params",
    "persistence": "a restarted engine found nothing of what was stored before",
    "mamba": "nothing was loaded for a request of a model with recurrent layers",
    "hma": "the class does not derive from SupportsHMA",
}


@dataclass(frozen=True)
class Capability:
    """One capability of one connector. ``detected`` says by what, empty if it was not; ``exercised`` counts events."""

    name: str
    declared: bool = False
    detected: str = ""
    exercised: int = 0

    @property
    def state(self) -> str:
        """One word or two for a table."""
        if self.declared and not self.exercised:
            return "declared, not seen"
        if self.exercised:
            return "works" if self.declared else "works, undeclared"
        return "has the hooks, not seen" if self.detected else "-"


@dataclass
class Shown:
    """What was detected and exercised so far; merged over programs, tests and processes."""

    detected: dict[str, str] = field(default_factory=dict)
    exercised: Counter[str] = field(default_factory=Counter)

    def count(self, exercised: Mapping[str, int]) -> None:
        """Add what one more program showed."""
        self.exercised.update(dict(exercised))

    def add(self, detected: Mapping[str, str], exercised: Mapping[str, int]) -> None:
        """Merge what somebody else saw; the same programs may be told of twice, so counts are not added up."""
        for name, reason in detected.items():
            self.detected.setdefault(name, reason)
        for name, count in exercised.items():
            self.exercised[name] = max(self.exercised[name], count)

    def table(self, declared: Iterable[str]) -> tuple[Capability, ...]:
        """Every capability that is declared, detected or exercised, in the catalogue's order."""
        claims = set(declared)
        rows = [
            Capability(name, name in claims, self.detected.get(name, ""), self.exercised[name])
            for name in CAPABILITIES
            if name not in OF_EVERY_CONNECTOR
        ]
        return tuple(row for row in rows if row.declared or row.detected or row.exercised)


def of_class(shape: ClassShape | None) -> dict[str, str]:
    """Capabilities that the class claims by what it overrides: name -> in what way."""
    if shape is None:
        return {}
    found = {
        name: f"overrides {', '.join(hooks)}"
        for name, wanted in _OVERRIDES.items()
        if (hooks := [hook for hook in wanted if hook in shape.overrides])
    }
    return {**found, "hma": "derives from SupportsHMA"} if shape.hma else found


def exercised(history: History) -> Counter[str]:
    """How often a run saw each capability at work."""
    seen: Counter[str] = Counter()
    if any(True for _ in history.of(ChildCall)):
        # What MultiConnector shows is its own.
        return seen
    _loads(history, seen)
    for call in history.calls(*_TELLING):
        if call.error is None:
            seen.update(_of_call(call))
    seen["persistence"] += _loads_after_a_shutdown(history)
    seen["events"] += sum(event.stored + event.removed > 0 for event in history.of(EventsPublished))
    routed = {action.detail["request"] for action in history.of(ProgramAction) if action.detail.get("routed")}
    seen["pd"] += sum(call.args["request"] in routed and _keeps(call) for call in history.calls(*FINISH_HOOKS))
    if any(action.action == "hand off" for action in history.of(ProgramAction)):
        # Between two engines; what a connector does for one alone is another matter, and asked in other scenarios.
        return Counter({name: seen["pd"] for name in ("pd", "producer") if seen["pd"]})
    groups = [call for call in history.calls("update_state_after_alloc") if _several_groups(call)]
    seen["hma"] += sum(call.args["num_external_tokens"] > 0 for call in groups)
    recurrent = {event.engine for event in history.of(EngineStarted) if event.recurrent}
    seen["mamba"] += sum(call.args["num_external_tokens"] > 0 for call in groups if call.engine in recurrent)
    return +seen


def _keeps(finish: HookCall) -> bool:
    """Whether the blocks are kept for somebody to fetch them, who is told where by a router."""
    return is_held(finish) and len(finish.result) == 2 and not finish.result[1]


def _loads_after_a_shutdown(history: History) -> int:
    ended: set[int] = set()
    loads = 0
    for event in history.events:
        if isinstance(event, ProgramAction) and event.action == "shutdown":
            ended.add(event.engine)
        elif isinstance(event, Compared) and event.external_tokens:
            loads += any(engine < event.engine for engine in ended)
    return loads


def _loads(history: History, seen: Counter[str]) -> None:
    answers: dict[tuple[int, str], bool] = {}
    for call in history.calls("get_num_new_matched_tokens", "update_state_after_alloc"):
        key = (call.engine, str(call.args.get("request")))
        if call.hook == "get_num_new_matched_tokens":
            answers[key] = is_asynchronous(call)
        elif call.args["num_external_tokens"] > 0:
            seen["async-load" if answers.get(key) else "sync-load"] += 1


def _of_call(call: HookCall) -> Counter[str]:
    """What one successful call shows."""
    result: Any = call.result
    shown: Counter[str] = Counter()
    if call.hook in FINISH_HOOKS and isinstance(result, tuple):
        shown["delayed-free"] += is_held(call)
        shown["async-save"] += is_held(call)
        shown["pd"] += len(result) > 1 and bool(result[1])
    elif call.hook == "get_transfer_results" and isinstance(result, dict):
        shown["failure-report"] += len(result.get("failed_recving") or ())
    elif call.hook == "get_block_ids_with_load_errors" and isinstance(result, dict):
        shown["failure-report"] += len(result.get("set") or ())
    else:
        for name, hook in _VISIBLE.items():
            shown[name] += hook == call.hook and result is not None
    return shown


#: Hooks whose result that is not None shows the capability.
_VISIBLE: Mapping[str, str] = {
    "handshake": "get_handshake_metadata",
    "stats": "get_kv_connector_stats",
    "events": "get_kv_connector_kv_cache_events",
    "worker-meta": "build_connector_worker_meta",
}


#: Hooks that :func:`_of_call` looks at.
_TELLING = (*sorted(FINISH_HOOKS), "get_transfer_results", "get_block_ids_with_load_errors", *_VISIBLE.values())


def _several_groups(call: HookCall) -> bool:
    blocks = call.args["block_ids"]
    return len(blocks) > 1 and isinstance(blocks[0], list)


def why_not(name: str) -> str:
    """Why a capability counts as absent, for a verdict of "not applicable"."""
    if name in _OVERRIDES:
        lacking = f"it overrides none of {', '.join(_OVERRIDES[name])}"
    else:
        lacking = _BEHAVIOUR.get(name, "nothing shows it without being declared")
    return f"the connector does not declare {name}, and {lacking}"
