"""A producer and a consumer: who steps, what a front-end passes on, and a process that falls silent."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvconform.engine.events import ProgramAction
from kvconform.engine.history import History
from kvconform.isolation.codec import dump_program, load_program
from kvconform.scenario.apart import SilentProcess, as_json
from kvconform.scenario.hand_offs import hand_over
from kvconform.scenario.pairing import CONSUMER, PRODUCER, Pair
from kvconform.scenario.producer_consumer import producer_gone
from kvconform.scenario.program import HandOff, Leave, Outlast, Program, RequestSpec, Turn
from kvconform.scenario.wording import program_lines


class FakeEngine:
    """Notes what is done with it."""

    def __init__(self, *, idle: bool = True) -> None:
        self.delivered: dict[str, Any] = {}
        self.added: list[RequestSpec] = []
        self.done: list[str] = []
        self._idle = idle

    def add(self, spec: RequestSpec) -> None:
        self.added.append(spec)

    def step(self) -> bool:
        self.done.append("step")
        return False

    def drain(self, meanwhile: Callable[[], object] = lambda: None, *, held: bool = False) -> None:
        self.done.append("drain")
        meanwhile()

    def outlast(self, limit: float, meanwhile: Callable[[], object]) -> bool:
        self.done.append(f"outlast {limit:g}")
        meanwhile()
        return self._idle

    def shutdown(self) -> None:
        self.done.append("shutdown")


def pair_of(*engines: Any, peer_timeout: float = 0.0) -> Pair:
    return Pair(History(), peer_timeout, dict(enumerate(engines)))


def test_the_consumer_gets_what_the_producer_returned_as_json() -> None:
    producer, consumer = FakeEngine(), FakeEngine()
    producer.delivered["p"] = {"blocks": (1, 2), "more": None}
    pair = pair_of(producer, consumer)
    pair.act(Turn("consumer"))
    pair.act(HandOff(RequestSpec("d", ((1, 5),), 3), "p"))
    (request,) = consumer.added
    assert (request.id, request.max_tokens) == ("d", 3)
    assert request.kv_transfer_params == {"blocks": [1, 2], "more": None}
    (event,) = pair.history.of(ProgramAction)
    assert event.detail == {"request": "d", "of": "p", "delivered": True}


def test_without_parameters_the_request_goes_without() -> None:
    producer, consumer = FakeEngine(), FakeEngine()
    producer.delivered["p"] = {"handle": uuid.UUID(int=1)}
    pair = pair_of(producer, consumer)
    pair.act(Turn("consumer"))
    pair.act(HandOff(RequestSpec("d", ((1, 5),)), "p"))
    pair.act(HandOff(RequestSpec("e", ((1, 5),)), "unknown"))
    assert [request.kv_transfer_params for request in consumer.added] == [None, None]
    assert [event.detail["delivered"] for event in pair.history.of(ProgramAction)] == [False, False]


def test_the_other_engine_is_stepped_beside_the_one_that_is_drained() -> None:
    producer, consumer = FakeEngine(), FakeEngine()
    pair = pair_of(producer, consumer)
    pair.act(Turn("consumer"))
    pair.drain()
    assert (consumer.done, producer.done) == (["drain"], ["step"])


def test_an_engine_that_is_never_idle_is_left_alone() -> None:
    producer, consumer = FakeEngine(idle=False), FakeEngine()
    pair = pair_of(producer, consumer, peer_timeout=3.0)
    pair.act(Outlast())
    assert producer.done == ["outlast 3"]
    assert pair.live == {CONSUMER: consumer}
    pair.act(Turn("consumer"))
    pair.act(HandOff(RequestSpec("d", ((1, 5),)), "p"))
    assert consumer.added == []
    pair.drain_all()
    assert producer.done == ["outlast 3"]


def test_a_producer_with_time_outs_that_nobody_knows_is_not_waited_for_in_the_end() -> None:
    producer, consumer = FakeEngine(idle=False), FakeEngine()
    pair = pair_of(producer, consumer)
    pair.drain_all()
    assert producer.done == ["outlast 0"]
    assert consumer.done == ["step", "drain", "drain"]
    known = FakeEngine(idle=False)
    pair_of(known, FakeEngine(), peer_timeout=3.0).drain_all()
    assert known.done[0] == "drain"


def test_what_a_producer_returned_outlives_it() -> None:
    producer, consumer = FakeEngine(), FakeEngine()
    producer.delivered["p"] = {"blocks": [1]}
    pair = pair_of(producer, consumer)
    pair.act(Leave())
    assert producer.done == ["shutdown"]
    assert PRODUCER not in pair.live
    pair.act(Turn("consumer"))
    pair.act(HandOff(RequestSpec("d", ((1, 5),)), "p"))
    assert consumer.added[0].kv_transfer_params == {"blocks": [1]}


def test_a_silent_process_answers_and_is_stopped_until_it_is_killed() -> None:
    silent = SilentProcess(lambda: {"p": {"pid": os.getpid()}})
    pid = silent.answer["p"]["pid"]
    assert pid != os.getpid()
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state == "T"
    silent.kill()
    assert not Path(f"/proc/{pid}").exists()


def test_a_silent_process_whose_work_fails_has_no_answer() -> None:
    silent = SilentProcess(lambda: {}["nothing"])
    assert silent.answer == {}
    silent.kill()


def test_only_what_json_can_say_is_passed_on() -> None:
    assert as_json({"a": (1, "b")}) == {"a": [1, "b"]}
    assert as_json({"a": {1, 2}}) is None


def test_programs_of_pairs_are_plain_data_and_can_be_told() -> None:
    program = producer_gone().examples[2]
    assert load_program(dump_program(program)) == program
    text = "\n".join(program_lines(program))
    assert "engine 1 is the producer (kv_producer), engine 2 the consumer (kv_consumer)" in text
    assert "add prefill0: prompt 48 tokens (48 tokens of seed 1), max_tokens=1, to be decoded elsewhere" in text
    assert "the process falls silent for good (SIGSTOP)" in text
    assert "add decode0 with what the producer returned for prefill0" in text


def test_a_first_token_is_the_one_that_the_producer_samples() -> None:
    actions = hand_over([((1, 16),)], first_token=True)
    program = Program("p", actions=tuple(actions), pair=("kv_producer", "kv_consumer"))
    (hand_off,) = [action for action in program.actions if isinstance(action, HandOff)]
    assert hand_off.request.prompt_length == 17
