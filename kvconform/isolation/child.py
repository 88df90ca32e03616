"""The connector's own process, and the nursery from which it is forked.

Started by :mod:`kvconform.isolation.nursery` as ``python -m kvconform.isolation.child FOLDER FD [FD]``. The nursery
imports torch and vLLM once and never touches a connector; for every order on the first socket it forks a process that
loads the connector and answers on a socket of its own. So a new process after a hang or a crash costs a moment, not an
import of vLLM. Standard output and error belong to the connector; in FOLDER stacks are written on SIGUSR1. The second
socket is where other processes of the run may connect, see :mod:`kvconform.isolation.server`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kvconform.errors import EngineUnusableError, UsageError
from kvconform.isolation.codec import dump_examination, from_bytes, load_program, to_bytes
from kvconform.isolation.orphans import die_with_parent
from kvconform.isolation.server import Server


def main(arguments: list[str]) -> None:
    """Serve orders until the other end is closed."""
    die_with_parent()
    folder, *descriptors = arguments
    control, *listeners = (socket.socket(fileno=int(descriptor)) for descriptor in descriptors)
    listener = listeners[0] if listeners else None
    imports = Imports()
    orders = {"preload": imports.preload, "prepare": imports.prepare}
    Server(control, listener, Path(folder), orders, partial(_run, imports)).serve()


@contextlib.contextmanager
def _for_good() -> Iterator[None]:
    """The collector leaves alone what is imported, here and in forked processes: it would look for garbage in vain."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@dataclass
class Imports:
    """What the nursery imports, for all processes that are forked from it."""

    #: Why the first import of vLLM failed, in a sentence. Later ones may fail over what it has left half done.
    failure: str = ""

    def preload(self, request: dict[str, Any]) -> dict[str, Any]:
        """Import the class that every connector derives from; what is wrong with vLLM is said by whoever needs it."""
        sys.path[:] = request["sys_path"]
        # The interpreter has its seed; what reads the variable from now on, vLLM above all, sees the parent's.
        os.environ.pop("PYTHONHASHSEED", None)
        os.environ.update(request["environment"])
        from kvconform.api import set_up

        set_up(request["device"])
        if request["engine"] == "embedded":
            from kvconform.engine.embedded import finder

            finder.install()
        try:
            with _for_good():
                import vllm.distributed.kv_transfer.kv_connector.factory
                import vllm.distributed.kv_transfer.kv_connector.v1.base  # noqa: F401
        except Exception as error:
            self.failure = _not_imported(error)
        return {"ready": True}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Import what every engine needs; nothing of the connector's."""
        from kvconform.api import prepare

        try:
            with _for_good():
                prepare(request["device"])
                import vllm.distributed.parallel_state
                import vllm.lora.request
                import vllm.v1.core.sched.scheduler
                import vllm.v1.structured_output
                import vllm.v1.worker.gpu.kv_connector
                import vllm.v1.worker.kv_connector_model_runner_mixin
                import vllm.v1.worker.utils  # noqa: F401

                # Nothing that only test runs have: a process that looks for the class is to be like vLLM's (SIG-10).
                import kvconform.engine.vllm_engine.construction
                import kvconform.engine.vllm_engine.engine
                import kvconform.engine.vllm_engine.layers  # noqa: F401
                from kvconform.engine.vllm_engine.configuration import inspect_model

                inspect_model()
        except UsageError as error:
            return {"usage": str(error)}
        except Exception as error:
            return {"usage": self.failure or _not_imported(error)}
        return {"ready": True}


def _not_imported(error: Exception) -> str:
    """What the installed vLLM, a package that it needs, or the kit in it stumbles over."""
    from packaging.version import Version

    from kvconform.api.runtime import NEWEST_TESTED_RELEASE, OLDEST_RELEASE, standin_in_place, vllm_version
    from kvconform.engine.instrument import described

    what = described(error)
    if standin_in_place():
        return f"The engine 'embedded' cannot be imported here: {what}. Install kvconform[embedded]."
    version = vllm_version() or "0"
    known = OLDEST_RELEASE <= Version(Version(version).base_version) <= NEWEST_TESTED_RELEASE
    return (
        f"vLLM {version} cannot be imported as an engine needs it: {what}. See whether "
        "python -c 'import vllm.v1.core.sched.scheduler, vllm.v1.worker.utils' works in this environment"
        + (
            "."
            if known
            else f"; if it does, it is the release: the kit is tested with {OLDEST_RELEASE} to {NEWEST_TESTED_RELEASE}."
        )
    )


def _run(imports: Imports, answers: int, request: dict[str, Any], stacks: Path) -> None:
    """What a forked process does; ends it."""
    die_with_parent()
    sys.path[:] = request["sys_path"]
    # The file stays open for the life of the process: faulthandler writes to it from the signal handler.
    faulthandler.register(signal.SIGUSR1, file=stacks.open("w"), all_threads=True)
    code = 1
    try:
        _serve(imports, Connection(answers), request, stacks.parent)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _serve(imports: Imports, pipe: Connection, setup: dict[str, Any], directory: Path) -> None:
    """Load the connector and answer until the other end is closed."""
    if "load" in setup:
        pipe.send_bytes(to_bytes(_load(imports, setup["load"])))
        return
    try:
        if "observe" in setup:
            pipe.send_bytes(to_bytes({"observation": _observe(setup, directory)}))
            return
        examiner, measuring = _examiner(setup, directory, pipe)
    except Exception as error:
        pipe.send_bytes(to_bytes(_why_not_ready(error)))
        return
    if "leftovers" in setup:
        pipe.send_bytes(to_bytes(_leftovers(examiner, setup["leftovers"])))
        return
    pipe.send_bytes(to_bytes({"ready": True}))
    while True:
        try:
            request = from_bytes(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        if measuring is not None:
            measuring.enter(request["context"])
        answer = _answer(examiner, request)
        if measuring is not None:
            measuring.save()
        pipe.send_bytes(to_bytes(answer))


def _why_not_ready(error: Exception) -> dict[str, Any]:
    """For room.why_not_started."""
    if isinstance(error, EngineUnusableError):
        return {"unusable": str(error)}
    if isinstance(error, UsageError):
        return {"usage": str(error)}
    # Whatever the class does is a part of what is observed, and loading it has errors of its own.
    return _own_fault(error)


def _load(imports: Imports, target: dict[str, Any]) -> dict[str, Any]:
    try:
        _target(target).load()
    except EngineUnusableError as error:
        return {"unusable": imports.failure} if imports.failure else {"usage": str(error)}
    except UsageError as error:
        return {"usage": str(error)}
    return {"ready": True}


def _target(fields: dict[str, Any]) -> Any:
    from kvconform.target import Target

    search_path = fields["search_path"]
    return Target(**{**fields, "search_path": None if search_path is None else Path(search_path)})


def _observe(setup: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The class is not loaded before: the first import is a part of what is observed."""
    from kvconform.engine.options import ConnectorSpec
    from kvconform.engine.vllm_engine.construction import observe

    if setup["search_path"] is not None:
        sys.path.insert(0, setup["search_path"])
    spec = ConnectorSpec(**setup["observe"])
    os.environ.update(spec.env)
    alone = setup["scheduler_only"]
    return observe(spec, setup["device"], scheduler_only=alone, directory=str(directory)).to_dict()


def _examiner(setup: dict[str, Any], directory: Path, pipe: Connection) -> tuple[Any, Any]:
    """The connector ready to be tried, and what measures its lines or None."""
    from kvconform import coverage_child
    from kvconform.config import RunConfig
    from kvconform.engine.vllm_engine.configuration import ensure_parallel_state
    from kvconform.examiner import Examiner
    from kvconform.faults import load_faults
    from kvconform.isolation.template import Template

    target = _target(setup["target"])
    config = RunConfig(**{**setup["config"], "capabilities": tuple(setup["config"]["capabilities"])})
    # What the first engine would do anyway counts as start-up, not against the first scenario's time limit.
    ensure_parallel_state(str(directory))
    measuring = coverage_child.start(target)
    connector = target.load()
    if measuring is not None:
        measuring.loaded(connector)
    faults = load_faults(config.faults, Path.cwd()) if config.faults else None
    examiner = Examiner(target, config, faults=faults)
    examiner.stage.template = Template(examiner.stage.play_part, (pipe,))
    return examiner, measuring


def _leftovers(examiner: Any, program: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from kvconform.isolation.leftovers import leftovers

    played = load_program(program)
    return {"leftovers": [asdict(left) for left in leftovers(lambda: examiner.play(played))]}


def _answer(examiner: Any, request: dict[str, Any]) -> dict[str, Any]:
    from kvconform.stage import Manner

    if "bench" in request:
        return _guarded(lambda: _bench(examiner, request["bench"]))
    manner = Manner(**request["manner"])
    answer = _guarded(lambda: _examined(examiner, request["program"], manner))
    # Whoever reads it knows the scenario's own ids.
    return from_bytes(to_bytes(answer).replace(manner.suffix.encode(), b"")) if manner.suffix else answer


def _examined(examiner: Any, program: dict[str, Any], manner: Any) -> dict[str, Any]:
    return {"examination": dump_examination(examiner.examine_anew(load_program(program), manner))}


def _guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    from kvconform.faults import FaultsFailed
    from kvconform.scenario.exploration import Refused

    try:
        return work()
    except Refused as error:
        return {"refused": str(error)}
    except FaultsFailed as error:
        return {"faults_failed": str(error)}
    except Exception as error:
        # Whatever the connector raises is part of the history.
        return _own_fault(error)


def _own_fault(error: Exception) -> dict[str, Any]:
    return {"kit_error": "".join(traceback.format_exception(error))[-4000:]}


def _bench(examiner: Any, case: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from kvconform.bench.measure import measure
    from kvconform.bench.plan import Case

    measured, facts = measure(examiner.stage.connector_spec, Case(**case), examiner.config)
    return {"measured": asdict(measured), "facts": facts}


if __name__ == "__main__":
    main(sys.argv[1:])
