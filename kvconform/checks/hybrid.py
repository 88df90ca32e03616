"""HMA: several KV cache groups over the same bytes; what a wrong byte says about the group that it lies in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks.model import Check, Finding, no_finding
from kvconform.checks.transfer import external_tokens
from kvconform.engine.byte_events import Stray, WrongBytes
from kvconform.engine.events import FINISH_HOOKS, EngineStarted, HookCall, Scheduled
from kvconform.engine.history import History


def rule_of(history: History, finding: Finding) -> str:
    """The rule that wrong bytes in a model with several groups break; other symptoms stay what they are."""
    event = finding.at
    if isinstance(event, Stray):
        return "HMA-04" if event.block == 0 else finding.rule
    if not isinstance(event, WrongBytes):
        return "HMA-02"
    # What was computed on top of it is wrong in other ways.
    if any("(of layer" in text for wrong in history.of(WrongBytes) for text in wrong.observed):
        return "HMA-03"
    return "HMA-05" if _only_the_older_part(history, event) else "HMA-02"


def _only_the_older_part(history: History, event: WrongBytes) -> bool:
    """Whether the wrong positions end before the last computed one: the newer part of the window is right."""
    for scheduled in history.of(Scheduled):
        if (scheduled.engine, scheduled.step) == (event.engine, event.step):
            return event.group > 0 and event.positions[-1] + 1 < scheduled.computed.get(event.request, 0)
    return False


def _loads(history: History) -> Iterator[HookCall]:
    for call in history.calls("update_state_after_alloc"):
        if call.args["num_external_tokens"] > 0 and len(call.args["block_ids"]) > 1:
            yield call


def _with_several_groups(history: History) -> Mapping[str, int]:
    return {"loads with several groups": sum(1 for _ in _loads(history))}


def _null_blocks(history: History) -> Mapping[str, int]:
    return {
        "null blocks in the tables of loads": sum(
            group.count(0) for call in _loads(history) for group in call.args["block_ids"]
        )
    }


def _windows(history: History) -> Mapping[str, int]:
    """Loads that reach beyond a window: a group with null blocks has one."""
    return {
        "loads of which a window keeps a part": sum(
            any(0 in group for group in call.args["block_ids"]) for call in _loads(history)
        )
    }


def _different_sizes(history: History) -> Mapping[str, int]:
    mixed = {event.engine for event in history.of(EngineStarted) if len(set(event.block_sizes)) > 1}
    return {"loads with groups of different block sizes": sum(call.engine in mixed for call in _loads(history))}


def _moved_on(history: History) -> Mapping[str, int]:
    """Blocks that a request got for new tokens while the one that had them before went on: its window had moved."""
    owners: dict[tuple[int, int], str] = {}
    local: dict[tuple[int, str], int] = {}
    count = 0
    for event in history.events:
        if isinstance(event, Scheduled):
            owners = {key: owner for key, owner in owners.items() if owner not in event.preempted}
        elif isinstance(event, HookCall) and event.hook in FINISH_HOOKS:
            owners = {key: owner for key, owner in owners.items() if owner != event.args["request"]}
        elif isinstance(event, HookCall) and event.hook == "get_num_new_matched_tokens":
            local[event.engine, event.args["request"]] = event.args["num_computed_tokens"]
        elif isinstance(event, HookCall) and event.hook == "update_state_after_alloc":
            request, groups = event.args["request"], event.args["block_ids"]
            blocks = {(event.engine, block) for group in groups for block in group if block and len(groups) > 1}
            if not local.get((event.engine, request)):
                count += sum(owners.get(block, request) != request for block in blocks)
            owners |= dict.fromkeys(blocks, request)
    return {"window blocks that others got": count if external_tokens(history) else 0}


_NO_LOAD = "no external hit was loaded with several KV cache groups"

CHECKS = (
    Check("HMA-02", no_finding, _with_several_groups, _NO_LOAD),
    Check("HMA-03", no_finding, _with_several_groups, _NO_LOAD),
    Check("HMA-04", no_finding, _null_blocks, "no table of a loaded request had null blocks"),
    Check("HMA-05", no_finding, _windows, "no load reached beyond a window"),
    Check("HMA-08", no_finding, _different_sizes, "no external hit was loaded with groups of different block sizes"),
    Check("HMA-11", no_finding, _moved_on, "no block of a window that had moved on was handed out again"),
)
