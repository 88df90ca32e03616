"""META: what build_connector_meta reads, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks.calls import failed_blocks, failed_here, raised
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.checks.order import scheduled_ahead
from kvconform.engine.events import BlockStateKept, CacheReset, HookCall, Scheduled
from kvconform.engine.history import History


def _first_without_blocks(history: History) -> Iterator[HookCall]:
    """Per engine the first build_connector_meta of a step in which a running request got no new block."""
    seen: set[int] = set()
    for call in history.calls("build_connector_meta"):
        if call.args.get("no_new_blocks") and call.engine not in seen:
            seen.add(call.engine)
            yield call


def _eventful(history: History) -> set[int]:
    """Calls (by identity) of engines in which a load had failed, or requests lived through a preemption or a reset."""
    engines: set[int] = set()
    calls: set[int] = set()
    for event in history.events:
        if isinstance(event, HookCall):
            if event.hook == "get_block_ids_with_load_errors" and failed_blocks(event):
                engines.add(event.engine)
            elif event.engine in engines:
                calls.add(id(event))
        elif isinstance(event, CacheReset | Scheduled):
            lived_through = not event.idle if isinstance(event, CacheReset) else event.preempted or event.resumed
            if lived_through:
                engines.add(event.engine)
    return calls


def _no_blocks_refused(history: History) -> Iterator[Finding]:
    ahead, eventful = scheduled_ahead(history), _eventful(history)
    for call in _first_without_blocks(history):
        # A step that is scheduled ahead of results may be refused for that, and one after a failed load, a preemption
        # or a reset for what became of the requests.
        if failed_here(history, call) and id(call) not in ahead and id(call) not in eventful:
            requests = tuple(call.args["no_new_blocks"])
            yield Finding(
                "META-04",
                "new_block_ids None means that a running request got no new block",
                f"{raised(call)}; this is the first step in which it is None, for {', '.join(requests)}",
                call,
                requests=requests,
            )


def _no_blocks_taken(history: History) -> Mapping[str, int]:
    calls = history.calls("build_connector_meta")
    return {
        "running requests without new blocks": sum(
            len(c.args.get("no_new_blocks", ())) for c in calls if c.error is None
        )
    }


def _state_kept(history: History) -> Iterator[Finding]:
    for event in history.of(BlockStateKept):
        yield Finding(
            "META-09",
            "kv_connector_block_state is read during build_connector_meta only",
            f"it is kept {event.where} after the scheduler has dropped it",
            event,
        )
        return


def _outputs_built(history: History) -> Mapping[str, int]:
    return {"scheduler outputs": sum(call.error is None for call in history.calls("build_connector_meta"))}


def blocks_passed_on(history: History) -> Mapping[str, int]:
    """Blocks of finished loads that another request's load or computation got later."""
    loaded: dict[tuple[int, int], str] = {}
    passed = 0
    for call in history.calls("update_state_after_alloc"):
        groups = call.args["block_ids"]
        for block in {block for group in groups for block in group} - {0}:
            # An asynchronous load's request is given more blocks once it has ended, and its own once more.
            owner = loaded.get((call.engine, block), call.args["request"])
            if owner != call.args["request"]:
                passed += 1
                del loaded[call.engine, block]
            if call.args["num_external_tokens"] > 0:
                loaded[call.engine, block] = call.args["request"]
    return {"blocks of earlier loads given to others": passed}


def _ids_again(history: History) -> Mapping[str, int]:
    ended: set[tuple[int, str]] = set()
    again = 0
    for call in history.calls("build_connector_meta"):
        new, finished = ({(call.engine, request) for request in call.args.get(of, ())} for of in ("new", "finished"))
        # What has finished did so before the step: the same id among the new ones is another request's.
        ended |= finished
        again += len(ended & new)
        ended -= new
    return {"request ids used again": again}


CHECKS = (
    Check("META-02", no_finding, blocks_passed_on, "no block of a load was given to another request"),
    Check("META-04", _no_blocks_refused, _no_blocks_taken, "no running request went on without a new block"),
    Check("META-09", _state_kept, _outputs_built, "no step was scheduled"),
    Check("META-12", no_finding, _ids_again, "no request id was used again"),
)
