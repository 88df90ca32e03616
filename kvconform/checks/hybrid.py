"""HMA: several KV cache groups over the same bytes; what a wrong byte says about the group that it lies in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks.model import Check, Finding, no_finding
from kvconform.engine.history import EngineStarted, History, HookCall, Scheduled, Stray, WrongBytes


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


_NO_LOAD = "no external hit was loaded with several KV cache groups"

CHECKS = (
    Check("HMA-02", no_finding, _with_several_groups, _NO_LOAD),
    Check("HMA-03", no_finding, _with_several_groups, _NO_LOAD),
    Check("HMA-04", no_finding, _null_blocks, "no table of a loaded request had null blocks"),
    Check("HMA-05", no_finding, _windows, "no load reached beyond a window"),
    Check("HMA-08", no_finding, _different_sizes, "no external hit was loaded with groups of different block sizes"),
)
