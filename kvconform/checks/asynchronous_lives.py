"""The lives of requests as a connector's completions have to see them, read from a history.

A life begins when a request is added and ends when its blocks are free again. vLLM keeps the blocks of a request that
has ended while the connector holds them (request_finished answered True) or while a load into them is under way
(Scheduler._free_request, finish_requests, 0.32.0). Every worker reports the end of a load and of a hold once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvconform.checks.calls import is_asynchronous, is_held
from kvconform.engine.events import FINISH_HOOKS, Event, HookCall, NeverIdle, ProgramAction
from kvconform.engine.history import History

REPORT_HOOKS = ("get_transfer_results", "get_finished")


@dataclass
class Transfer:
    """A load that was committed to, or a hold; ``reported`` are the workers that have reported its end.

    ``taken`` tells of a load that the scheduler has taken the report of all workers.
    """

    begun: HookCall
    reported: set[int] = field(default_factory=set)
    taken: bool = False


@dataclass
class Life:
    """One life of a request id.

    ``load`` is the last asynchronous load; ``synchronous`` that a synchronous one was committed to. ``loading`` tells
    that the load was under way for the scheduler when the request ended: it keeps the blocks until it takes the report,
    which may be on its way (finish_requests, _update_from_kv_xfer_finished). ``seen`` are the workers that know of the
    request's end.
    """

    request: str
    load: Transfer | None = None
    synchronous: bool = False
    ended: HookCall | None = None
    loading: bool = False
    hold: Transfer | None = None
    seen: set[int] = field(default_factory=set)
    failed: bool = False

    @property
    def failed_while_loading(self) -> bool:
        """Whether the request ended because of a failure that the scheduler took before the end of its load."""
        status = None if self.ended is None else self.ended.args.get("status")
        return self.loading and status == "FINISHED_ERROR"


@dataclass(frozen=True)
class Fault:
    """A completion that breaks ``rule``, or one that never came; ``again`` tells that the id had an earlier life."""

    rule: str
    expected: str
    observed: str
    at: Event
    request: str
    again: bool = False


@dataclass
class Lives:
    """The lives in one engine, followed event by event."""

    workers: int = 1
    current: dict[str, Life] = field(default_factory=dict)
    past: dict[str, list[Life]] = field(default_factory=lambda: defaultdict(list))
    _asynchronous: dict[str, bool] = field(default_factory=dict)

    def all(self) -> Iterator[Life]:
        """Every life so far."""
        for lives in self.past.values():
            yield from lives
        yield from self.current.values()

    def added(self, request: str) -> None:
        """The engine was given a request."""
        if request in self.current:
            self.past[request].append(self.current[request])
        self.current[request] = Life(request)

    def follow(self, call: HookCall) -> None:
        """A scheduler-side hook was called."""
        request = call.args.get("request", "")
        life = self.current.get(request)
        if call.hook == "update_connector_output":
            for received in call.args["finished_recving"]:
                if (loaded := self.current.get(received)) is not None and loaded.load is not None:
                    loaded.load.taken = True
        elif call.hook == "get_num_new_matched_tokens":
            self._asynchronous[request] = is_asynchronous(call)
        elif life is None:
            return
        elif call.hook == "update_state_after_alloc" and call.args["num_external_tokens"] > 0:
            if self._asynchronous.get(request, False):
                life.load = Transfer(call)
            else:
                life.synchronous = True
        elif call.hook in FINISH_HOOKS:
            life.ended, life.loading = call, life.load is not None and not life.load.taken
            life.hold = Transfer(call) if is_held(call) else None

    def is_open(self, transfer: Transfer | None) -> bool:
        """Whether some worker has still to report the end of a transfer."""
        return transfer is not None and len(transfer.reported) < self.workers

    # -- reports -----------------------------------------------------------------------------------------------------

    def received(self, request: str, worker: int, call: HookCall) -> Iterator[Fault]:
        """A worker put ``request`` into finished_recving."""
        life = self.current.get(request)
        observed = f"{call.hook} put {request} into finished_recving"
        if life is not None and life.load is not None and worker not in life.load.reported:
            life.load.reported.add(worker)
        elif life is not None and life.load is not None:
            expected = f"one report of the end of {request}'s load, which this worker has given before"
            yield Fault("ASYNC-04", expected, f"{observed} again", call, request)
        elif any(past.load is not None for past in self.past[request]):
            expected = f"nothing more of the load of an earlier request of the id {request}"
            yield Fault("ASYNC-22", expected, f"{observed}, which has no load in its present life", call, request)
        elif life is None or (life.ended is not None and not self.is_open(life.hold)):
            state = "which the engine was never given" if life is None else "which has ended and whose blocks are free"
            yield Fault("ASYNC-02", "only ids that the scheduler tracks", f"{observed}, {state}", call, request)
        else:
            how = "was loaded synchronously" if life.synchronous else "has no load at all"
            expected = "only requests that wait for an asynchronous load"
            yield Fault("ASYNC-03", expected, f"{observed}, which {how}", call, request)

    def sent(self, request: str, worker: int, call: HookCall, answers_next: bool | None) -> Iterator[Fault]:
        """A worker put ``request`` into finished_sending.

        Args:
            request: the id.
            worker: its rank.
            call: the report.
            answers_next: what request_finished answers for it while the scheduler takes this very report, if it ends
                there.
        """
        life = self.current.get(request)
        observed = f"{call.hook} put {request} into finished_sending"
        if life is not None and life.loading:
            answered = "True" if life.hold is not None else "False"
            expected = f"only finished_recving for {request}, which was aborted while its load was under way"
            yield Fault("ASYNC-09", expected, f"{observed}; request_finished had answered {answered}", call, request)
        elif life is not None and life.hold is not None:
            yield from self._end_of_hold(life, life.hold, worker, call, observed)
        elif life is not None and life.ended is None and answers_next:
            expected = f"finished_sending once the worker was given {request} in finished_req_ids, not before"
            yield Fault("ASYNC-07", expected, f"{observed} in the step in which it ends", call, request)
        elif any(past.hold is not None for past in self.past[request]):
            expected = f"nothing more of the hold of an earlier request of the id {request}"
            yield Fault("ASYNC-22", expected, f"{observed}, which holds nothing in its present life", call, request)
        else:
            if life is None:
                state = "which the engine was never given"
            elif life.ended is None:
                state = "which has not finished"
            else:
                state = "for which request_finished had answered False"
            expected = "only finished requests whose blocks the connector holds"
            yield Fault("ASYNC-06", expected, f"{observed}, {state}", call, request)

    @staticmethod
    def _end_of_hold(life: Life, hold: Transfer, worker: int, call: HookCall, observed: str) -> Iterator[Fault]:
        if worker in hold.reported:
            expected = f"one report of the end of {life.request}'s hold, which this worker has given before"
            yield Fault("ASYNC-04", expected, f"{observed} again", call, life.request)
        elif worker not in life.seen:
            expected = f"finished_sending once the worker was given {life.request} in finished_req_ids, not before"
            yield Fault("ASYNC-07", expected, f"{observed} before that", call, life.request)
        hold.reported.add(worker)

    def missing(self, stuck: NeverIdle) -> Iterator[Fault]:
        """The engine never became idle: which reports it waits for."""
        for request in stuck.unfinished:
            life = self.current.get(request)
            if life is None:
                continue
            if self.is_open(life.hold) and not life.loading:
                assert life.hold is not None
                expected = f"{request} in finished_sending once, since request_finished answered True"
                yield self._never("ASYNC-07", expected, life.hold, stuck, request)
            elif self.is_open(life.load):
                assert life.load is not None
                if stuck.step - life.load.begun.step < stuck.limit // 2:
                    # Begun a moment ago: one of many that end and are promised again, or the engine was busy.
                    continue
                if life.failed_while_loading:
                    expected = f"{request}, which failed while it was loading, in finished_recving all the same"
                    yield self._never("FAIL-09", expected, life.load, stuck, request)
                elif life.failed:
                    expected = f"{request} in finished_recving as well, since it was reported in failed_recving"
                    yield self._never("ASYNC-16", expected, life.load, stuck, request)
                else:
                    aborted = ", which was aborted while it was loading," if life.loading else ""
                    expected = f"{request}{aborted} in finished_recving once, since its load was committed to"
                    yield self._never("ASYNC-01", expected, life.load, stuck, request)

    def _never(self, rule: str, expected: str, transfer: Transfer, stuck: NeverIdle, request: str) -> Fault:
        if not transfer.reported:
            observed = f"no report within {stuck.waited}; the engine keeps the blocks and never gets idle"
            return Fault(rule, expected, observed, stuck, request, again=bool(self.past[request]))
        done = ", ".join(map(str, sorted(transfer.reported)))
        observed = f"only worker {done} of {self.workers} reported it within {stuck.waited}"
        return Fault("ASYNC-14", expected.replace(" once,", " by each worker,"), observed, stuck, request)


def reported(call: HookCall, what: str) -> list[str]:
    """The ids that a report of either form gives as ``what``."""
    if isinstance(call.result, dict):
        return list(call.result.get(what) or ())
    index = {"finished_sending": 0, "finished_recving": 1}.get(what)
    if index is None or not isinstance(call.result, tuple) or len(call.result) != 2:
        return []
    ids = call.result[index]
    return list(ids["set"]) if isinstance(ids, dict) and "set" in ids else []


def _wrapping(history: History) -> frozenset[int]:
    return frozenset(call.engine for call in history.calls("get_transfer_results"))


def is_report(history: History, call: HookCall) -> bool:
    """Whether a call is one in which vLLM itself asks a worker what has ended.

    From 0.30.0 on that is get_transfer_results, whose default asks for get_finished.
    """
    return call.hook in REPORT_HOOKS and (call.hook == "get_finished") != (call.engine in history.derived(_wrapping))


def follow(history: History) -> tuple[list[Fault], dict[int, Lives]]:
    """Every completion that was wrong or missing, and the lives of each engine."""
    engines: dict[int, Lives] = defaultdict(Lives)
    faults: list[Fault] = []
    for index, event in enumerate(history.events):
        lives = engines[event.engine]
        if isinstance(event, ProgramAction) and event.action == "add":
            lives.added(event.detail["request"])
        elif isinstance(event, NeverIdle):
            faults += lives.missing(event)
        elif isinstance(event, HookCall) and event.error is None:
            if event.hook == "register_kv_caches":
                lives.workers = max(lives.workers, event.rank + 1)
            elif event.hook == "get_finished_count" and isinstance(event.result, int):
                lives.workers = event.result
            elif event.role == "scheduler":
                lives.follow(event)
            elif is_report(history, event):
                faults += _report(history, index, event, lives)
    return faults, engines


def _report(history: History, index: int, call: HookCall, lives: Lives) -> Iterator[Fault]:
    worker = call.rank
    for request in call.args.get("finished_req_ids", ()):
        if (life := lives.current.get(request)) is not None and life.ended is not None:
            life.seen.add(worker)
    for request in reported(call, "failed_recving"):
        if (life := lives.current.get(request)) is not None:
            life.failed = True
    for request in reported(call, "finished_recving"):
        yield from lives.received(request, worker, call)
    for request in reported(call, "finished_sending"):
        yield from lives.sent(request, worker, call, _answer_in_this_step(history, index, call, request))


def _answer_in_this_step(history: History, index: int, call: HookCall, request: str) -> bool | None:
    for event in history.events[index:]:
        if (event.engine, event.step) == (call.engine, call.step):
            if isinstance(event, HookCall) and event.hook in FINISH_HOOKS and event.args["request"] == request:
                return is_held(event)
        elif event.engine == call.engine:
            break
    return None
