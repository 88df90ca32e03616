"""Importing and building a connector class as vLLM does, with an eye on everything that may go wrong.

Runs in a process of its own (kvconform.isolation.observing): a constructor may hang, and an import must be the first.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from kvconform.checks.class_model import ClassObservation, ClassShape, Flag, Raised, RoleObservation
from kvconform.checks.class_object import shape_of
from kvconform.checks.engine_calls import FLAGS
from kvconform.engine.instrument import describe_error
from kvconform.engine.options import ConnectorSpec, EngineOptions
from kvconform.errors import EngineUnusableError

# How long a constructor may take alone before it counts as waiting, and the other role is built beside it.
PATIENCE = 30.0


def observe(
    spec: ConnectorSpec, device: str, *, scheduler_only: bool = False, directory: str | None = None
) -> ClassObservation:
    """Import, resolve, configure and build; whatever fails ends the sequence.

    Args:
        spec: the connector.
        device: "cpu" or "cuda".
        scheduler_only: build the scheduler role where no worker role was built before.
        directory: where files go that last as long as the process; by default among the temporary ones.

    Raises:
        EngineUnusableError: no engine can be had in this environment.
    """
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    from kvconform.engine.vllm_engine.configuration import build_vllm_config, kv_transfer_config

    seen = ClassObservation(registered=spec.module_path is None)
    effects = ImportEffects()
    transfer = kv_transfer_config(spec, "recompute", device)
    started = time.perf_counter()
    try:
        with effects.watching():
            if spec.module_path is None:
                KVConnectorFactory.get_connector_class(transfer)
            else:
                importlib.import_module(spec.module_path)
    except (Exception, SystemExit) as error:
        return replace(seen, imported=describe(error))
    seconds = time.perf_counter() - started
    seen = replace(seen, shape=_shape(spec, transfer))
    try:
        connector_class: Any = KVConnectorFactory.get_connector_class(transfer)
    except Exception as error:
        seen = replace(seen, resolved=describe(error))
        return replace(seen, effects=effects.of(spec.module_path or ""), seconds=seconds)
    module = spec.module_path or connector_class.__module__
    seen = replace(seen, effects=effects.of(module), seconds=seconds)
    try:
        config = build_vllm_config(EngineOptions(), spec, device)
        site = _Site(connector_class, config, directory)
    except EngineUnusableError:
        raise
    except Exception as error:
        return replace(seen, configured=describe(error))
    if scheduler_only:
        return replace(seen, scheduler_alone=site.build("scheduler"))
    seen = replace(seen, answers_before=class_answers(connector_class, config))
    worker, rescuer = worker_first(site)
    scheduler = site.build("scheduler") if rescuer is None else rescuer
    again = None
    if rescuer is not None:
        worker, again = RoleObservation("worker", hung=True), worker
    elif not worker.built:
        again = site.build("worker")
    return replace(
        seen,
        worker=worker,
        scheduler=scheduler,
        worker_again=again,
        answers_after=class_answers(connector_class, config),
    )


def _shape(spec: ConnectorSpec, transfer: Any) -> ClassShape | None:
    """The class itself; the factory may refuse it, or not find it, and says so later."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.distributed.kv_transfer.kv_connector.v1 import supports_hma
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    if spec.module_path is None:
        found: Any = KVConnectorFactory.get_connector_class(transfer)
    else:
        found = getattr(sys.modules.get(spec.module_path), spec.class_name, None)
    return shape_of(found, KVConnectorBase_V1, supports_hma(found)) if isinstance(found, type) else None


def worker_first(site: Builder, patience: float = PATIENCE) -> tuple[RoleObservation, RoleObservation | None]:
    """Build the worker role; if that takes too long, the scheduler role beside it, in case that is what it waits for.

    Both are built as in vLLM in the main thread, where signals and event loops work; only the rescue is not.
    """
    done = threading.Event()
    rescuers: list[RoleObservation] = []

    def rescue() -> None:
        if not done.wait(patience):
            rescuers.append(site.build("scheduler"))

    thread = threading.Thread(target=rescue, daemon=True)
    thread.start()
    worker = site.build("worker")
    done.set()
    thread.join(patience)
    return worker, rescuers[0] if rescuers else None


def class_answers(connector_class: Any, config: Any) -> dict[str, Raised | None]:
    """What vLLM asks the class without an instance, and what that raised.

    Statistics and Prometheus metrics are left out: what they are given depends on what the connector measured.
    """
    from vllm.config import set_current_vllm_config

    transfer = config.kv_transfer_config
    calls: dict[str, tuple[Any, ...]] = {
        "get_required_kvcache_layout": (config,),
        "requires_piecewise_for_cudagraph": (transfer.kv_connector_extra_config,),
        "supports_sleep_mode": (transfer,),
    }
    answers: dict[str, Raised | None] = {}
    with set_current_vllm_config(config):
        for name, arguments in calls.items():
            method = getattr(connector_class, name, None)
            if method is not None:
                answers[name] = _raised_by(partial(method, *arguments))
    return answers


class Builder(Protocol):
    """Builds a role."""

    def build(self, role: str) -> RoleObservation:
        """Build the role "worker" or "scheduler", here and now."""


class _Site:
    """A configuration and a planned KV cache to build roles in."""

    def __init__(self, connector_class: Any, config: Any, directory: str | None) -> None:
        from vllm.config import set_current_vllm_config

        from kvconform.engine.vllm_engine.configuration import ensure_parallel_state
        from kvconform.engine.vllm_engine.layers import place_layers
        from kvconform.kvcache.build import plan_kv_cache

        ensure_parallel_state(directory)
        self.connector_class = connector_class
        self.config = config
        with set_current_vllm_config(config):
            configs = plan_kv_cache(config, EngineOptions().shape)
        place_layers(config, configs.worker)
        self.kv_cache_configs = {"worker": configs.worker, "scheduler": configs.scheduler}

    def build(self, role: str) -> RoleObservation:
        """Build one role here and now."""
        from vllm.config import set_current_vllm_config
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

        kv_role, cache = KVConnectorRole[role.upper()], self.kv_cache_configs[role]
        with set_current_vllm_config(self.config):
            try:
                made = KVConnectorFactory.create_connector(self.config, kv_role, cache)
            except Exception as error:
                return RoleObservation(role, describe(error), by_keyword=self._by_keyword(kv_role, cache))
            return _inspect(RoleObservation(role), made, kv_role, cache)

    def _by_keyword(self, kv_role: Any, cache: Any) -> bool:
        try:
            made = self.connector_class(vllm_config=self.config, role=kv_role, kv_cache_config=cache)
        except Exception:
            return False
        with contextlib.suppress(Exception):
            made.shutdown()
        return True


def _inspect(seen: RoleObservation, made: Any, kv_role: Any, cache: Any) -> RoleObservation:
    """Look at a fresh instance, then call what must work on one; it is shut down afterwards."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    is_connector = isinstance(made, KVConnectorBase_V1)
    seen = replace(seen, is_connector=is_connector, kind=type(made).__qualname__)
    if not is_connector:
        return seen
    try:
        kept = made._kv_cache_config
        seen = replace(
            seen,
            role_kept=made.role is kv_role,
            kv_cache_config="kept" if kept is cache or kept == cache else "None" if kept is None else "another",
            metadata_bound=bool(made.has_connector_metadata()),
        )
    except AttributeError as error:
        seen = replace(seen, base_missing=describe(error))
    flags = {name: _flag(made, name) for name in FLAGS if hasattr(KVConnectorBase_V1, name)}
    hooks: dict[str, Callable[[], Any]] = {"get_kv_connector_stats": made.get_kv_connector_stats}
    if seen.role == "scheduler":
        hooks["set_xfer_handshake_metadata_pp_aware"] = lambda: made.set_xfer_handshake_metadata_pp_aware({})
    hooks["shutdown"] = made.shutdown
    return replace(seen, flags=flags, hooks={name: _raised_by(call) for name, call in hooks.items()})


def _flag(made: Any, name: str) -> Flag:
    try:
        return Flag(type(getattr(made, name)).__name__)
    except Exception as error:
        return Flag(raised=describe(error))


def _raised_by(call: Callable[[], Any]) -> Raised | None:
    try:
        call()
    except Exception as error:
        return describe(error)
    return None


def describe(error: BaseException) -> Raised:
    """An exception as plain data. pydantic's wrapping of what vLLM's validators raise is taken off."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    _, where = describe_error(error)
    kind, message = type(error).__name__, " ".join(str(error).split())
    if kind == "ValidationError" and "Value error, " in message:
        kind, message = "ValueError", message.partition("Value error, ")[2].partition(" [type=value_error")[0]
    missing = error.name if isinstance(error, AttributeError) and isinstance(error.obj, KVConnectorBase_V1) else None
    in_call = where.endswith("in create_connector")
    return Raised(kind, message[:600], where, in_call, missing or "")


_IMPORTLIB = "<frozen importlib"


def _of_compiled(path: Any) -> bool:
    """Whether a path is where compiled code is kept, by Python or by who compiles more, as numba does."""
    return "__pycache__" in str(path)


@dataclass
class ImportEffects:
    """Side effects while a module is imported, each with the modules on the stack above the innermost import."""

    _seen: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    _active: bool = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While this is open, side effects are noted."""
        sys.addaudithook(self._audit)
        start = threading.Thread.start
        cuda = _cuda_initialised()

        def noted(self_: threading.Thread) -> None:
            self._note(f"started the thread {self_.name}")
            start(self_)

        threading.Thread.start = noted  # type: ignore[method-assign,assignment]
        self._active = True
        try:
            yield
        finally:
            self._active = False
            threading.Thread.start = start  # type: ignore[method-assign]
        if _cuda_initialised() and not cuda:
            self._seen.append(("initialised CUDA", ()))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(path, str) and (set("wax+") & set(mode or "") or (mode is None and flags & 3))
            if writes and not path.startswith(("/dev/", "/proc/")) and not _of_compiled(path):
                self._note(f"wrote the file {path}")
        elif event in ("socket.connect", "socket.bind"):
            self._note(f"{event.partition('.')[2]} of a socket to {arguments[1]!r}")
        elif event in ("subprocess.Popen", "os.fork") or (event == "os.mkdir" and not _of_compiled(arguments[0])):
            self._note(f"{event}({arguments[0] if arguments else ''})")

    def _note(self, what: str) -> None:
        frame = sys._getframe(2)
        if frame.f_code.co_filename.startswith(_IMPORTLIB):
            # Python keeps what it has compiled.
            return
        modules: list[str] = []
        while frame is not None and not frame.f_code.co_filename.startswith(_IMPORTLIB):
            modules.append(str(frame.f_globals.get("__name__", "")))
            frame = frame.f_back  # type: ignore[assignment]
        self._seen.append((what, tuple(modules)))

    def of(self, module: str) -> tuple[str, ...]:
        """What the connector's own package did; what its dependencies do when they are imported is their own affair."""
        package = module if module.startswith("vllm.") else module.partition(".")[0]

        def own(name: str) -> bool:
            return name == package or name.startswith(f"{package}.")

        found = [what for what, modules in self._seen if not modules or any(map(own, modules))]
        return tuple(dict.fromkeys(found))


def _cuda_initialised() -> bool:
    import torch

    return bool(torch.cuda.is_initialized())
