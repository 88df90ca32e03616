"""LIVE-05 with a store that never answers: who asked it goes on without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks.calls import offered
from kvconform.checks.loads import reports
from kvconform.checks.model import Finding
from kvconform.engine.events import Event, HookCall, NeverIdle, ProgramAction, StoreBroken
from kvconform.engine.history import History


def stuck_in_silence(history: History) -> Iterator[Finding]:
    """Requests that still wait for a store which does not answer."""
    for event, silent in _with_silence(history):
        if silent and isinstance(event, NeverIdle):
            waiting = ", ".join(event.unfinished)
            yield Finding(
                "LIVE-05",
                "the store does not answer, and every wait for it ends in bounded time: as no match, as a failed load "
                "or as a dropped save",
                f"{waiting} still waited after {event.waited}",
                event,
                requests=event.unfinished,
            )
            return


def ended_in_silence(history: History) -> Mapping[str, int]:
    """What was given up: loads reported as failed, and matches of what matched before."""
    failures = {id(report.call) for report in reports(history)}
    failed, missed = 0, 0
    tokens: dict[str, tuple[int, ...]] = {}
    matched: set[tuple[int, ...]] = set()
    for event, silent in _with_silence(history):
        if isinstance(event, NeverIdle):
            return {}
        if isinstance(event, ProgramAction) and "tokens" in event.detail:
            tokens[event.detail["request"]] = tuple(event.detail["tokens"])
        elif isinstance(event, HookCall) and event.error is None:
            failed += silent and id(event) in failures
            if event.hook == "get_num_new_matched_tokens" and not event.args["num_computed_tokens"]:
                own = tokens.get(event.args["request"], ())
                if offered(event):
                    matched.add(own)
                elif silent and own in matched:
                    missed += 1
                    matched.discard(own)
    return {
        "steps in which loads from a store that does not answer were reported as failed": failed,
        "prompts that matched before and not when the store did not answer": missed,
    }


def _with_silence(history: History) -> Iterator[tuple[Event, bool]]:
    """Every event, and whether the store was silent then."""
    silent = False
    for event in history.events:
        if isinstance(event, StoreBroken):
            silent = (event.kind == "silent" and event.files > 0) or (silent and event.kind != "mended")
        yield event, silent
