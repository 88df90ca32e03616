"""Scenarios that call for a capability, and decide whether its rules are asked of a connector that does not declare it.

The same programs for everyone, whatever else ran before: they are examples of the suites' own families, most of them of
families that every connector is tried with, so that a whole run plays none of them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from kvconform.isolation.room import CrashedError, HungError
from kvconform.scenario import (
    asynchronous,
    failures,
    finish,
    hand_offs,
    hybrid,
    observability,
    recurrent,
    transfer,
)
from kvconform.scenario.exploration import Play, Refused, is_of_the_engine
from kvconform.scenario.program import Program

#: Programs of one capability that may hang or crash before the others are left alone.
LOSSES = 2


@dataclass(frozen=True)
class Demonstration:
    """Programs that call for one capability; ``lacking`` says what did not happen in them."""

    programs: Callable[[], Iterator[Program]]
    lacking: str


def _plain() -> Iterator[Program]:
    yield transfer.reload().examples[0]


def _loads() -> Iterator[Program]:
    """One by one and several at once, behind a local hit, of a prompt computed in chunks, and in the next turn."""
    yield from _plain()
    for family in (
        asynchronous.loads_at_once, transfer.partly_local, transfer.chunked_prefill, transfer.next_turn,
    ):  # fmt: skip
        yield family().examples[0]


def _ends() -> Iterator[Program]:
    """Requests that end one by one and together, on blocks that others want at once, and aborted."""
    yield from _plain()
    yield asynchronous.loads_at_once().examples[0]
    yield from finish.blocks_handed_on().examples
    yield finish.aborts().examples[0]


def _restarts() -> Iterator[Program]:
    yield from transfer.restart().examples


def _broken_store() -> Iterator[Program]:
    yield from failures.failed_loads("recompute").examples


def _groups() -> Iterator[Program]:
    yield hybrid.several_groups().examples[0]


def _states() -> Iterator[Program]:
    yield recurrent.states().examples[0]


def _observed() -> Iterator[Program]:
    yield from _plain()
    yield observability.varied().examples[0]


def _hand_offs() -> Iterator[Program]:
    yield from hand_offs.demonstration()
    # One that returns parameters for every request does so here.
    yield from _plain()


DEMONSTRATIONS: Mapping[str, Demonstration] = {
    "sync-load": Demonstration(_loads, "no stored prompt was offered for a load in the same step"),
    "async-load": Demonstration(_loads, "no stored prompt was offered for an asynchronous load"),
    "delayed-free": Demonstration(_ends, "request_finished never kept the blocks of a request"),
    "async-save": Demonstration(_ends, "request_finished never kept the blocks of a request for a save"),
    "handshake": Demonstration(_plain, "get_handshake_metadata returned nothing"),
    "stats": Demonstration(_observed, "get_kv_connector_stats returned nothing"),
    "events": Demonstration(_observed, "no KV cache event came out"),
    "failure-report": Demonstration(_broken_store, "no failed load was reported, although the store was broken"),
    "mamba": Demonstration(_states, "nothing was loaded for a request of a model with recurrent layers"),
    "hma": Demonstration(_groups, "nothing was loaded for a request with several KV cache groups"),
    "pd": Demonstration(_hand_offs, "no finished request returned kv_transfer_params"),
    "producer": Demonstration(_hand_offs, "no finished request returned kv_transfer_params"),
    "worker-meta": Demonstration(_plain, "build_connector_worker_meta returned nothing"),
    "persistence": Demonstration(_restarts, "a restarted engine was offered nothing of what was stored before"),
}


@dataclass
class Demonstrator:
    """Plays the scenarios of a capability until one shows it; none is played twice, neither one that hung."""

    play: Play
    _lost: dict[str, str] = field(default_factory=dict)
    #: Capabilities that the engine has not got what it takes to see, with its words.
    beyond: dict[str, str] = field(default_factory=dict)

    def count(self, name: str) -> tuple[int, str]:
        """How often the first scenario that shows it did; if none does, what became of those without an end.

        The answer depends on the capability's own scenarios only, which are tried in the same order each time.
        """
        lost: list[str] = []
        demonstration = DEMONSTRATIONS.get(name)
        for program in demonstration.programs() if demonstration is not None else ():
            count, loss = self._try(program, name)
            if count:
                return count, ""
            if loss:
                lost.append(loss)
            if len(lost) == LOSSES:
                break
        return 0, "; ".join(lost)

    def _try(self, program: Program, name: str) -> tuple[int, str]:
        key = repr(program)
        if key not in self._lost:
            try:
                return self.play(program).capabilities.get(name, 0), ""
            except Refused as error:
                if is_of_the_engine(str(error)):
                    self.beyond[name] = str(error)
                return 0, ""
            except HungError as error:
                self._lost[key] = f'the scenario "{program.name}" hung: {error}'
            except CrashedError as error:
                self._lost[key] = f'the scenario "{program.name}" ended the connector\'s process: {error}'
        return 0, self._lost[key]
