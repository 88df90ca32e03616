"""ROLE: what each role's instance may need, hold and change. What crosses between them is in ``crossing``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kvconform.checks.calls import failed_blocks, failed_here
from kvconform.checks.model import Check, Examination, Finding, no_finding
from kvconform.checks.transfer import external_tokens
from kvconform.engine.events import (
    BorrowedChanged,
    Event,
    ForeignState,
    HookCall,
    MetadataHeld,
    ProgramAction,
    Role,
    RolesInspected,
    TransferParams,
)
from kvconform.engine.history import History

# Called on both roles (contract: ROLE-03).
BOTH_ROLES = ("get_kv_connector_stats", "shutdown")
HANDSHAKE_SETTERS = ("set_xfer_handshake_metadata", "set_xfer_handshake_metadata_pp_aware")


def _foreign(rule: str, role: Role) -> Callable[[History], Iterator[Finding]]:
    def find(history: History) -> Iterator[Finding]:
        other = "worker" if role == "scheduler" else "scheduler"
        for event in history.of(ForeignState):
            if event.role == role and event.hook not in BOTH_ROLES:
                yield Finding(
                    rule,
                    f"{event.hook} works on a {role}-role instance on which no {other}-side hook is ever called",
                    f"{event.hook} raised for want of {event.state}{_error(history, event)}",
                    event,
                )

    return find


def _error(history: History, event: ForeignState) -> str:
    calls = [call for call in history.calls(event.hook) if (call.engine, call.step) == (event.engine, event.step)]
    return next((f": {call.error} ({call.where})" for call in calls if call.role == event.role and call.error), "")


def _answered(role: Role) -> Callable[[History], Mapping[str, int]]:
    def witness(history: History) -> Mapping[str, int]:
        return {f"{role}-side hook calls": sum(call.role == role and call.error is None for call in history.calls())}

    return witness


def _scheduler_failures(history: History) -> Iterator[Finding]:
    # A second call of shutdown is another matter (SHUT-06), and so is one that would fail on any role (SHUT-05).
    second: set[int] = set()
    for event in history.events:
        if isinstance(event, ProgramAction) and event.action == "shutdown again":
            second.add(event.engine)
        elif (
            isinstance(event, HookCall)
            and event.hook in BOTH_ROLES
            and event.role == "scheduler"
            and event.error is not None
            and event.engine not in second
            and (event.hook != "shutdown" or not failed_here(history, event))
        ):
            yield both_roles_finding(event)


def both_roles_finding(call: HookCall) -> Finding:
    """The finding for a hook of both roles that raised on an instance."""
    observed = f"{call.hook} on the {call.role}-role instance raised {call.error} ({call.where})"
    return Finding("ROLE-03", f"{call.hook} works on both roles, whatever was set up before", observed, call)


def _both_roles_calls(history: History) -> Mapping[str, int]:
    return {
        f"{hook} on the scheduler role": sum(
            call.role == "scheduler" and call.error is None for call in history.calls(hook)
        )
        for hook in BOTH_ROLES
    }


def _holdings(history: History) -> Iterator[Finding]:
    for event in history.of(RolesInspected):
        for found in event.found:
            expected = "each role holds only what exists in its own process"
            yield Finding("ROLE-04", expected, found, event)


def _inspections(history: History) -> Mapping[str, int]:
    return {"instances searched": 2 * sum(1 for _ in history.of(RolesInspected))}


def _held_metadata(history: History) -> Iterator[Finding]:
    for event in history.of(MetadataHeld):
        if event.changes:
            yield Finding(
                "ROLE-07",
                "the metadata of a step stays as it was returned, also while the next step is scheduled",
                f"scheduling the next step changed it: {event.changes[0]}",
                event,
                details=event.changes[1:],
            )
            return


def _metadata_compared(history: History) -> Mapping[str, int]:
    return {"metadata objects compared": sum(1 for _ in history.of(MetadataHeld))}


def _empty_handshakes(history: History) -> Iterator[HookCall]:
    return (call for call in history.calls(*HANDSHAKE_SETTERS) if not call.args["ranks"])


def _empty_refused(history: History) -> Iterator[Finding]:
    for call in _empty_handshakes(history):
        if call.error is not None:
            yield handshake_finding("ROLE-10", call)
            return


def handshake_finding(rule: str, call: HookCall) -> Finding:
    """The finding for a setter of handshake metadata that raised."""
    ranks = ", ".join(call.args["ranks"])
    what = f"the metadata of {ranks}" if ranks else "an empty dictionary"
    expected = "an empty dictionary is taken" if rule == "ROLE-10" else "a second delivery replaces the first"
    return Finding(rule, expected, f"{call.hook} with {what} raised {call.error} ({call.where})", call)


def _empty_taken(history: History) -> Mapping[str, int]:
    return {"empty handshakes delivered": sum(call.error is None for call in _empty_handshakes(history))}


def _repeated(history: History) -> Iterator[HookCall]:
    """Deliveries of metadata of some rank after the first one to the same engine."""
    seen: set[tuple[int, str]] = set()
    for call in history.calls(*HANDSHAKE_SETTERS):
        if call.args["ranks"]:
            if (call.engine, call.hook) in seen:
                yield call
            seen.add((call.engine, call.hook))


def _repeat_refused(history: History) -> Iterator[Finding]:
    for call in _repeated(history):
        if call.error is not None:
            yield handshake_finding("ROLE-16", call)
            return


def _repeats(history: History) -> Mapping[str, int]:
    return {"handshakes delivered again": sum(call.error is None for call in _repeated(history))}


def _params(history: History) -> Iterator[Finding]:
    for event in history.of(TransferParams):
        if event.problems:
            yield Finding(
                "ROLE-12",
                "JSON values with string keys",
                f"request_finished of {event.request}: {event.problems[0]}",
                event,
                details=event.problems[1:],
                requests=(event.request,),
            )
            return


def _several_params(history: History) -> Mapping[str, int]:
    requests = {(event.engine, event.request) for event in history.of(TransferParams)}
    return {"requests with kv_transfer_params": len(requests) if len(requests) > 1 else 0}


def _params_seen(history: History) -> Mapping[str, int]:
    return {"kv_transfer_params returned": sum(1 for _ in history.of(TransferParams))}


def _borrowed(rule: str, what: str, expected: str, did: str = "changed") -> Callable[[History], Iterator[Finding]]:
    def find(history: History) -> Iterator[Finding]:
        seen: set[tuple[int, str]] = set()
        for event in history.of(BorrowedChanged):
            if event.what == what and (event.engine, event.hook) not in seen:
                seen.add((event.engine, event.hook))
                observed = f"{event.hook} {did} {event.changes[0]}"
                yield Finding(rule, expected, observed, event, details=event.changes[1:])

    return find


def _scheduler_calls(history: History) -> Mapping[str, int]:
    return {"hooks watched": sum(call.role == "scheduler" and call.step > 0 for call in history.calls())}


def _builds(history: History) -> Mapping[str, int]:
    return {"scheduler outputs compared": sum(call.error is None for call in history.calls("build_connector_meta"))}


_FAILED_LOADS = "blocks reported as not loaded"


def _shared_state(history: History) -> Mapping[str, int]:
    tokens = external_tokens(history)
    failed = sum(len(failed_blocks(call)) for call in history.calls("get_block_ids_with_load_errors"))
    return {"external tokens compared": tokens, _FAILED_LOADS: failed if tokens else 0}


def disturbance(side_by_side: Examination, alone: Examination) -> Iterator[Finding]:
    """ROLE-05: loads that failed only because a second engine was at work in the same process.

    A connector that reports the failure is right to do so, and the engine repairs it; that there is one is the defect.
    """
    failed, usual = (each.witnesses["ROLE-05"][_FAILED_LOADS] for each in (side_by_side, alone))
    if failed and not usual:
        yield Finding(
            "ROLE-05",
            "loads succeed beside another engine of the same process as they do alone",
            f"two engines, each with a store of its own, reported {failed} blocks as not loaded; "
            "the same requests on one engine alone are loaded",
            Event(0, 0),
        )


_NO_STEP = "no step was scheduled"

CHECKS = (
    Check("ROLE-01", _foreign("ROLE-01", "scheduler"), _answered("scheduler"), "no scheduler-side hook was called"),
    Check("ROLE-02", _foreign("ROLE-02", "worker"), _answered("worker"), "no worker-side hook was called"),
    Check("ROLE-03", _scheduler_failures, _both_roles_calls, "neither hook was called on the scheduler role"),
    Check("ROLE-04", _holdings, _inspections, "no engine became idle"),
    Check("ROLE-05", no_finding, _shared_state, "no external hit was loaded, so no loaded byte could be compared"),
    Check("ROLE-07", _held_metadata, _metadata_compared, "no step was scheduled after another one"),
    Check("ROLE-10", _empty_refused, _empty_taken, "the workers returned handshake metadata"),
    Check("ROLE-12", _params, _params_seen, "no request returned kv_transfer_params"),
    Check(
        "FIN-04",
        _borrowed(
            "FIN-04",
            "returned parameters",
            "a dict of its own for every request, which the engine may change",
            "gave what was given before:",
        ),
        _several_params,
        "no two requests returned kv_transfer_params",
    ),
    Check(
        "ROLE-14",
        _borrowed("ROLE-14", "request or block", "requests, block tables and reference counts are left to the engine"),
        _scheduler_calls,
        _NO_STEP,
    ),
    Check("ROLE-16", _repeat_refused, _repeats, "no handshake metadata was delivered a second time"),
    Check(
        "META-01",
        _borrowed("META-01", "scheduler output", "the scheduler output as it was, but for two fields"),
        _builds,
        _NO_STEP,
    ),
)
