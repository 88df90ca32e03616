"""MATCH: what get_num_new_matched_tokens may answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvconform.checks.model import Check, Finding
from kvconform.engine.events import HookCall
from kvconform.engine.history import History


def _answers(history: History) -> Iterator[tuple[HookCall, Any]]:
    for call in history.calls("get_num_new_matched_tokens"):
        if call.error is None:
            yield call, call.result


def _well_formed(answer: Any) -> bool:
    return (
        isinstance(answer, tuple)
        and len(answer) == 2
        and (answer[0] is None or (isinstance(answer[0], int) and not isinstance(answer[0], bool)))
        and isinstance(answer[1], bool)
    )


def _numbers(history: History) -> Iterator[tuple[HookCall, int, bool]]:
    """Answers that are well formed and not None."""
    for call, answer in _answers(history):
        if _well_formed(answer) and answer[0] is not None:
            yield call, answer[0], answer[1]


def _finding(rule: str, call: HookCall, expected: str, observed: str) -> Finding:
    return Finding(rule, expected, observed, call, requests=(call.args["request"],))


def _query(call: HookCall) -> str:
    args = call.args
    return (
        f"get_num_new_matched_tokens({args['request']}, num_computed_tokens={args['num_computed_tokens']}) "
        f"for a request of {args['num_tokens']} tokens"
    )


def _types(history: History) -> Iterator[Finding]:
    for call, answer in _answers(history):
        if not _well_formed(answer):
            kinds = f" (types {', '.join(type(item).__name__ for item in answer)})" if isinstance(answer, tuple) else ""
            yield _finding(
                "MATCH-01", call, "a tuple (int or None, bool)", f"{_query(call)} returned {answer!r}{kinds}"
            )


def _negative(history: History) -> Iterator[Finding]:
    for call, count, asynchronous in _numbers(history):
        if count < 0:
            yield _finding("MATCH-03", call, "0 or more tokens", f"{_query(call)} returned ({count}, {asynchronous})")


def _beyond(history: History) -> Iterator[Finding]:
    for call, count, asynchronous in _numbers(history):
        room = call.args["num_tokens"] - call.args["num_computed_tokens"]
        if count > room:
            yield _finding(
                "MATCH-04", call, f"at most {room} tokens", f"{_query(call)} returned ({count}, {asynchronous})"
            )


def _whole_prompt(history: History) -> Iterator[Finding]:
    for call, count, asynchronous in _numbers(history):
        room = call.args["num_tokens"] - call.args["num_computed_tokens"]
        if not asynchronous and count == room and count > 0:
            yield _finding(
                "MATCH-05",
                call,
                f"at most {room - 1} tokens, so that one is left to compute",
                f"{_query(call)} returned ({count}, False), the whole rest of the request",
            )


def _zero_async(history: History) -> Iterator[Finding]:
    for call, count, asynchronous in _numbers(history):
        if count == 0 and asynchronous:
            yield _finding("MATCH-07", call, "(0, False)", f"{_query(call)} returned (0, True)")


def _queries(history: History) -> Mapping[str, int]:
    return {"match queries": sum(1 for _ in _answers(history))}


def _hits(history: History) -> Mapping[str, int]:
    return {"external hits": sum(count > 0 for _, count, _ in _numbers(history))}


def _misses(history: History) -> Mapping[str, int]:
    return {"queries answered with 0": sum(count == 0 for _, count, _ in _numbers(history))}


def _local_hits(history: History) -> Mapping[str, int]:
    behind = sum(call.args["num_computed_tokens"] > 0 for call, _, _ in _numbers(history))
    return {"queries behind a local hit": behind}


CHECKS = (
    Check("MATCH-01", _types, _queries, "the engine asked for no match"),
    Check("MATCH-03", _negative, _local_hits, "no query came with a local hit, where a negative answer could arise"),
    Check("MATCH-04", _beyond, _hits, "no external hit was offered"),
    Check("MATCH-05", _whole_prompt, _hits, "no external hit was offered"),
    Check("MATCH-07", _zero_async, _misses, "no query was answered with 0"),
)
