"""SAVE: that the end of a step works whatever there is to save, and what becomes of saves that outlive it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks.calls import failed_here, raised
from kvconform.checks.finish import handed_out_again
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.checks.transfer import external_tokens
from kvconform.engine.events import HookCall
from kvconform.engine.history import History


def _without_layers(history: History) -> Iterator[HookCall]:
    """The calls of wait_for_save in steps in which save_kv_layer was not called."""
    hooked: set[tuple[int, int]] = set()
    for call in history.calls("save_kv_layer", "wait_for_save"):
        if call.hook == "save_kv_layer":
            hooked.add((call.engine, call.step))
        elif (call.engine, call.step) not in hooked:
            yield call


def _raised(history: History) -> Iterator[Finding]:
    for call in _without_layers(history):
        if failed_here(history, call):
            yield Finding(
                "SAVE-05",
                "wait_for_save returns in a step in which no layer was saved",
                raised(call),
                call,
            )
            return


def _returned(history: History) -> Mapping[str, int]:
    return {"steps without a saved layer": sum(call.error is None for call in _without_layers(history))}


def _held_and_reused(history: History) -> Mapping[str, int]:
    blocks = handed_out_again(history, held=True) if external_tokens(history) else 0
    return {"blocks handed out again after a hold": blocks}


CHECKS = (
    Check("SAVE-05", _raised, _returned, "every step saved a layer"),
    Check("SAVE-02", no_finding, _held_and_reused, "no block was handed out again after a hold"),
)
