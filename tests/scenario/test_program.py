"""Programs are plain data: prompts, words, and what a player makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.engine.protocol import EngineStopped
from kvconform.kvcache.oracle import TokenChain
from kvconform.kvcache.provenance import Provenance
from kvconform.scenario.program import (
    Abort,
    AbortOnArrival,
    AbortOnceLoading,
    Add,
    Drain,
    DummyRun,
    ForgetLocal,
    PreemptAll,
    Program,
    RepeatHandshake,
    RequestSpec,
    ResetConnector,
    Restart,
    Step,
    twin_of,
)
from kvconform.scenario.run import play
from kvconform.scenario.wording import describe_action, program_lines

FIRST = RequestSpec("first", ((1, 40),), 8)

# -- requests --------------------------------------------------------------------------------------------------


def test_equal_leading_segments_are_a_common_prefix() -> None:
    one, other = RequestSpec("a", ((1, 32), (2, 8))), RequestSpec("b", ((1, 32), (3, 8)))
    assert one.prompt_length == 40
    assert one.prompt_ids("model")[:32] == other.prompt_ids("model")[:32]
    assert one.prompt_ids("model")[32:] != other.prompt_ids("model")[32:]


def test_a_next_turn_begins_with_the_first_ones_prompt_and_answer() -> None:
    turn = RequestSpec("second", ((2, 10),), continues=FIRST)
    assert turn.prompt_length == 58
    ids = turn.prompt_ids("model")
    assert len(ids) == 58
    assert list(ids[:48]) == TokenChain(FIRST.prompt_ids("model"), FIRST.identity("model")).tokens(48)
    assert ids[:40] == turn.prompt_ids("other")[:40]
    assert ids[40:48] != turn.prompt_ids("other")[40:48], "another model answers differently"


def test_lora_and_salt_are_part_of_the_identity() -> None:
    spec = RequestSpec("a", ((1, 4),), lora="adapter", salt="s")
    identity = spec.identity("m")
    assert (identity.model, identity.lora, identity.salt) == ("m", "adapter", "s")


@pytest.mark.parametrize(
    ("more", "alone"), [({}, False), ({"prompt_logprobs": 0}, True), ({"skip_reading_prefix_cache": True}, True)]
)
def test_prompt_logprobs_keep_a_request_from_any_cache(more: dict[str, Any], alone: bool) -> None:
    assert RequestSpec("a", ((1, 4),), **more).takes_no_cache is alone


def test_prompt_logprobs_are_a_number_that_sampling_params_take() -> None:
    assert RequestSpec("a", ((1, 4),), prompt_logprobs=-1).takes_no_cache
    with pytest.raises(ValueError, match="prompt_logprobs of a is -2, and must be -1 or more"):
        RequestSpec("a", ((1, 4),), prompt_logprobs=-2)


# -- words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (Add(FIRST), "add first: prompt 40 tokens (40 tokens of seed 1), max_tokens=8"),
        (
            Add(RequestSpec("b", ((1, 2), (3, 4)), lora="x", salt="y")),
            "add b: prompt 6 tokens (2 tokens of seed 1 + 4 tokens of seed 3), max_tokens=1, LoRA 'x', salt 'y'",
        ),
        (
            Add(RequestSpec("c", ((2, 10),), continues=FIRST)),
            "add c: prompt 58 tokens (first's prompt and its 8 generated tokens + 10 tokens of seed 2), max_tokens=1",
        ),
        (
            Add(RequestSpec("d", ((1, 2),), prompt_logprobs=0)),
            "add d: prompt 2 tokens (2 tokens of seed 1), max_tokens=1, prompt_logprobs=0",
        ),
        (
            Add(RequestSpec("e", ((1, 2),), skip_reading_prefix_cache=True)),
            "add e: prompt 2 tokens (2 tokens of seed 1), max_tokens=1, not to be served from any cache",
        ),
        (Abort("a"), "abort a"),
        (AbortOnceLoading("a"), "run until a load is promised to a, and abort it between that step's execution and"),
        (AbortOnArrival("a"), "in the step that reports the end of a's load, abort it"),
        (Step(3), "run 3 steps"),
        (Drain(), "run until idle"),
        (ForgetLocal(), "drop the local prefix cache"),
        (PreemptAll(), "preempt every running request"),
        (ResetConnector(), "reset the connector's cache"),
        (Restart(), "shut down, start a new engine on the same store"),
        (DummyRun(), "run a forward without the connector"),
        (RepeatHandshake(), "collect and deliver the handshake metadata again"),
    ],
)
def test_every_action_has_a_line(action: Any, text: str) -> None:
    assert describe_action(action).startswith(text)


def test_a_program_is_numbered_lines_under_its_engine() -> None:
    lines = program_lines(Program("p", EngineOptions(max_num_batched_tokens=32), (Add(FIRST), Drain())))
    assert lines[0].startswith("engine: LBNHC, 32 blocks: 2 layers 2 heads x 8 float16, block 16")
    assert "max_num_batched_tokens=32" in lines[0]
    assert [line.partition(".")[0] for line in lines[1:]] == ["1", "2"]


# -- playing ---------------------------------------------------------------------------------------------------


class Puppet:
    """An engine that only writes down what it is told, and dies on request."""

    def __init__(self, log: list[str], number: int, dies_at: str = "") -> None:
        self.log, self.number, self.dies_at = log, number, dies_at
        self.history = History()
        self.work = 3
        self._note("start")

    def _note(self, what: str) -> None:
        self.log.append(f"{self.number} {what}")
        if what == self.dies_at:
            raise EngineStopped(what)

    def add(self, spec: RequestSpec) -> None:
        self._note(f"add {spec.id}")

    def abort(self, request_id: str) -> None:
        self._note(f"abort {request_id}")

    def abort_on_arrival(self, request_id: str) -> None:
        self._note(f"abort {request_id} on arrival")

    def step(self) -> bool:
        return self.begin_step()

    def begin_step(self) -> bool:
        self._note("step")
        self.work -= 1
        return self.work >= 0

    def finish_step(self, aborts: tuple[str, ...] = ()) -> None:
        self._note("finish")

    def dummy_run(self) -> None:
        self._note("dummy run")

    def repeat_handshake(self) -> None:
        self._note("handshake again")

    def drain(self) -> None:
        self._note("drain")

    def reset_prefix_cache(self, *, running: bool = False, connector: bool = False) -> bool:
        self._note(f"reset running={running} connector={connector}")
        return True

    def audit(self) -> None:
        self._note("audit")

    def shutdown(self) -> None:
        self._note("shutdown")


def played(*actions: Any, dies_at: str = "", twin: bool = False) -> list[str]:
    log: list[str] = []
    seen: list[tuple[History, Provenance]] = []

    def make(options: EngineOptions, history: History, provenance: Provenance, number: int) -> Puppet:
        seen.append((history, provenance))
        return Puppet(log, number, dies_at)

    history = play(Program("p", EngineOptions(), actions, twin=twin), make)
    assert all(of is history for of, _ in seen), "all engines of a program share one history"
    assert len({id(provenance) for _, provenance in seen}) == 1
    return log


RARE = (ForgetLocal(), PreemptAll(), ResetConnector(), DummyRun(), RepeatHandshake())


def test_actions_reach_the_engine_in_order_and_the_end_is_audited() -> None:
    log = played(Add(FIRST), Step(2), Abort("first"), AbortOnArrival("first"), *RARE, Drain())
    assert log == [
        "1 start",
        "1 add first",
        "1 step",
        "1 finish",
        "1 step",
        "1 finish",
        "1 abort first",
        "1 abort first on arrival",
        "1 reset running=False connector=False",
        "1 reset running=True connector=False",
        "1 reset running=False connector=True",
        "1 dummy run",
        "1 handshake again",
        "1 drain",
        "1 drain",
        "1 audit",
        "1 shutdown",
    ]


def test_a_restart_audits_and_shuts_down_the_old_engine_first() -> None:
    assert played(Restart(), Add(FIRST)) == [
        "1 start", "1 drain", "1 audit", "1 shutdown", "2 start", "2 add first", "2 drain", "2 audit", "2 shutdown",
    ]  # fmt: skip


def test_twins_do_everything_in_lock_step_and_end_in_reverse() -> None:
    log = played(Add(FIRST), Step(), Drain(), twin=True)
    assert log[:8] == [
        "1 start", "2 start", "1 add first", f"2 add {twin_of(FIRST).id}",
        "1 step", "2 step", "1 finish", "2 finish",
    ]  # fmt: skip
    assert log[-4:] == ["1 audit", "2 audit", "2 shutdown", "1 shutdown"]
    both = [(log[i], log[i + 1]) for i in range(len(log) - 1) if log[i] == "1 step"]
    assert both
    assert all(other == "2 step" for _, other in both), "all engines schedule before the first one executes"


def test_a_twin_request_has_the_same_name_and_length_and_other_tokens() -> None:
    turn = RequestSpec("second", ((2, 10),), continues=FIRST)
    for of in (FIRST, turn):
        twin = twin_of(of)
        assert (twin.id, twin.prompt_length, twin.max_tokens) == (of.id, of.prompt_length, of.max_tokens)
        assert not set(twin.prompt) & set(of.prompt)
        assert twin.prompt_ids("model")[:16] != of.prompt_ids("model")[:16]


@pytest.mark.parametrize("dies_at", ["add first", "drain", "audit"])
def test_an_engine_that_dies_ends_the_program_and_is_put_away(dies_at: str) -> None:
    log = played(Add(FIRST), Drain(), Add(RequestSpec("b", ((1, 2),))), dies_at=dies_at)
    assert log.index(f"1 {dies_at}") == len(log) - 2
    assert log[-1] == "1 shutdown"


def test_an_engine_that_does_not_start_is_not_shut_down() -> None:
    assert played(Add(FIRST), dies_at="start") == ["1 start"]


def test_a_shutdown_that_raises_is_not_the_players_problem() -> None:
    assert played(dies_at="shutdown")[-1] == "1 shutdown"
