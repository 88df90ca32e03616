"""A producer and a consumer in one scenario, and the front-end between them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from kvconform.engine.events import ProgramAction
from kvconform.engine.history import History
from kvconform.engine.protocol import Engine
from kvconform.scenario.apart import Silent, as_json
from kvconform.scenario.program import FinishRequests, HandOff, Leave, Outlast, Turn

PairAction = Turn | HandOff | FinishRequests | Outlast | Leave

PRODUCER, CONSUMER = 0, 1


@dataclass
class Pair:
    """Who is there, and whose turn it is.

    ``live`` are the engines that still take part, by number in the pair: one that has ``left``, or that never becomes
    idle without its peer, does not. ``peer_timeout`` is how long the connector, as configured, waits for a peer at
    most; 0 if nobody said so.
    """

    history: History
    peer_timeout: float = 0.0
    live: dict[int, Engine] = field(default_factory=dict)
    left: list[Engine] = field(default_factory=list)
    turn: int = PRODUCER
    _delivered: dict[str, Any] = field(default_factory=dict)
    _silent: Silent | None = None
    _stuck: bool = False

    def begin_silently(self, producer: Silent) -> None:
        """The producer's part was played by a process that has fallen silent."""
        self._silent = producer
        self._delivered.update(producer.answer)
        self.history.add(ProgramAction(1, 0, "leave", {"silent": True}))

    @property
    def acting(self) -> list[Engine]:
        """The engine whose turn it is, if it is still there."""
        return [engine for number, engine in self.live.items() if number == self.turn]

    def act(self, action: PairAction) -> None:
        """What only pairs do."""
        match action:
            case Turn():
                self.turn = CONSUMER if action.engine == "consumer" else PRODUCER
            case FinishRequests():
                for engine in self.acting:
                    engine.drain(held=True)
            case HandOff():
                self._hand_off(action)
            case Leave():
                for engine in self.acting:
                    self._delivered.update(engine.delivered)
                    engine.shutdown()
                    self.left.append(self.live.pop(self.turn))
                    self.history.add(ProgramAction(self.turn + 1, 0, "leave", {"silent": False}))
            case Outlast():
                self._outlast()

    def drain(self) -> None:
        """Step both until the one whose turn it is is idle."""
        for engine in self.acting:
            engine.drain(self._step_other)

    def _outlast(self) -> None:
        for engine in self.acting:
            if not engine.outlast(self.peer_timeout, self._step_other):
                self._stuck = self._stuck or self.turn == PRODUCER
                self.live.pop(self.turn)

    def drain_all(self) -> None:
        """Step both until both are idle.

        A producer may hold blocks for as long as its time-out, even for a consumer that has fetched them; as long as
        nobody says how long that is, it is not waited for.
        """
        turn = self.turn
        for number in tuple(self.live):
            self.turn = number
            if number == PRODUCER and not self.peer_timeout:
                self._outlast()
            else:
                self.drain()
        self.turn = turn
        # What the second of them may have given the first one to do.
        for engine in self.live.values():
            engine.drain()

    def close(self) -> None:
        """End a silent process."""
        if self._silent is not None:
            self._silent.kill()

    def _step_other(self) -> None:
        for number, engine in self.live.items():
            if number != self.turn:
                engine.step()

    def _hand_off(self, action: HandOff) -> None:
        """What disaggregated-prefill proxies do: the answer of one engine goes into the request to the other one.

        A producer that is left alone, but there, makes no peer that anybody has to cope with.
        """
        if self._stuck:
            return
        if PRODUCER in self.live:
            self._delivered.update(self.live[PRODUCER].delivered)
        params = as_json(self._delivered.get(action.of))
        for engine in self.acting:
            detail = {"request": action.request.id, "of": action.of, "delivered": bool(params)}
            self.history.add(ProgramAction(self.turn + 1, 0, "hand off", detail))
            engine.add(replace(action.request, kv_transfer_params=params))
