"""pytest's side of the connector's own process."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import cattrs

from kvconform.bench.figures import Measured
from kvconform.bench.plan import Case
from kvconform.checks.model import Examination
from kvconform.config import RunConfig
from kvconform.errors import EngineUnusableError, UsageError
from kvconform.faults import FaultsFailed
from kvconform.isolation.codec import dump_program, from_bytes, load_examination, to_bytes
from kvconform.isolation.leftovers import Leftover
from kvconform.isolation.nursery import START_LIMIT, Nursery
from kvconform.scenario.exploration import Refused
from kvconform.scenario.program import Program
from kvconform.stage import AT_ONCE, Manner
from kvconform.target import Target


class HungError(Exception):
    """A scenario did not end within its time limit; ``stacks`` are those of all threads of the connector's process."""

    #: What was being played, if anything.
    program: Program | None = None

    def __init__(self, limit: float, stacks: str) -> None:
        super().__init__(f"no answer within {limit:g} s")
        self.limit = limit
        self.stacks = stacks


class CrashedError(Exception):
    """The connector's process ended; ``how`` says with what, ``output`` is the end of what it printed."""

    #: What was being played, if anything.
    program: Program | None = None

    def __init__(self, how: str, output: str) -> None:
        super().__init__(how)
        self.how = how
        self.output = output


class KitError(Exception):
    """The kit itself failed in the connector's process; the text is its traceback."""


class Room:
    """One connector in a process of its own, started when it is first needed and again after a hang or a crash.

    Args:
        target: the connector.
        config: the run's configuration for it.
        nursery: where processes come from.
    """

    def __init__(self, target: Target, config: RunConfig, nursery: Nursery) -> None:
        self.target = target
        self.config = config
        self.nursery = nursery
        self._pid = 0
        self._pipe: Connection | None = None
        #: Scenarios that were played to the end, and the seconds that all took.
        self.played = 0
        self.seconds = 0.0
        #: The chapter that scenarios are played for, where lines are measured.
        self.context = ""

    def load(self) -> None:
        """Load the connector once in a process that ends then, so that nothing it does reaches anybody else.

        Raises:
            EngineUnusableError: vLLM cannot be imported.
            UsageError: the target cannot be used; its import hangs or ends the process.
        """
        self._pid, self._pipe = self.nursery.start({"load": plain_target(self.target)})
        try:
            answer = self._receive(self.config.timeout)
        except HungError as error:
            raise UsageError(
                f"{self.target.spec}: importing it did not end within {error.limit:g} s; it has to be importable by "
                f"processes that never use it. Stacks of all its threads:\n{error.stacks.strip()}"
            ) from None
        except CrashedError as error:
            raise UsageError(
                f"{self.target.spec}: the process that imported it {error.how}; it has to be importable by processes "
                f"that never use it. The last that it printed:\n{error.output.strip() or '(nothing)'}"
            ) from None
        finally:
            self.close()
        if "ready" not in answer:
            raise why_not_started(self.nursery, answer)

    def enter(self) -> None:
        """Start the process and load the connector in it, if that has not been done.

        Raises:
            EngineUnusableError: no engine can be had in this environment.
            UsageError: the target cannot be used there.
            HungError, CrashedError: importing it does not end, or ends the process.
            KitError: the kit's own fault.
        """
        if self._pipe is None:
            self._pid, self._pipe = self.nursery.start(self._setup())
            answer = self._receive(START_LIMIT)
            if "ready" not in answer:
                self.close()
                raise why_not_started(self.nursery, answer)

    def examine(self, program: Program, manner: Manner = AT_ONCE) -> Examination:
        """Play ``program`` in the connector's process, and judge it there.

        Raises:
            Refused: the connector refused to start with this set-up.
            UsageError: the target cannot be used in that process.
            HungError, CrashedError: as their names say; the next call gets a new process.
            FaultsFailed: the vendor's class that breaks the store does not do what it should.
        KitError: the kit's own fault.
        """
        self.enter()
        began = time.monotonic()
        try:
            return self._examine(program, manner)
        finally:
            self.played += 1
            self.seconds += time.monotonic() - began

    def _examine(self, program: Program, manner: Manner) -> Examination:
        try:
            answer = self._ask({"program": dump_program(program), "manner": asdict(manner)})
        except (HungError, CrashedError) as error:
            error.program = program
            raise
        if "examination" in answer:
            return load_examination(answer["examination"])
        if "refused" in answer:
            raise Refused(answer["refused"])
        if "faults_failed" in answer:
            raise FaultsFailed(answer["faults_failed"])
        raise KitError(answer.get("kit_error", f"unexpected answer {answer!r}"))

    def measure(self, case: Case) -> tuple[Measured, dict[str, Any]]:
        """Take the time of the connector in its process; and facts on that process.

        Raises:
            UsageError: the target cannot be used in that process.
            HungError, CrashedError: as their names say; the next call gets a new process.
            KitError: the kit's own fault.
        """
        answer = self._ask({"bench": asdict(case)})
        if "measured" in answer:
            return cattrs.structure(answer["measured"], Measured), answer["facts"]
        raise KitError(answer.get("kit_error", f"unexpected answer {answer!r}"))

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self.enter()
        assert self._pipe is not None
        with contextlib.suppress(OSError):  # a process that is gone is noticed while receiving
            self._pipe.send_bytes(to_bytes({**order, "context": self.context}))
        return self._receive(self.config.timeout)

    def leftovers(self, program: Program) -> tuple[Leftover, ...]:
        """What every round of ``program`` leaves behind in its process after shutdown; a process of its own.

        Raises:
            UsageError: the target cannot be used there.
            HungError, CrashedError: it did not end, or ended the process.
        """
        self.close()
        self._pid, self._pipe = self.nursery.start({**self._setup(), "leftovers": dump_program(program)})
        try:
            answer = self._receive(START_LIMIT)
        finally:
            self.close()
        if "leftovers" not in answer:
            raise why_not_started(self.nursery, answer)
        found = answer["leftovers"]
        return tuple(Leftover(left["kind"], left["per_round"], tuple(left["examples"])) for left in found)

    def close(self) -> None:
        """End the process."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()
            self.nursery.kill(self._pid)

    def _receive(self, limit: float) -> dict[str, Any]:
        assert self._pipe is not None
        try:
            if not self._pipe.poll(limit):
                stacks = self.nursery.stacks(self._pid)
                self.close()
                raise HungError(limit, stacks)
            return from_bytes(self._pipe.recv_bytes())
        except (EOFError, OSError):
            how = self._how_it_ended()
            output = self.nursery.output()
            self.close()
            raise CrashedError(how, output) from None

    def _how_it_ended(self) -> str:
        for _ in range(100):
            code = self.nursery.ended(self._pid)
            if code is not None:
                return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
            time.sleep(0.02)
        return "closed its connection to the kit and lived on"

    def _setup(self) -> dict[str, Any]:
        config = {k: v for k, v in asdict(self.config).items() if k not in ("explicit", "connector_directory")}
        return {"target": plain_target(self.target), "config": config}


def why_not_started(nursery: Nursery, answer: dict[str, Any]) -> UsageError | KitError:
    """What a process said instead of being ready for its work; where no engine can be had, none is tried again."""
    if "unusable" in answer:
        nursery.give_up(answer["unusable"])
        return EngineUnusableError(answer["unusable"])
    if "usage" in answer:
        return UsageError(answer["usage"])
    return KitError(answer.get("kit_error", f"unexpected answer {answer!r}"))


def plain_target(target: Target) -> dict[str, Any]:
    """A target as plain data."""
    return {**asdict(target), "search_path": None if target.search_path is None else str(target.search_path)}
