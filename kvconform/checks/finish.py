"""FIN: what request_finished is for, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvconform.checks.calls import failed_here, finishes, is_held, raised
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.checks.transfer import external_tokens
from kvconform.engine.events import FINISH_HOOKS, HookCall
from kvconform.engine.history import History

#: How the result of a hook of no known type is recorded.
_OBJECT = "<"


def _raised(history: History) -> Iterator[Finding]:
    for call in finishes(history):
        if failed_here(history, call):
            request, status = call.args.get("request", "a request"), call.args.get("status", "ended")
            blocks = "without blocks" if not _blocks(call) else f"with blocks {_blocks(call)}"
            yield Finding(
                "FIN-01",
                f"{call.hook} works for each way in which a request ends, in whatever phase",
                f"for {request}, {status} {blocks}, {raised(call)}",
                call,
                requests=(request,),
            )
            return


def _blocks(call: HookCall) -> list[int]:
    ids: list[Any] = call.args.get("block_ids", [])
    return [block for item in ids for block in (item if isinstance(item, list) else [item])]


def _ways(history: History) -> Mapping[str, int]:
    ways: dict[str, int] = {}
    for call in finishes(history):
        if call.error is None:
            status = str(call.args.get("status", "ended")).removeprefix("FINISHED_").lower().replace("_", " ")
            way = f"{status}, {'without' if not _blocks(call) else 'with'} blocks"
            ways[way] = ways.get(way, 0) + 1
    return ways


def _ill_formed(history: History) -> Iterator[Finding]:
    for call in finishes(history):
        problem = None if call.error is not None else _problem(call.result)
        if problem is not None:
            yield Finding(
                "FIN-03",
                "a pair: whether to hold the blocks, and a dict of transfer parameters or None",
                f"{call.hook} for {call.args['request']} returned {problem}",
                call,
                requests=(call.args["request"],),
            )
            return


def _problem(result: Any) -> str | None:
    """What of an answer vLLM can't take. Of the first element only the truth counts."""
    if isinstance(result, tuple):
        if len(result) != 2:
            return f"{len(result)} values"
        params = result[1]
        return None if params is None or isinstance(params, dict) else f"{params!r} for the transfer parameters"
    if isinstance(result, str) and result.startswith(_OBJECT):
        # A list of two is unpacked like a tuple.
        return None if result == "<builtins.list>" else result
    return repr(result)


def _answers(history: History) -> Mapping[str, int]:
    return {"answers": sum(call.error is None for call in finishes(history))}


def handed_out_again(history: History, *, held: bool = False) -> int:
    """Blocks that a finished request left behind, freed at once or after a hold, and that got a new owner."""
    left: set[tuple[int, int]] = set()
    count = 0
    for call in history.calls("update_state_after_alloc", *FINISH_HOOKS):
        blocks = {(call.engine, block) for block in _blocks(call) if block}
        if call.hook in FINISH_HOOKS:
            if is_held(call) == held:
                left |= blocks
        else:
            count += len(left & blocks)
            left -= blocks
    return count


def _reused(history: History) -> Mapping[str, int]:
    return {"blocks handed out again after False": handed_out_again(history) if external_tokens(history) else 0}


CHECKS = (
    Check("FIN-01", _raised, _ways, "no request ended"),
    Check("FIN-03", _ill_formed, _answers, "no request ended"),
    Check("FIN-09", no_finding, _reused, "no block was handed out again after request_finished had answered False"),
)
