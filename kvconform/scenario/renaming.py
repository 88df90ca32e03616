"""Programs whose requests have ids of their own, for a store that outlives its scenario and may know requests by id."""

from __future__ import annotations

from dataclasses import replace

from kvconform.scenario.program import (
    Abort,
    AbortDuringStep,
    AbortOnArrival,
    AbortOnceLoading,
    Action,
    Add,
    HandOff,
    Program,
    RequestSpec,
)


def renamed(program: Program, suffix: str) -> Program:
    """The same program with ``suffix`` behind each request's id.

    As vLLM's front-end puts letters behind the ids that clients choose (InputProcessor.assign_request_id, 0.32.0).
    """
    return replace(program, actions=tuple(_action(action, suffix) for action in program.actions))


def _action(action: Action, suffix: str) -> Action:
    match action:
        case HandOff(request, of):
            return HandOff(_request(request, suffix), of + suffix)
        case Add(request):
            return Add(_request(request, suffix))
        case Abort(name) | AbortDuringStep(name) | AbortOnceLoading(name) | AbortOnArrival(name):
            return replace(action, request=name + suffix)
        case _:
            return action


def _request(request: RequestSpec, suffix: str) -> RequestSpec:
    continues = None if request.continues is None else _request(request.continues, suffix)
    return replace(request, id=request.id + suffix, continues=continues)
