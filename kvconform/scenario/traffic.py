"""Any traffic: arrivals, aborts, preemption, pressure, resets, restarts and faults in any order, drawn by hypothesis.

There is no expected course of events: the oracle, the audits and the checks of the history are the judges. A program
that shows a symptom is shrunk, and then asked which of its situations it needs: the first one without which everything
is right names the rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce

from hypothesis import strategies as st

from kvconform.checks.failures import broken_rule, refused_rule
from kvconform.checks.model import Finding
from kvconform.checks.shutdown import in_flight_rule
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.kvcache.shape import KVCacheShape
from kvconform.scenario.family import BLOCK, RUNNERS, Family
from kvconform.scenario.program import (
    Abort,
    AbortDuringStep,
    Action,
    Add,
    BreakStore,
    Drain,
    DummyRun,
    ForgetLocal,
    MendStore,
    Pause,
    PreemptAll,
    Program,
    RefuseWrites,
    RequestSpec,
    ResetConnector,
    Restart,
    Resume,
    Step,
)

NAME = "any traffic"
#: Blocks of a pool in which three requests get into each other's way, and of one in which nobody does.
TIGHT, ROOMY = 14, 96
#: Programs that are drawn for one of another family.
MORE = 4


# -- moves: what a program is put together from ------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrive:
    """A request: ``prefix`` blocks of one of a few shared prompts, then ``tail`` tokens of one of a few own ones."""

    prompt: int
    prefix: int
    tail: int
    max_tokens: int

    def prompt_segments(self) -> tuple[tuple[int, int], ...]:
        """Equal for equal arrivals, so that what one stores another one finds."""
        shared = ((1 + self.prompt, self.prefix * BLOCK),) if self.prefix else ()
        return (*shared, (20 + self.tail % 3, self.tail))


@dataclass(frozen=True)
class Leave:
    """Abort the n-th last arrival, between two steps or ``during`` one."""

    back: int
    during: bool


Move = Arrive | Leave | Action

_ARRIVALS = st.builds(
    Arrive, st.integers(0, 1), st.integers(0, 3), st.sampled_from([1, 7, BLOCK, 21]), st.integers(1, 9)
)
_CALM: tuple[st.SearchStrategy[Move], ...] = (
    _ARRIVALS,
    _ARRIVALS,
    st.builds(Step, st.sampled_from([1, 2, 3, 6])),
    st.just(Drain()),
    st.just(ForgetLocal()),
)
_INCIDENTS: tuple[st.SearchStrategy[Move], ...] = (
    st.builds(Leave, st.integers(0, 2), st.booleans()),
    st.just(PreemptAll()),
    st.builds(Restart, drain=st.booleans()),
    st.just(ResetConnector()),
    st.builds(Pause, st.sampled_from(["new", "all"])),
    st.just(DummyRun()),
)
_FAULTS: tuple[st.SearchStrategy[Move], ...] = (
    st.builds(
        BreakStore, st.sampled_from(["removed", "truncated", "emptied"]), st.sampled_from([1, 2, 3]), st.booleans()
    ),
    st.builds(RefuseWrites, st.just("full")),
)


def _one_in(*kinds: tuple[st.SearchStrategy[Move], ...]) -> st.SearchStrategy[list[Move]]:
    """Moves, of each kind equally often."""
    each = st.sampled_from(kinds).flatmap(lambda kind: st.sampled_from(kind).flatmap(lambda move: move))
    return st.lists(each, min_size=2, max_size=20)


def _moves() -> st.SearchStrategy[list[Move]]:
    """Something to find first, then mostly calm moves; faults in one program of three, because they hide a lot."""
    stored = st.lists(
        st.builds(Arrive, st.integers(0, 1), st.integers(1, 3), st.just(1), st.integers(1, 9)), min_size=1, max_size=2
    )
    usual, faulty = _one_in(_CALM, _CALM, _INCIDENTS), _one_in(_CALM, _CALM, _INCIDENTS, _FAULTS)
    return st.builds(
        lambda first, more: [*first, Drain(), ForgetLocal(), *more], stored, st.one_of(usual, usual, faulty)
    )


def _options() -> st.SearchStrategy[EngineOptions]:
    return st.builds(
        EngineOptions,
        shape=st.sampled_from([KVCacheShape(num_blocks=ROOMY), KVCacheShape(num_blocks=TIGHT)]),
        max_num_batched_tokens=st.sampled_from([2048, 2048, 24, 40]),
        runner=st.sampled_from(RUNNERS),
        workers=st.sampled_from([1, 1, 2]),
        async_scheduling=st.sampled_from([False, False, True]),
        load_failure_policy=st.sampled_from(["recompute", "fail"]),
    )


@dataclass
class _Writer:
    """Turns moves into actions that make sense one after the other."""

    actions: list[Action] = field(default_factory=list)
    prompts: dict[tuple[tuple[int, int], ...], None] = field(default_factory=dict)
    count: int = 0
    paused: bool = False
    refusing: bool = False

    def take(self, move: Move) -> None:
        """Append what the move means here."""
        match move:
            case Arrive():
                prompt = move.prompt_segments()
                self.actions.append(Add(RequestSpec(f"r{self.count}", prompt, move.max_tokens)))
                self.prompts.setdefault(prompt)
                self.count += 1
            case Leave(back, during):
                if self.count > back:
                    name = f"r{self.count - 1 - back}"
                    self.actions.append(AbortDuringStep(name) if during else Abort(name))
            case Pause():
                self.paused = True
                self.actions.append(move)
            case RefuseWrites():
                if not self.refusing:
                    self.refusing = True
                    self.actions.append(move)
            case Drain() | Restart():
                self.at_ease()
                self.actions.append(move)
            case _:
                self.actions.append(move)

    def at_ease(self) -> None:
        """Nothing that keeps an engine from getting idle, or a new one from starting."""
        if self.paused:
            self.actions.append(Resume())
        if self.refusing:
            self.actions.append(MendStore())
        self.paused = self.refusing = False

    def finish(self) -> None:
        """Every prompt once more, all at once, from whatever the store has kept by then."""
        self.at_ease()
        self.actions += [Drain(), ForgetLocal()]
        self.actions += [Add(RequestSpec(f"last{i}", prompt, 2)) for i, prompt in enumerate(self.prompts)]
        self.actions.append(Drain())


def program_of(moves: list[Move], options: EngineOptions) -> Program:
    """The program that the moves make."""
    writer = _Writer()
    for move in moves:
        writer.take(move)
    writer.finish()
    if any(isinstance(action, (BreakStore, RefuseWrites)) for action in writer.actions):
        # vLLM's own trouble with failed loads of steps that were scheduled ahead is no matter of a connector.
        options = replace(options, async_scheduling=False)
    return Program(NAME, options, tuple(writer.actions))


# -- which situation a symptom needs -----------------------------------------------------------------------------------


def _without(*kinds: type[Action]) -> Callable[[Program], Program]:
    def control(program: Program) -> Program:
        return replace(program, actions=tuple(a for a in program.actions if not isinstance(a, kinds)))

    return control


def _with_options(**changes: object) -> Callable[[Program], Program]:
    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, **changes))  # type: ignore[arg-type]

    return control


def _roomy(program: Program) -> Program:
    calm = _without(PreemptAll)(program)
    return replace(calm, options=replace(calm.options, shape=KVCacheShape(num_blocks=ROOMY)))


def _ending_orderly(program: Program) -> Program:
    actions = tuple(replace(a, drain=True) if isinstance(a, Restart) else a for a in program.actions)
    return replace(program, actions=actions)


def _one_after_the_other(program: Program) -> Program:
    actions: list[Action] = []
    for action in program.actions:
        actions += [action, Drain()] if isinstance(action, Add) else [action]
    return replace(program, actions=tuple(actions))


_Sort = Callable[[History, Finding], str]


@dataclass(frozen=True)
class _Situation:
    rule: str
    words: str
    control: Callable[[Program], Program]
    sort: _Sort | None = None


#: Asked in this order.
_SITUATIONS = (
    _Situation("FAIL-20", "broken store", _without(BreakStore), broken_rule),
    _Situation("FAIL-16", "saves that fail", _without(RefuseWrites, MendStore), refused_rule),
    _Situation("SHUT-04", "shutdown amid what is under way", _ending_orderly, in_flight_rule),
    _Situation("RST-03", "reset of the connector", _without(ResetConnector)),
    _Situation("RST-05", "pause", _without(Pause, Resume)),
    _Situation("SIG-15", "dummy run", _without(DummyRun)),
    _Situation("FIN-01", "abort", _without(Abort, AbortDuringStep)),
    _Situation("PRE-01", "preemption", _roomy),
    _Situation("ORDER-18", "asynchronous scheduling", _with_options(async_scheduling=False)),
    _Situation("SAVE-07", "second worker", _with_options(workers=1)),
    _Situation("META-07", "chunked prefill", _with_options(max_num_batched_tokens=2048)),
    _Situation("ALLOC-05", "other requests at the same time", _one_after_the_other),
)


def any_traffic() -> Family:
    """Programs of up to two dozen moves."""
    strategy = st.builds(program_of, _moves(), _options())

    def family(general: Family | None, situation: _Situation) -> Family:
        return Family(
            NAME,
            situation.rule,
            (),
            strategy,
            f"any {situation.words}",
            situation.control,
            sort=situation.sort,
            general=general,
            more=MORE,
        )

    whole = reduce(family, reversed(_SITUATIONS), None)
    assert whole is not None
    return whole
