"""FAIL: how a load that did not deliver is reported, and what becomes of the request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kvconform.checks.calls import finishes, offered, refused_to_go_on
from kvconform.checks.loads import Load, Report, block_sizes, loads, reports
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.engine.byte_events import Compared, Stray, WrongBytes
from kvconform.engine.events import EngineRaised, HookCall, NeverIdle, Outlasted, ProgramAction, StoreBroken, Tokens
from kvconform.engine.history import History

#: Worker steps after which a report is no longer taken for a late one of an old load.
LATE = 3
_TAINTED = "computed on top of wrong KV"
_Judged = tuple[str, Report, str, str, tuple[str, ...]]
_Told = tuple[int, str, int, int, int]


# -- reports ---------------------------------------------------------------------------------------------------------


def _judged(history: History) -> Iterator[_Judged]:
    """Reported blocks that should not have been: (rule, report, expected, observed, requests)."""
    told: set[_Told] = set()
    for report in reports(history):
        if report.blocks and len(block_sizes(history, report.call.engine)) > 1:
            expected = "failed loads of a model with several KV cache groups in failed_recving, as request ids"
            yield "FAIL-05", report, expected, f"block ids {_ids(report.blocks)} were reported", ()
            continue
        for block in report.blocks:
            yield from _judge_block(report, block, told)


def _judge_block(report: Report, block: int, told: set[_Told]) -> Iterator[_Judged]:
    """``told`` are the blocks that were reported in time, each of its load, by each worker for itself."""
    filling = [load for load in report.loads if block in load.blocks]
    open_now = [load for load in filling if load.open_at(report.step, report.rank)]
    if open_now:
        told.update(_told(load, block, report.rank) for load in open_now)
        return
    again = [load for load in filling if _told(load, block, report.rank) in told]
    recent = [load for load in filling if _age(load, report) <= LATE]
    behind = [load for load in report.loads if load.open_at(report.step, report.rank) and block in load.local]
    observed = f"get_block_ids_with_load_errors reported block {block}"
    if again:
        load = again[-1]
        expected = f"each failed block once: block {block} of {load.request}'s load was reported before"
        yield "FAIL-01", report, expected, f"{observed} again, {_age(load, report)} steps later", (load.request,)
    elif behind:
        load = behind[-1]
        expected = f"only blocks {_ids(load.blocks)}, which {load.request}'s load was to fill"
        yield "FAIL-07", report, expected, f"{observed}, which is a local hit of {load.request}", (load.request,)
    elif recent:
        load = recent[-1]
        rule = "FAIL-02" if load.asynchronous else "FAIL-03"
        due = "the output with its finished_recving, at the latest" if load.asynchronous else "the step that loads it"
        steps = _age(load, report)
        late = f"{observed} {steps} step{'' if steps == 1 else 's'} too late"
        yield rule, report, f"a failure of {load.request}'s load in {due}", late, (load.request,)
    else:
        expected = "only blocks that a load of now was to fill"
        yield "FAIL-04", report, expected, f"{observed}, which no load was to fill", ()


def _told(load: Load, block: int, rank: int) -> _Told:
    return load.engine, load.request, load.step, block, rank


def _age(load: Load, report: Report) -> int:
    """Worker steps since this report of the load was due: an asynchronous one's, until its end is reported."""
    return report.step - (load.received_by(report.rank) or load.step)


def _misreported(rule: str) -> Callable[[History], Iterator[Finding]]:
    def find(history: History) -> Iterator[Finding]:
        seen: set[tuple[int, int, str]] = set()
        for judged, report, expected, observed, requests in _judged(history):
            key = (report.call.engine, report.step, judged)
            if judged == rule and key not in seen:
                seen.add(key)
                yield Finding(rule, expected, observed, report.call, requests=requests)

    return find


def _not_a_set(history: History) -> Iterator[Finding]:
    for call in history.calls("get_block_ids_with_load_errors"):
        if call.error is None and not (isinstance(call.result, dict) and "set" in call.result):
            observed = f"get_block_ids_with_load_errors returned {call.result}"
            yield Finding("FAIL-01", "a set of block ids, empty if there are none", observed, call)
            return
    yield from _misreported("FAIL-01")(history)


def _sync_as_request(history: History) -> Iterator[Finding]:
    for report in reports(history):
        for request in report.requests:
            own = [load for load in report.loads if load.request == request]
            if own and not own[-1].asynchronous:
                yield Finding(
                    "FAIL-12",
                    f"block ids for the failed synchronous load of {request}",
                    f"{request} was put into failed_recving, which the scheduler ignores for a running request",
                    report.call,
                    requests=(request,),
                )


def _ids(blocks: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(blocks)))


# -- what a scenario with a broken store shows -----------------------------------------------------------------------
# These rules are about a difference between two runs. Their findings are symptoms that the family "broken store" binds
# to them; the checks below only tell whether the situation arose.


def broken_rule(history: History, finding: Finding) -> str:
    """The rule of a symptom that a fault provokes under either policy."""
    at = finding.at
    if isinstance(at, WrongBytes) and any(_TAINTED in text for text in at.observed):
        # Nobody can know that KV is bad whose load was never reported as failed: that is the defect then.
        unreported = any(event.external and not event.reported_failed for event in _before(history, at))
        return "FAIL-20" if unreported else "SAVE-04"
    if isinstance(at, NeverIdle):
        return stuck_rule(history, at)
    return finding.rule if finding.rule == "LIVE-01" else "FAIL-20"


def _before(history: History, at: WrongBytes) -> Iterator[WrongBytes]:
    """Slots found wrong in earlier steps, those left out that were computed on wrong ones."""
    for event in history.of(WrongBytes):
        tainted = any(_TAINTED in text for text in event.observed)
        if not tainted and (event.engine, event.step) < (at.engine, at.step):
            yield event


def recomputed_rule(history: History, finding: Finding) -> str:
    """The rule of a symptom that shows under the policy "recompute" only."""
    if isinstance(finding.at, NeverIdle):
        return stuck_rule(history, finding.at)
    late = {judged for judged, *_ in _judged(history)} & {"FAIL-02", "FAIL-03"}
    if late:
        # A request that runs before its failure is known runs on what is missing.
        return min(late)
    failed = [load for report in reports(history) for load in report.loads if _failed(report, load)]
    return "FAIL-11" if any(not load.asynchronous for load in failed) else "FAIL-20"


def failed_rule(history: History, finding: Finding) -> str:
    """The rule of a symptom that shows under the policy "fail" only."""
    if isinstance(finding.at, NeverIdle):
        return stuck_rule(history, finding.at, otherwise="FAIL-06")
    later = isinstance(finding.at, WrongBytes) and finding.at.request not in _errors(history)
    return "FAIL-08" if later else "FAIL-06"


def refused_rule(_: History, finding: Finding) -> str:
    """The rule of a symptom that shows when saves fail."""
    if isinstance(finding.at, (WrongBytes, Stray)):
        return "SAVE-16"
    return "FAIL-16" if finding.rule == "LIVE-01" else "ASYNC-21"


def stuck_rule(history: History, stuck: NeverIdle | Outlasted, otherwise: str = "FAIL-20") -> str:
    """The rule of requests that never end: why, if their load failed."""
    failed = {_which(load) for report in reports(history) for load in report.loads if _failed(report, load)}
    for request in stuck.unfinished if isinstance(stuck, NeverIdle) else (*stuck.unfinished, *stuck.held):
        own = [load for load in loads(history) if load.request == request and _which(load) in failed]
        own = [load for load in own if load.engine == stuck.engine]
        if len(own) > LATE:
            return "FAIL-10"
        if own and own[-1].asynchronous and not own[-1].received:
            return "FAIL-09" if request in _errors(history) else "FAIL-02"
    return otherwise


def without_peer_rule(history: History, wait: Outlasted) -> str:
    """Why a request whose producer is gone never ends."""
    named = {request for report in reports(history) if report.call.engine == wait.engine for request in report.requests}
    received = {load.request for load in loads(history) if load.engine == wait.engine and load.received}
    if named & set(wait.unfinished) - received:
        return "ASYNC-16"
    return stuck_rule(history, wait, otherwise="LIVE-05")


def _which(load: Load) -> tuple[int, str, int]:
    return load.engine, load.request, load.step


def _failed(report: Report, load: Load) -> bool:
    return load.open_at(report.step, report.rank) and (
        load.request in report.requests or not set(load.blocks).isdisjoint(report.blocks)
    )


def _errors(history: History) -> set[str]:
    ended = {call.args["request"] for call in finishes(history) if call.args["status"] == "FINISHED_ERROR"}
    return ended | {event.request for event in history.of(Tokens) if event.finish_reason == "error"}


# -- witnesses -------------------------------------------------------------------------------------------------------


def _reported(asynchronous: bool | None = None) -> Callable[[History], Mapping[str, int]]:
    def witness(history: History) -> Mapping[str, int]:
        what = {None: "", True: "asynchronous ", False: "synchronous "}[asynchronous]
        failed = {
            _which(load)
            for report in reports(history)
            for load in report.loads
            if _failed(report, load) and asynchronous in (None, load.asynchronous)
        }
        return {f"failed {what}loads reported": len(failed)}

    return witness


def _error_ends(history: History) -> Mapping[str, int]:
    return {"requests failed because of their load": len(_errors(history))}


def _loads_after_error(history: History) -> Mapping[str, int]:
    errors, compared = set(), 0
    for event in history.events:
        if isinstance(event, Tokens) and event.finish_reason == "error":
            errors.add(event.request)
        elif isinstance(event, Compared) and errors and event.request not in errors:
            compared += event.external_tokens
    return {"tokens loaded after a request had failed": compared}


def _recovered(asynchronous: bool) -> Callable[[History], Mapping[str, int]]:
    def witness(history: History) -> Mapping[str, int]:
        failed = {
            (load.engine, load.request)
            for report in reports(history)
            for load in report.loads
            if _failed(report, load) and load.asynchronous is asynchronous
        }
        ended = {(e.engine, e.request) for e in history.of(Tokens) if e.finish_reason in ("length", "stop")}
        return {"requests that went on after a failed load": len(failed & ended)}

    return witness


def _of_several_groups(history: History) -> Mapping[str, int]:
    """Failed loads of models with several KV cache groups that did not go unnoticed."""
    several = (report for report in reports(history) if len(block_sizes(history, report.call.engine)) > 1)
    return {
        "requests reported as failed with several groups": sum(len(report.requests) for report in several),
        "workers that raised instead": sum(refused_to_go_on(history, event) for event in history.of(EngineRaised)),
    }


def _refusals(history: History) -> Mapping[str, int]:
    """Prompts that were computed while nothing could be stored, and that were not found when it could be again."""
    refused, phase, files = {}, "", 0
    tokens: dict[str, tuple[int, ...]] = {}
    lost = 0
    for event in history.events:
        if isinstance(event, StoreBroken) and event.kind in ("writes", "mended"):
            phase, files = event.kind, files or event.files
        elif isinstance(event, ProgramAction) and event.action == "add" and "tokens" in event.detail:
            tokens[event.detail["request"]] = own = tuple(event.detail["tokens"])
            if phase == "writes":
                refused[own] = files > 0
        elif isinstance(event, HookCall) and event.hook == "get_num_new_matched_tokens" and phase == "mended":
            own = tokens.get(event.args["request"], ())
            missed = event.error is None and not offered(event) and event.args["num_computed_tokens"] == 0
            # Only the first query afterwards tells: the prompt is stored again then.
            lost += refused.pop(own, False) and missed
    return {"prompts whose saves failed": lost}


_NO_GROUPS_FAILED = "no load failed with several KV cache groups"
_NO_FAILURE = (
    "no load failed: the connector keeps no files in {dir} that could be broken and the configuration names no class "
    "that breaks its store (faults), or it never noticed"
)
CHECKS = (
    Check("FAIL-01", _not_a_set, _reported(), _NO_FAILURE),
    Check("FAIL-02", _misreported("FAIL-02"), _reported(True), "no asynchronous load failed"),
    Check("FAIL-03", _misreported("FAIL-03"), _reported(False), "no synchronous load failed"),
    Check("FAIL-04", _misreported("FAIL-04"), _reported(), _NO_FAILURE),
    Check("FAIL-07", _misreported("FAIL-07"), _reported(), _NO_FAILURE),
    Check("FAIL-12", _sync_as_request, _reported(False), "no synchronous load failed"),
    Check("FAIL-05", _misreported("FAIL-05"), _of_several_groups, _NO_GROUPS_FAILED),
    Check("FAIL-15", no_finding, _of_several_groups, _NO_GROUPS_FAILED),
    Check("FAIL-06", no_finding, _error_ends, "no request failed because of its load"),
    Check("FAIL-08", no_finding, _loads_after_error, "nothing was loaded after a request had failed"),
    Check("FAIL-10", no_finding, _recovered(True), "no request went on after a failed asynchronous load"),
    Check("FAIL-11", no_finding, _recovered(False), "no request went on after a failed synchronous load"),
    Check(
        "FAIL-16",
        no_finding,
        _refusals,
        "no save failed: the connector keeps nothing in {dir} that could be made unwritable",
    ),
    Check("FAIL-20", no_finding, _reported(), _NO_FAILURE),
)
