"""Where vLLM's code and the connector's hooks run: whatever they raise ends the engine, as in an engine core."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import kvconform
from kvconform.engine.events import Crossing, EngineRaised, KitFailed, Unsimulated
from kvconform.engine.history import History
from kvconform.engine.instrument import Recorder, describe_error, innermost, stumbled
from kvconform.engine.protocol import EngineStopped, NotSimulated

T = TypeVar("T")

# Where the kit itself plays a part of vLLM: its engine, but not the stand-in that has vLLM's own code in it.
_KIT = Path(kvconform.__file__).parent
_OURS = tuple(f"{_KIT / folder}/" for folder in ("engine", "kvcache", "device"))
_STANDIN = f"{_KIT / 'engine' / 'embedded'}/"


class VllmWouldRaise(Exception):
    """What vLLM raises in a line that the kit stands in for, because of what the connector gave it."""


class PlannedFailure(Exception):
    """The scenario made the forward raise; as in vLLM, the engine ends with it."""


class Guard:
    """Runs calls, and takes what crosses between processes through serialisation.

    Args:
        history: where failures go.
        recorder: knows which hook raised last.
        clock: tells (engine number, step).
    """

    def __init__(self, history: History, recorder: Recorder, clock: Callable[[], tuple[int, int]]) -> None:
        self._history = history
        self._recorder = recorder
        self._clock = clock
        self.stopped = False

    def run(self, during: str, call: Callable[[], T]) -> T:
        """Run vLLM's code.

        Raises:
            EngineStopped: it raised now, or the kit's own code did, or the engine was dead already.
        """
        if self.stopped:
            raise EngineStopped("the engine is dead")
        self._recorder.raised.hook = self._recorder.raised.error = None
        try:
            return call()
        except EngineStopped:
            raise
        except Exception as error:
            if isinstance(error, PlannedFailure):
                self.stopped = True
                raise EngineStopped(f"{during}: {error}") from error
            unsimulated = _in_chain(error, NotSimulated)
            if unsimulated is not None:
                self.stopped = True
                self._history.add(Unsimulated(*self._clock(), str(unsimulated)))
                raise EngineStopped(str(unsimulated)) from error
            text, where = describe_error(error)
            cause = self._recorder.raised
            same = cause.error is not None and _in_chain(error, cause.error) is not None
            if not same and _ours(error):
                trace = "".join(traceback.format_exception(error))[-3000:]
                self._stop(KitFailed(*self._clock(), during, text, where, trace))
            hook = cause.hook if same else None
            self._stop(EngineRaised(*self._clock(), during, text, where, hook, stumbled(error)))

    def pickled(self, what: str, value: T) -> T:
        """A copy of ``value``, made by the pickler that vLLM's message queue uses."""
        try:
            data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
            crossed: T = pickle.loads(data)
        except Exception as error:
            text, where = describe_error(error)
            self._history.add(Crossing(*self._clock(), what, 0, text))
            self._stop(EngineRaised(*self._clock(), f"serialising the {what}", text, where))
        self._history.add(Crossing(*self._clock(), what, len(data)))
        return crossed

    def _stop(self, event: EngineRaised | KitFailed) -> NoReturn:
        self.stopped = True
        self._history.add(event)
        raise EngineStopped(f"{event.during}: {event.error}")


def _in_chain(error: BaseException | None, cause: BaseException | type[BaseException]) -> BaseException | None:
    """The exception in the chain behind ``error`` that is ``cause``, or of that class."""
    while error is not None:
        if error is cause or (isinstance(cause, type) and isinstance(error, cause)):
            return error
        error = error.__cause__ or error.__context__
    return None


def _ours(error: BaseException) -> bool:
    """Whether a line of the kit raised, as one does that calls vLLM in a way that this release does not know."""
    if isinstance(error, VllmWouldRaise):
        return False
    raised = innermost(error)
    file = "" if raised is None else raised.tb_frame.f_code.co_filename
    return file.startswith(_OURS) and not file.startswith(_STANDIN)
