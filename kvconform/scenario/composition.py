"""Scenario families below vLLM's MultiConnector, with a sibling of the same class or of a strange one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from kvconform.checks.composition import rule_beside_a_stranger, rule_of
from kvconform.engine.options import EngineOptions, Place
from kvconform.scenario.family import BLOCK, RUNNERS, Family, Prompt, store_then_reload
from kvconform.scenario.program import Action, Add, BreakStore, Drain, ForgetLocal, Program, RequestSpec, Step

PLACES: tuple[Place, ...] = ("first", "last")
_PROMPTS: list[Prompt] = [((1, 3 * BLOCK + 1),), ((2, 2 * BLOCK + 5),)]
#: Rules that a connector breaks alone as well, if that is why it reports what is not its own.
_ALONE = frozenset({*(f"ASYNC-{number:02}" for number in (1, 2, 3, 4, 5, 6, 7, 9, 22)), "FAIL-04"})


def _alone(program: Program) -> Program:
    return replace(program, options=replace(program.options, place=""))


def _options(place: Place) -> tuple[EngineOptions, ...]:
    return tuple(EngineOptions(runner=runner, place=place) for runner in RUNNERS)


def _family(name: str, programs: tuple[Program, ...]) -> Family:
    return Family(
        name,
        "MUL-10",
        programs,
        st.sampled_from(programs),
        "a sibling below MultiConnector",
        _alone,
        sort=rule_of,
        alike=_ALONE,
    )


def reload(place: Place) -> Family:
    """Both store everything; the first one loads what both offer."""
    together: tuple[Action, ...] = (
        *(Add(RequestSpec(f"more{i}", (*prompt, (9, 7)), 6)) for i, prompt in enumerate(_PROMPTS)), Step(3),
        Drain(), ForgetLocal(), Add(RequestSpec("again", _PROMPTS[0], 2)), Drain(),
    )  # fmt: skip
    actions = (*store_then_reload(_PROMPTS, 3), ForgetLocal(), *together)
    programs = tuple(Program("below MultiConnector", options, actions) for options in _options(place))
    return _family("below MultiConnector", programs)


def beside_a_stranger() -> Family:
    """A sibling with handshake metadata of its own kind, and with an entry of its own in every request's parameters."""
    programs = tuple(
        Program("beside a stranger", EngineOptions(runner=runner, place=place, sibling="stranger"), tuple(actions))
        for actions in (store_then_reload(_PROMPTS, 3),)
        for runner, place in zip(RUNNERS, PLACES, strict=True)
    )
    drawn = st.builds(
        lambda program, lengths: replace(
            program, actions=tuple(store_then_reload([((i, n),) for i, n in enumerate(lengths)], 2))
        ),
        st.sampled_from(programs),
        st.lists(st.integers(1, 4 * BLOCK), min_size=1, max_size=3),
    )

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, sibling="twin"))

    return Family(
        "beside a stranger", "MUL-12", programs, drawn, "a sibling of another class", control,
        keeps=frozenset({"MUL-04"}), alike=_ALONE | {"ORDER-05"}, sort=rule_beside_a_stranger, general=reload("last"),
    )  # fmt: skip


def failed_loads(place: Place) -> Family:
    """What the first one has promised is gone when it loads, from the stores of both."""
    long = ((1, 3 * BLOCK + 1),)
    actions = (
        Add(RequestSpec("store", long)), Drain(), ForgetLocal(), BreakStore("removed", at_load=True),
        Add(RequestSpec("reload", (*long, (2, 21)), 2)), Drain(), ForgetLocal(),
        Add(RequestSpec("again", (*long, (2, 21)), 2)), Drain(),
    )  # fmt: skip
    programs = tuple(Program("failed loads below MultiConnector", options, actions) for options in _options(place))
    return _family("failed loads below MultiConnector", programs)
