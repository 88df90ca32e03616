"""MUL: a child of MultiConnector minds its own business. Its calls are seen one by one, as the siblings' are not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from kvconform.checks.asynchronous_lives import REPORT_HOOKS, reported
from kvconform.checks.calls import failed_blocks, is_asynchronous, is_held, offered, raised
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.checks.transfer import external_tokens
from kvconform.engine.events import FINISH_HOOKS, ChildCall, EngineRaised, EngineStarted, Event, HookCall
from kvconform.engine.history import History

_FAILED_BLOCKS = "get_block_ids_with_load_errors"
_Found = tuple[str, str, str, Event, str]


@dataclass
class _Child:
    """What the child of one engine has offered, was told to load, and holds.

    ``loads`` maps a request to the step of a synchronous load, or of an asynchronous one's report, and to None while
    that is under way.
    ``passed_over`` counts offers for which a sibling was chosen, ``own`` and ``released`` the child's loads and holds,
    ``foreign`` the failed blocks that a sibling reported.
    """

    offered: dict[str, bool] = field(default_factory=dict)
    loads: dict[str, int | None] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    passed_over: int = 0
    own: int = 0
    foreign: int = 0
    updates: int = 0
    released: int = 0


def _follow(history: History) -> tuple[list[_Found], dict[int, _Child]]:
    """What a child did that is not its business: (rule, expected, observed, when, request); and what it was seen at."""
    children: dict[int, _Child] = defaultdict(_Child)
    found: list[_Found] = []
    # From 0.30.0 on vLLM asks for get_transfer_results, whose default asks for get_finished.
    wrapped = {event.engine for event in history.of(ChildCall) if event.call.hook == "get_transfer_results"}
    for event in history.events:
        if isinstance(event, ChildCall):
            if event.call.hook == "get_finished" and event.engine in wrapped:
                continue
            found += _call(children[event.engine], event)
        elif isinstance(event, HookCall) and event.hook == _FAILED_BLOCKS and event.engine in children:
            # What the whole reports and the child did not is a sibling's.
            children[event.engine].foreign += len(failed_blocks(event))
    return found, children


def _call(child: _Child, event: ChildCall) -> Iterator[_Found]:
    call = event.call
    request = str(call.args.get("request", ""))
    if call.error is not None:
        yield from _raised(child, event, request)
        return
    match call.hook:
        case "get_num_new_matched_tokens":
            child.offered.pop(request, None)
            if offered(call):
                child.offered[request] = is_asynchronous(call)
        case "update_state_after_alloc":
            asynchronous = child.offered.pop(request, None)
            if call.args["num_external_tokens"] > 0:
                child.loads[request] = None if asynchronous else event.step
                child.own += 1
            else:
                child.passed_over += asynchronous is not None
        case "build_connector_meta":
            child.loads = {name: step for name, step in child.loads.items() if step in (None, event.step)}
        case "update_connector_output":
            child.updates += 1
        case hook if hook == _FAILED_BLOCKS:
            blocks = failed_blocks(call)
            child.foreign -= len(blocks)
            if blocks and not child.loads:
                yield _strange("MUL-06", event, f"the blocks {', '.join(map(str, blocks))} as failed", "")
        case hook if hook in FINISH_HOOKS and is_held(call):
            child.held.add(request)
        case hook if hook in REPORT_HOOKS:
            yield from _reports(child, event)


def _raised(child: _Child, event: ChildCall, request: str) -> Iterator[_Found]:
    call = event.call
    if call.hook == "update_connector_output":
        yield "MUL-07", "outputs that speak of the siblings' transfers are taken", raised(call), event, ""
    elif call.hook == "update_state_after_alloc" and request in child.offered and not call.args["num_external_tokens"]:
        expected = (
            f"0 tokens are taken for {request}, for which a sibling was chosen although the child had offered some"
        )
        yield "MUL-10", expected, raised(call), event, request
    elif _is_strange(call):
        expected = "handshake metadata of another child's class is ignored"
        yield "MUL-04", expected, raised(call), event, ""


def _reports(child: _Child, event: ChildCall) -> Iterator[_Found]:
    call = event.call
    for request in reported(call, "finished_recving"):
        if child.loads.get(request, 0) not in (None, event.step):
            yield _strange("MUL-02", event, f"{request} in finished_recving", request)
        # What failed of it may be said in the same step, with it or right after it.
        child.loads[request] = event.step
    for request in reported(call, "failed_recving"):
        if child.loads.get(request, 0) not in (None, event.step):
            yield _strange("MUL-06", event, f"{request} in failed_recving", request)
    for request in reported(call, "finished_sending"):
        if request not in child.held:
            yield _strange("MUL-02", event, f"{request} in finished_sending", request)
        child.released += request in child.held
        child.held.discard(request)


def _strange(rule: str, event: ChildCall, what: str, request: str) -> _Found:
    expected = "a child reports of its own transfers only"
    return (
        rule,
        expected,
        f"{event.call.hook} of the child reported {what}; it has no load or hold of that",
        event,
        request,
    )


def _found(rule: str) -> Callable[[History], Iterator[Finding]]:
    def find(history: History) -> Iterator[Finding]:
        for found, expected, observed, at, request in history.derived(_follow)[0]:
            if found == rule:
                yield Finding(rule, expected, observed, at, (), (request,) if request else (), symptom=True)
                return

    return find


def _counted(what: str, count: Callable[[_Child], int]) -> Callable[[History], Mapping[str, int]]:
    def witness(history: History) -> Mapping[str, int]:
        return {what: sum(max(0, count(child)) for child in history.derived(_follow)[1].values())}

    return witness


def _passed_over(history: History) -> Mapping[str, int]:
    over = sum(child.passed_over for child in history.derived(_follow)[1].values())
    return {"offers for which a sibling was chosen": over if external_tokens(history) else 0}


def _is_strange(call: HookCall) -> bool:
    """Whether a child was given handshake metadata of the stranger's."""
    return "StrangersHandshake" in call.args.get("classes", ())


def _foreign_handshakes(history: History) -> Mapping[str, int]:
    given = [event.call for event in history.of(ChildCall) if _is_strange(event.call)]
    return {"deliveries of another child's metadata": sum(call.error is None for call in given)}


def _changed_requests(history: History) -> Mapping[str, int]:
    beside = {event.engine for event in history.of(EngineStarted) if event.sibling == "stranger"}
    ended = (event for event in history.of(ChildCall) if event.call.hook in FINISH_HOOKS and event.engine in beside)
    count = len({(event.engine, event.call.args["request"]) for event in ended})
    return {"requests whose parameters a sibling changed": count if external_tokens(history) else 0}


def rule_beside_a_stranger(_: History, finding: Finding) -> str:
    """The rule of a symptom that shows beside a child of another class only."""
    return finding.rule if finding.rule.startswith("MUL-") else "MUL-12"


def rule_of(_: History, finding: Finding) -> str:
    """The rule of a symptom that shows below MultiConnector only."""
    chapter = finding.rule.partition("-")[0]
    if chapter in ("ASYNC", "FAIL"):
        # It is the sibling, of the same class, that has reported what is not its own.
        return "MUL-02" if chapter == "ASYNC" else "MUL-06"
    at = finding.at
    if isinstance(at, EngineRaised) and at.cause_hook == "update_connector_output":
        return "MUL-07"
    return finding.rule if chapter == "MUL" else "MUL-10"


_NOT_CHOSEN = "the connector offered nothing while a sibling was chosen"
CHECKS = (
    Check(
        "MUL-02", _found("MUL-02"), _counted("loads and holds of its own", lambda c: c.own + c.released), "no transfer"
    ),
    Check(
        "MUL-06", _found("MUL-06"), _counted("blocks that a sibling reported", lambda c: c.foreign), "no load failed"
    ),
    Check("MUL-07", _found("MUL-07"), _counted("outputs", lambda c: c.updates), "no output of a step was taken"),
    Check("MUL-10", _found("MUL-10"), _passed_over, _NOT_CHOSEN),
    Check("MUL-04", _found("MUL-04"), _foreign_handshakes, "no handshake metadata of another class was delivered"),
    Check(
        "MUL-12", no_finding, _changed_requests, "nothing was loaded beside a child that changes requests' parameters"
    ),
)

#: What goes wrong afterwards follows from it.
UNDERMINING = frozenset({"MUL-02", "MUL-06"})
