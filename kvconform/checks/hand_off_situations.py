"""Situations in which a hand-off has to work as it does without them: whether they arose, on the side that matters.

The bytes are judged by the checks for every history; here is only what shows the situation, for rules that have no
check of their own (kvconform.scenario.family.Family.shown).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from kvconform.checks.hand_offs import CONSUMER, PRODUCER, Decode, Prefill, arrived, of_decodes
from kvconform.checks.model import Situation
from kvconform.engine.events import EngineStarted, ProgramAction, Scheduled
from kvconform.engine.history import History


def _shown(
    what: str, counts: Callable[[History, Prefill, Decode], bool], missing: str = "nothing was handed off"
) -> Situation:
    def count(history: History, prefill: Prefill, decode: Decode) -> bool:
        return arrived(decode) and counts(history, prefill, decode)

    return Situation(what, of_decodes(what, count), missing)


# -- set-ups of both engines -------------------------------------------------------------------------------------------


def _caches(history: History) -> Mapping[int, str]:
    return {event.engine: event.cache for event in history.of(EngineStarted)}


def _same_pages(history: History, _: Prefill, __: Decode) -> bool:
    caches = history.derived(_caches)
    return bool(caches.get(PRODUCER)) and caches.get(PRODUCER) == caches.get(CONSUMER)


#: Both engines have the kind of KV cache that they were given, and what one of them wrote is in the other's.
PAGES = _shown("hand-offs between two caches of this kind", _same_pages)


def _forwards_finished(history: History) -> Mapping[int, tuple[bool, bool]]:
    """By engine: whether layers were saved, and whether finish_forward was called, which model runner V2 does."""
    saved = {call.engine for call in history.calls("save_kv_layer")}
    finished = {call.engine for call in history.calls("finish_forward")}
    return {engine: (engine in saved, engine in finished) for engine in (PRODUCER, CONSUMER)}


def _called(*, finishes: bool) -> Callable[[History, Prefill, Decode], bool]:
    def count(history: History, _: Prefill, __: Decode) -> bool:
        return all(each == (True, finishes) for each in history.derived(_forwards_finished).values())

    return count


V1 = _shown("hand-offs between two engines with model runner V1's order of hooks", _called(finishes=False))
V2 = _shown("hand-offs between two engines with model runner V2's order of hooks", _called(finishes=True))


# -- what happens on the way -------------------------------------------------------------------------------------------


def _pieces(history: History) -> Counter[str]:
    """By request of the producer: the steps that held some of its prompt's tokens."""
    events = (event for event in history.of(Scheduled) if event.engine == PRODUCER)
    return Counter(request for event in events for request in event.scheduled)


def _in_pieces(history: History, prefill: Prefill, _: Decode) -> bool:
    # Every step but the last is one of the prompt's where a single token is generated.
    return prefill.generated == 1 and history.derived(_pieces)[prefill.request] > 1


CHUNKS = _shown(
    "hand-offs of prompts that were computed in several steps",
    _in_pieces,
    "no prompt that the producer had computed in several steps was handed off",
)


def _behind_local(_: History, __: Prefill, decode: Decode) -> bool:
    return decode.local > 0


BEHIND_LOCAL = _shown("hand-offs behind a local hit", _behind_local, "no hand-off was loaded behind a local hit")


def _lost_blocks(history: History) -> frozenset[tuple[int, str]]:
    return frozenset((event.engine, request) for event in history.of(Scheduled) for request in event.preempted)


def _preempted(history: History, prefill: Prefill, decode: Decode) -> bool:
    lost = history.derived(_lost_blocks)
    return (PRODUCER, prefill.request) in lost or (CONSUMER, decode.request) in lost


PREEMPTIONS = _shown(
    "hand-offs of requests that were preempted on either side",
    _preempted,
    "no request was preempted before or after it was handed off",
)


def _disturbed(history: History) -> bool:
    runs = {event.engine for event in history.of(ProgramAction) if event.action == "dummy run"}
    return {PRODUCER, CONSUMER} <= runs


DUMMY_RUNS = _shown("hand-offs amid dummy runs of both engines", lambda history, _, __: history.derived(_disturbed))

SITUATIONS = (PAGES, V1, V2, CHUNKS, BEHIND_LOCAL, PREEMPTIONS, DUMMY_RUNS)
