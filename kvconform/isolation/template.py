"""A copy of a connector's process from before anything was played in it, of which further copies are made.

A part of a scenario that ends without clean-up needs a process of its own. A copy of the one that has played scenarios
already would be no such thing as an engine core that has just started: threads of the connector's that serve the whole
process do not live on in a copy, and neither does CUDA (torch refuses to be used in a forked process once it was).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import count
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from kvconform.engine.options import ConnectorSpec
from kvconform.isolation.codec import dump_program, from_bytes, load_program, to_bytes
from kvconform.isolation.orphans import die_with_parent
from kvconform.scenario.apart import Apart, CopiesOfThisProcess, Part, Silent
from kvconform.scenario.program import Program

#: The connector of a scenario's first engine, and under True that of the second one of a twin or a pair.
Specs = dict[bool, ConnectorSpec]
PlayPart = Callable[[Program, Path, Specs], Mapping[str, Any]]


class Template:
    """Plays parts in copies of the process as it was when this was made.

    Args:
        play_part: plays a program's part, its store in a directory that exists, with settings that are filled in.
        ours: connections that are no business of a copy.
    """

    def __init__(self, play_part: PlayPart, ours: tuple[Connection, ...] = ()) -> None:
        self._pipe, theirs = Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            with contextlib.suppress(BaseException):
                die_with_parent()
                for connection in (self._pipe, *ours):
                    connection.close()
                _serve(theirs, play_part)
            os._exit(0)
        theirs.close()

    def close(self) -> None:
        """End the template; what it has started ends with it."""
        self._pipe.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def apart(self, specs: Specs) -> Apart:
        """Where the parts of a scenario with these connectors are played."""
        return _CopiesOfTheTemplate(self, specs)

    def order(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """What the template answers; None if it is gone, which nobody but a system out of memory does to it."""
        try:
            self._pipe.send_bytes(to_bytes(order))
            return from_bytes(self._pipe.recv_bytes())
        except (EOFError, OSError):
            return None


class _CopiesOfTheTemplate:
    def __init__(self, template: Template, specs: Specs) -> None:
        self._template = template
        self._specs = [asdict(specs[number]) for number in sorted(specs)]

    def kill(self, part: Part) -> None:
        if self._order(part, "kill") is None:
            CopiesOfThisProcess().kill(part)

    def silence(self, part: Part) -> Silent:
        answer = self._order(part, "silence")
        if answer is None:
            return CopiesOfThisProcess().silence(part)
        return _SilentElsewhere(self._template, answer["number"], answer["answer"])

    def _order(self, part: Part, how: str) -> dict[str, Any] | None:
        assert part.directory is not None
        program = dump_program(part.program)
        return self._template.order(
            {"how": how, "program": program, "directory": str(part.directory), "specs": self._specs}
        )


class _SilentElsewhere:
    """A stopped process that the template has started."""

    def __init__(self, template: Template, number: int, answer: dict[str, Any]) -> None:
        self._template, self._number = template, number
        self.answer = answer

    def kill(self) -> None:
        self._template.order({"how": "release", "number": self._number})


def _serve(pipe: Connection, play_part: PlayPart) -> None:
    """What the template does until the other end is closed."""
    copies, silent = CopiesOfThisProcess(), dict[int, Silent]()
    for number in count():
        order = from_bytes(pipe.recv_bytes())
        answer: dict[str, Any] = {}
        if order["how"] == "release":
            if (process := silent.pop(order["number"], None)) is not None:
                process.kill()
        else:
            program, directory = load_program(order["program"]), Path(order["directory"])
            specs = {bool(index): ConnectorSpec(**spec) for index, spec in enumerate(order["specs"])}
            part = Part(program, directory, partial(play_part, program, directory, specs))
            if order["how"] == "kill":
                copies.kill(part)
            else:
                process = silent[number] = copies.silence(part)
                answer = {"number": number, "answer": process.answer}
        pipe.send_bytes(to_bytes(answer))
