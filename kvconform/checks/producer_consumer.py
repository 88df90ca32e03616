"""Producer and consumer: what one engine keeps for another, for how long, and whether it gets there.

In these histories engine 1 is the producer and engine 2 the consumer; "hand off" says which request of the consumer was
given what came back for which request of the producer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from kvconform.checks.calls import is_held, raised
from kvconform.checks.hand_offs import CONSUMER, PRODUCER, Decode, Prefill, arrived, of_decodes, prefills
from kvconform.checks.loads import loads
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.checks.silent_store import ended_in_silence, stuck_in_silence
from kvconform.engine.events import HookCall, Outlasted, ProgramAction, Scheduled
from kvconform.engine.history import History

#: Loads of one hand-off that are more than a bounded number of attempts.
MANY_TRIES = 20
_NORMAL = ("FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED")


# -- what was promised gets there --------------------------------------------------------------------------------------


def _not_delivered(history: History) -> Iterator[Finding]:
    """Loads that failed although the producer is there and keeps the blocks."""
    for prefill in prefills(history):
        for decode in prefill.decodes:
            failed = decode.arrived is not None and decode.arrived.reported_failed
            kept = prefill.held and (prefill.sent_at is None or prefill.sent_at > decode.load_at)
            if failed and kept and not decode.peer_gone:
                assert decode.load is not None
                assert decode.arrived is not None
                tokens = decode.load.args["num_external_tokens"]
                yield Finding(
                    "MATCH-10",
                    f"{decode.request}'s {tokens} tokens from the producer, which is there and keeps {prefill.request}",
                    "the load was reported as failed",
                    decode.arrived,
                    requests=(decode.request, prefill.request),
                    symptom=True,
                )
                return


def _under_another_id(_: History, prefill: Prefill, decode: Decode) -> bool:
    return arrived(decode) and decode.request != prefill.request


def _unequal(_: History, prefill: Prefill, decode: Decode) -> bool:
    return arrived(decode) and (decode.local > 0 or decode.num_tokens != prefill.num_tokens)


def _beside_others(history: History, prefill: Prefill, decode: Decode) -> bool:
    between = history.events[prefill.ended_at : decode.load_at]
    others = (
        isinstance(event, HookCall) and event.engine == PRODUCER and event.hook == "update_state_after_alloc"
        for event in between
    )
    return arrived(decode) and prefill.held and any(others)


# -- who is told -------------------------------------------------------------------------------------------------------


def _waits(history: History, engine: int) -> Iterator[Outlasted]:
    return (event for event in history.of(Outlasted) if event.engine == engine)


def _not_told(history: History) -> Iterator[Finding]:
    for prefill, decode in _unneeded(history):
        for wait in _waits(history, PRODUCER):
            # A hold that has lasted as long as the longest time-out was ended by that.
            by_timeout = 0 < wait.limit <= wait.held_for.get(prefill.request, 0) + 0.1
            if prefill.request in wait.held or by_timeout:
                how = "is still held" if prefill.request in wait.held else "was held until the time-out"
                yield Finding(
                    "ASYNC-23",
                    f"the producer lets go of {prefill.request} once {decode.request} has ended without loading it",
                    f"it {how}; {wait.seconds:g} s were spent waiting for that",
                    wait,
                    requests=(prefill.request, decode.request),
                )
                return


def _unneeded(history: History) -> Iterator[tuple[Prefill, Decode]]:
    """Hand-offs whose only consumer has ended without loading anything."""
    for prefill in prefills(history):
        if prefill.held and len(prefill.decodes) == 1:
            (decode,) = prefill.decodes
            if decode.given and decode.load is None and decode.ended is not None and not decode.peer_gone:
                yield prefill, decode


def _told(history: History) -> Mapping[str, int]:
    broken = any(True for _ in _not_told(history))
    ended = sum(prefill.sent_at is not None for prefill, _ in _unneeded(history))
    return {"hand-offs that were not needed and let go": 0 if broken else ended}


# -- what nobody fetches -----------------------------------------------------------------------------------------------


def _never_let_go(history: History) -> Iterator[Finding]:
    for wait in _waits(history, PRODUCER):
        for prefill in prefills(history):
            if wait.limit and prefill.request in wait.held and prefill.status in _NORMAL and not prefill.decodes:
                yield Finding(
                    "ASYNC-19",
                    f"{prefill.request}, which nobody fetches, in finished_sending within {wait.limit:g} s, the "
                    "longest time-out that the configuration names",
                    f"its blocks were still held after {wait.seconds:g} s",
                    wait,
                    requests=(prefill.request,),
                )
                return


def _let_go(history: History) -> Mapping[str, int]:
    count = sum(
        prefill.held and prefill.sent_at is not None and not prefill.decodes and prefill.status in _NORMAL
        for prefill in prefills(history)
    )
    return {"holds that nobody fetched and that ended": count}


def _held_for_nobody(history: History) -> Iterator[Finding]:
    for wait in _waits(history, PRODUCER):
        for prefill in prefills(history):
            if wait.limit and prefill.request in wait.held and prefill.status not in _NORMAL:
                yield Finding(
                    "FIN-05",
                    f"the blocks of {prefill.request} are let go: it was {prefill.status.lower()}, and vLLM passes on "
                    "no kv_transfer_params for it",
                    f"they were still held after {wait.seconds:g} s, with time-outs of {wait.limit:g} s",
                    wait,
                    requests=(prefill.request,),
                )
                return


def _not_held_for_nobody(history: History) -> Mapping[str, int]:
    shown = any(prefill.handed_off for prefill in prefills(history))
    count = sum(
        prefill.ended is not None
        and prefill.status not in _NORMAL
        and (not prefill.held or prefill.sent_at is not None)
        for prefill in prefills(history)
    )
    return {"prefills that were aborted and let go": count if shown else 0}


# -- which prefills are handed off -------------------------------------------------------------------------------------


def _stop_refused(history: History) -> Iterator[Finding]:
    shown = [p for p in prefills(history) if p.handed_off and p.status == "FINISHED_LENGTH_CAPPED"]
    for prefill in prefills(history):
        shorter = next((other for other in shown if other.num_tokens <= prefill.num_tokens), None)
        if prefill.status == "FINISHED_STOPPED" and not prefill.handed_off and shorter is not None:
            assert prefill.ended is not None
            yield Finding(
                "FIN-15",
                f"{prefill.request}, which ended with a stop token, is handed off like {shorter.request}, which ended "
                "by its length",
                f"{prefill.ended.hook} returned no kv_transfer_params for it",
                prefill.ended,
                requests=(prefill.request, shorter.request),
            )
            return


def _stop_handed_off(_: History, prefill: Prefill, decode: Decode) -> bool:
    return prefill.status == "FINISHED_STOPPED" and arrived(decode)


def _longer(_: History, prefill: Prefill, decode: Decode) -> bool:
    return prefill.generated > 1 and arrived(decode)


def preempted_in_the_last_step(history: History) -> Iterator[Prefill]:
    """Prefills that lost their blocks while the token that ends them was in flight."""
    known = {prefill.request: prefill for prefill in prefills(history)}
    complete: set[str] = set()
    for event in history.of(Scheduled):
        if event.engine != PRODUCER:
            continue
        yield from (known[request] for request in event.preempted if request in complete)
        for request, count in event.scheduled.items():
            if request in known and event.computed[request] + count == known[request].num_tokens:
                complete.add(request)


def _delivery_not_required(history: History) -> Iterator[Finding]:
    shown = [p for p in prefills(history) if p.handed_off and p.held and any(map(arrived, p.decodes))]
    for prefill in preempted_in_the_last_step(history):
        if shown and prefill.status in _NORMAL and not prefill.handed_off:
            assert prefill.ended is not None
            yield Finding(
                "PRE-06",
                f"{prefill.request} is computed again and handed off, as {shown[0].request} was: requires_kv_delivery "
                "is True",
                "it was preempted while its last token was in flight, and ended without its blocks: "
                f"{prefill.ended.hook} had none and returned no kv_transfer_params",
                prefill.ended,
                requests=(prefill.request,),
            )
            return


def _delivered_all_the_same(history: History) -> Mapping[str, int]:
    preempted = list(preempted_in_the_last_step(history))
    count = sum(any(map(arrived, prefill.decodes)) for prefill in preempted)
    return {"prefills that were preempted in their last step and handed off": count}


# -- a producer that is gone -------------------------------------------------------------------------------------------


def _stuck_without_peer(history: History) -> Iterator[Finding]:
    for wait in _waits(history, CONSUMER):
        for prefill in prefills(history):
            for decode in prefill.decodes:
                waits = decode.request in wait.unfinished and not _tries_again(history, decode)
                if wait.limit and decode.peer_gone and (waits or _kept_for_its_load(wait, decode)):
                    still = "the request still waited for it" if waits else "the ended request was still kept for it"
                    yield Finding(
                        "LIVE-05",
                        f"{decode.request}'s load ends within {wait.limit:g} s, the longest time-out that the "
                        "configuration names: its producer is gone",
                        f"{still} after {wait.seconds:g} s",
                        wait,
                        requests=(decode.request,),
                        symptom=True,
                    )
                    return


def _tries_again(history: History, decode: Decode) -> bool:
    """Whether loads of it have ended, so that the one under way is a later one; but not as if for ever."""
    begun = sum((load.engine, load.request) == (CONSUMER, decode.request) for load in loads(history))
    return 1 < begun <= MANY_TRIES


def _kept_for_its_load(wait: Outlasted, decode: Decode) -> bool:
    """Whether a request that has ended, because its load failed, has blocks for want of that load's end only."""
    loading = decode.load is not None and decode.arrived is None
    return decode.request in wait.held and loading and decode.ended is not None and not is_held(decode.ended)


def _ended_without_peer(history: History) -> Mapping[str, int]:
    count = sum(
        decode.peer_gone and decode.load is not None and decode.ended is not None
        for prefill in prefills(history)
        for decode in prefill.decodes
    )
    return {"loads from a producer that is gone that ended": count}


# -- parameters in other words -----------------------------------------------------------------------------------------

_QUERIES = ("on_new_request", "get_num_new_matched_tokens", "update_state_after_alloc")


def _with_parameters(history: History) -> set[tuple[int, str]]:
    """Requests that came with kv_transfer_params which no producer has returned."""
    handed = {(e.engine, e.detail["request"]) for e in history.of(ProgramAction) if e.action == "hand off"}
    added = {
        (event.engine, event.detail["request"])
        for event in history.of(ProgramAction)
        if event.action == "add" and event.detail.get("kv_transfer_params") is not None
    }
    return added - handed


def _parameters_refused(history: History) -> Iterator[Finding]:
    of_params = _with_parameters(history)
    fine: set[str] = set()
    for call in history.calls(*_QUERIES):
        request = call.args.get("request", "")
        if call.error is None:
            fine |= set() if (call.engine, request) in of_params else {call.hook}
        elif (call.engine, request) in of_params and call.hook in fine:
            yield Finding(
                "MATCH-24",
                f"{call.hook} works for {request}, whose kv_transfer_params are not this connector's own words",
                raised(call),
                call,
                requests=(request,),
            )
            return


def _parameters_seen(history: History) -> Mapping[str, int]:
    of_params = _with_parameters(history)
    queries = history.calls("get_num_new_matched_tokens")
    count = len({call.args["request"] for call in queries if (call.engine, call.args["request"]) in of_params})
    return {"requests with parameters in other words": count}


_NO_HAND_OFF = "no consumer loaded what a producer had handed off"

CHECKS = (
    Check("MATCH-24", _parameters_refused, _parameters_seen, "no request had kv_transfer_params"),
    Check(
        "MATCH-10",
        _not_delivered,
        of_decodes("loads from a producer that is there", lambda _, __, d: arrived(d) and not d.peer_gone),
        _NO_HAND_OFF,
    ),
    Check("FIN-12", no_finding, of_decodes("hand-offs between different ids", _under_another_id), _NO_HAND_OFF),
    Check(
        "LOAD-11",
        no_finding,
        of_decodes("loads with block lists of different length", _unequal),
        "no consumer with a local hit, or with a longer prompt, loaded what a producer had handed off",
    ),
    Check(
        "ASYNC-08",
        no_finding,
        of_decodes("hand-offs fetched after other requests of the producer", _beside_others),
        "no consumer fetched what a producer held while it computed other requests",
    ),
    Check("ASYNC-23", _not_told, _told, "no hand-off turned out not to be needed"),
    Check(
        "ASYNC-19",
        _never_let_go,
        _let_go,
        "no hold that nobody fetches ended while it was watched; the configuration's peer_timeout says for how long to "
        "watch (kvconform.toml)",
    ),
    Check("FIN-05", _held_for_nobody, _not_held_for_nobody, "no prefill was aborted and let go while it was watched"),
    Check(
        "FIN-14",
        no_finding,
        of_decodes("hand-offs of prompts with generated tokens behind them", _longer),
        "no consumer loaded a prompt behind which the producer had generated tokens",
    ),
    Check("FIN-15", _stop_refused, of_decodes("hand-offs after a stop token", _stop_handed_off), _NO_HAND_OFF),
    Check(
        "PRE-06",
        _delivery_not_required,
        _delivered_all_the_same,
        "no prefill that was preempted in its last step was handed off",
    ),
    Check(
        "LIVE-05",
        lambda history: chain(_stuck_without_peer(history), stuck_in_silence(history)),
        lambda history: {**_ended_without_peer(history), **ended_in_silence(history)},
        "no load from a producer that is gone ended while it was watched (the configuration's peer_timeout says for "
        "how long to watch), and no store was kept from answering (a class that it names under 'faults' can do that)",
    ),
)
