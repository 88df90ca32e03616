"""ASYNC: who reports the end of which transfer, when, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kvconform.checks.asynchronous_lives import REPORT_HOOKS, Life, Lives, follow
from kvconform.checks.calls import is_asynchronous
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.checks.transfer import external_tokens
from kvconform.engine.byte_events import Arrived, Compared, Stray, WrongBytes
from kvconform.engine.events import HookCall, NeverIdle, Scheduled
from kvconform.engine.history import History


def _faults(rule: str) -> Callable[[History], Iterator[Finding]]:
    def find(history: History) -> Iterator[Finding]:
        seen: set[tuple[int, str]] = set()
        for fault in history.derived(follow)[0]:
            key = (fault.at.engine, fault.request)
            if fault.rule == rule and key not in seen:
                seen.add(key)
                # That the id was used before may be the reason, which a family can show.
                symptom = fault.again
                yield Finding(rule, fault.expected, fault.observed, fault.at, (), (fault.request,), symptom)

    return find


def _counted(what: str, count: Callable[[Lives, Life], int | bool]) -> Callable[[History], Mapping[str, int]]:
    def witness(history: History) -> Mapping[str, int]:
        engines = history.derived(follow)[1]
        return {what: sum(int(count(lives, life)) for lives in engines.values() for life in lives.all())}

    return witness


def _ended_load(lives: Lives, life: Life) -> bool:
    return life.load is not None and not lives.is_open(life.load)


def _ended_hold(lives: Lives, life: Life) -> bool:
    return life.hold is not None and not lives.is_open(life.hold)


def _reports(history: History) -> Iterator[HookCall]:
    return (call for call in history.calls(*REPORT_HOOKS) if call.role == "worker")


def _asked(history: History) -> Mapping[str, int]:
    return {"reports of completions": sum(call.error is None for call in _reports(history))}


# -- types -----------------------------------------------------------------------------------------------------------


def _types(history: History) -> Iterator[Finding]:
    for call in _reports(history):
        problem = _pair_problem(call) if call.hook == "get_finished" else _results_problem(call)
        if problem:
            yield Finding("ASYNC-15", _EXPECTED[call.hook], f"{call.hook} returned {problem}", call)
            return


#: Steps within which a write into a load's blocks is taken for the load itself, going on.
LATE = 20

_EXPECTED = {
    "get_finished": "a pair (sent, received), each a set of request ids or None",
    "get_transfer_results": "a KVConnectorTransferResults",
}


def _pair_problem(call: HookCall) -> str:
    """What of a pair vLLM can't take; iterables other than sets are turned into sets (base.py, 0.30.0 on)."""
    result: Any = call.result
    if call.error is not None:
        return ""
    if result is None or (isinstance(result, (bool, int, str)) and not str(result).startswith("<")):
        return repr(result)
    if isinstance(result, tuple) and len(result) != 2:
        return f"{len(result)} values"
    for item in result if isinstance(result, tuple) else ():
        if isinstance(item, str) and item and not item.startswith("<"):
            return f"the string {item!r} for a set, which vLLM takes for a set of its characters"
        if isinstance(item, int) and item:
            return f"{item!r} for a set"
    return ""


def _results_problem(call: HookCall) -> str:
    if call.error is not None or isinstance(call.result, dict):
        return ""
    return str(call.result)


# -- whether the data was there --------------------------------------------------------------------------------------


def _premature(history: History) -> Iterator[Finding]:
    """Loads reported as complete that went on writing, or whose bytes came later.

    A load that never delivers is the affair of LOAD-01.
    """
    for index, event in enumerate(history.events):
        if not isinstance(event, Arrived) or not event.wrong or event.reported_failed:
            continue
        late = _came_later(history, index, event)
        if late:
            yield Finding(
                "ASYNC-05",
                f"all {event.tokens} tokens of {event.request}'s load in its blocks when it is in finished_recving",
                f"{event.wrong} of them were not there in layer {event.layer}{_instead(event)}; {late}",
                event,
                requests=(event.request,),
            )


def _instead(arrived: Arrived) -> str:
    more = len(arrived.observed) - 1
    others = f", and {more} more run{'s' if more > 1 else ''} of tokens" if more > 0 else ""
    return f" ({arrived.observed[0]}{others})" if arrived.observed else ""


def _came_later(history: History, index: int, arrived: Arrived) -> str:
    first_forward: int | None = None
    forwards = 0
    wrong = False
    for event in history.events[index + 1 :]:
        if event.engine != arrived.engine:
            continue
        if event.step > arrived.step + LATE:
            break
        # Bytes of another load that miss their own blocks say nothing about this one's end.
        if isinstance(event, Stray) and event.block in arrived.blocks and arrived.request in event.late:
            return f"block {event.block} was written after that"
        if isinstance(event, Compared) and event.request == arrived.request:
            forwards += 1
            if forwards == 1 and _is_computed_anew(arrived, event):
                return "the engine computed it anew, but had put its block into the prefix cache before"
            if event.external_tokens > 0:
                first_forward = event.step if first_forward is None else first_forward
        elif isinstance(event, WrongBytes) and event.request == arrived.request and event.external:
            wrong = wrong or event.step == first_forward
    return "they came before the next forward" if first_forward is not None and not wrong else ""


def _is_computed_anew(arrived: Arrived, forward: Compared) -> bool:
    """Whether all that was not there is the last token of a prompt that was offered whole.

    It is computed in the request's first ``forward``, so that the next one can be sampled, but its block is cached with
    the others when the load is reported (Scheduler._update_waiting_for_remote_kv, 0.32.0).
    """
    missing = [held.first for held in arrived.held]
    return arrived.wrong == 1 and missing == [forward.local_tokens + forward.external_tokens]


def _arrived(history: History) -> Mapping[str, int]:
    return {"loads compared when they were reported": sum(1 for _ in history.of(Arrived))}


# -- what is under way -----------------------------------------------------------------------------------------------


def _push_work(history: History) -> Iterator[Finding]:
    for stuck in history.of(NeverIdle):
        last = _last(history, "has_pending_push_work", stuck)
        if not stuck.unfinished and last is not None and last.result:
            yield Finding(
                "ASYNC-17",
                "has_pending_push_work falls to False once nothing is outstanding",
                f"it was still True after {stuck.waited} without a request",
                stuck,
            )


def _push_asked(history: History) -> Mapping[str, int]:
    ended = [call for call in history.calls("has_pending_push_work") if call.result is False]
    pending = any(call.result for call in history.calls("has_pending_push_work"))
    return {"times that pending work ended": len(ended) if pending else 0}


def _block_frees(history: History) -> Iterator[Finding]:
    for stuck in history.of(NeverIdle):
        last = _last(history, "has_pending_block_frees", stuck)
        if last is not None and last.result and last.step >= stuck.step - 1:
            yield Finding(
                "ASYNC-18",
                "has_pending_block_frees is True only while transfers will release blocks by themselves",
                f"it was True in the last of {stuck.limit} steps in which nothing could be scheduled",
                stuck,
                requests=stuck.unfinished,
            )


def _frees_asked(history: History) -> Mapping[str, int]:
    return {
        "has_pending_block_frees calls": sum(call.error is None for call in history.calls("has_pending_block_frees"))
    }


def _last(history: History, hook: str, stuck: NeverIdle) -> HookCall | None:
    calls = [call for call in history.calls(hook) if call.engine == stuck.engine and call.error is None]
    return calls[-1] if calls else None


def _held_written(history: History) -> Iterator[Finding]:
    seen: set[tuple[int, int]] = set()
    for write in history.of(Stray):
        key = (write.engine, write.block)
        if write.held and key not in seen:
            seen.add(key)
            yield Finding(
                "ASYNC-12",
                f"the blocks of {' and '.join(write.owners)}, which has finished and is held, are only read",
                f"block {write.block} in layer {write.layer} changed {write.phase}"
                + (f": {write.observed[0]}" if write.observed else ""),
                write,
                requests=write.owners,
            )


def together(history: History) -> int:
    """How many asynchronous loads were committed to while another one was under way, with their bytes compared."""
    under_way: set[tuple[int, str]] = set()
    asynchronous: dict[tuple[int, str], bool] = {}
    count = 0
    for call in history.calls("get_num_new_matched_tokens", "update_state_after_alloc", *REPORT_HOOKS):
        if call.hook in REPORT_HOOKS:
            ids = call.result.get("finished_recving", ()) if isinstance(call.result, dict) else ()
            under_way -= {(call.engine, request) for request in ids}
            continue
        key = (call.engine, call.args["request"])
        if call.hook == "get_num_new_matched_tokens":
            asynchronous[key] = is_asynchronous(call)
        elif call.args["num_external_tokens"] > 0 and asynchronous.get(key):
            count += bool(under_way)
            under_way.add(key)
    return count if external_tokens(history) else 0


def _together(history: History) -> Mapping[str, int]:
    return {"loads beside another one": together(history)}


def _chunked_holds(history: History) -> Mapping[str, int]:
    """Requests that were computed in several steps and held at the end; their bytes are compared afterwards."""
    steps = Counter((event.engine, request) for event in history.of(Scheduled) for request in event.scheduled)
    engines = history.derived(follow)[1]
    held = sum(
        life.hold is not None and steps[number, life.request] > 1
        for number, lives in engines.items()
        for life in lives.all()
    )
    return {"holds of requests with several saves": held if external_tokens(history) else 0}


def _second_lives(history: History) -> Mapping[str, int]:
    engines = history.derived(follow)[1]
    again = sum(
        life.load is not None or life.hold is not None
        for lives in engines.values()
        for past in lives.past.values()
        for life in past
    )
    return {"ids used again after a transfer": again}


_NO_LOAD = "no asynchronous load was committed to"
_NO_HOLD = "request_finished never answered True"
_NO_REPORT = "no worker was asked for completions"

CHECKS = (
    Check("ASYNC-01", _faults("ASYNC-01"), _counted("asynchronous loads reported", _ended_load), _NO_LOAD),
    Check("ASYNC-02", _faults("ASYNC-02"), _counted("asynchronous loads reported", _ended_load), _NO_LOAD),
    Check("ASYNC-03", _faults("ASYNC-03"), _asked, _NO_REPORT),
    Check(
        "ASYNC-04",
        _faults("ASYNC-04"),
        _counted("transfers reported", lambda lives, life: _ended_load(lives, life) or _ended_hold(lives, life)),
        "no transfer was reported as complete",
    ),
    Check("ASYNC-05", _premature, _arrived, _NO_LOAD),
    Check("ASYNC-06", _faults("ASYNC-06"), _counted("holds reported", _ended_hold), _NO_HOLD),
    Check("ASYNC-07", _faults("ASYNC-07"), _counted("holds reported", _ended_hold), _NO_HOLD),
    Check(
        "ASYNC-09",
        _faults("ASYNC-09"),
        _counted("requests aborted while they were loading", lambda _, life: life.loading),
        "no request was aborted while it was loading",
    ),
    Check("ASYNC-12", _held_written, _counted("holds reported", _ended_hold), _NO_HOLD),
    Check("ASYNC-13", no_finding, _together, "no load was committed to while another one was under way"),
    Check(
        "ASYNC-14",
        _faults("ASYNC-14"),
        _counted("transfers reported by several workers", lambda lives, life: lives.workers > 1
                 and (_ended_load(lives, life) or _ended_hold(lives, life))),
        "no transfer was reported by several workers",
    ),
    Check("ASYNC-15", _types, _asked, _NO_REPORT),
    Check(
        "ASYNC-16",
        _faults("ASYNC-16"),
        _counted("failed loads reported as complete", lambda lives, life: life.failed and _ended_load(lives, life)),
        "no request was reported in failed_recving",
    ),
    Check("ASYNC-17", _push_work, _push_asked, "has_pending_push_work was never True"),
    Check("ASYNC-18", _block_frees, _frees_asked, "the scheduler never ran out of blocks"),
    Check("ASYNC-20", no_finding, _chunked_holds, "no request with several saves was held"),
    Check("ASYNC-22", _faults("ASYNC-22"), _second_lives, "no id was used again after a transfer"),
    Check(
        "FAIL-09",
        _faults("FAIL-09"),
        _counted("requests failed before their load had ended", lambda _, life: life.failed_while_loading),
        "no request failed before its asynchronous load had ended",
    ),
)  # fmt: skip

#: Completions that leave blocks or states of the scheduler wrong: nothing that shows later proves anything.
UNDERMINING = frozenset(
    {"ASYNC-02", "ASYNC-03", "ASYNC-04", "ASYNC-05", "ASYNC-06", "ASYNC-07", "ASYNC-09", "ASYNC-22"}
)
