"""One frozen run configuration from the command line, a TOML file, ``pyproject.toml``, a preset and defaults.

For every key the strongest source that names it wins, and its value is taken whole (tables are not merged):
command line, then ``--kvconform-config=FILE``, then ``[tool.kvconform]``, then the preset of the target, then the
default. Imports neither torch nor vLLM.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import math
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from kvconform.api import standin_in_place, vllm_version
from kvconform.errors import UsageError
from kvconform.kvcache.shape import BLOCK_SIZE, LARGEST_CHUNK
from kvconform.placeholders import (
    ROUTER_NAME,
    ROUTER_PLACEHOLDERS,
    check_placeholders,
    has_placeholder,
    placeholders,
    strings_in,
)
from kvconform.presets import find_preset
from kvconform.rules.model import CAPABILITIES as RULE_CAPABILITIES
from kvconform.target import Target

Role = Literal["kv_both", "kv_producer", "kv_consumer"]
Engine = Literal["auto", "vllm", "embedded"]
Device = Literal["auto", "cpu", "cuda"]
Budget = Literal["quick", "full"]

ROLES: tuple[str, ...] = get_args(Role)
ENGINES: tuple[str, ...] = get_args(Engine)
DEVICES: tuple[str, ...] = get_args(Device)
BUDGETS: tuple[str, ...] = get_args(Budget)

#: What a connector can declare. The last two say that it does not transfer true bytes, by design.
CAPABILITIES: tuple[str, ...] = (*RULE_CAPABILITIES, "dummy-fill", "lossy")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. Field names are the keys of the TOML forms."""

    #: SPECs of the connectors to test, see :mod:`kvconform.target`.
    connector: tuple[str, ...] = ()
    #: ``kv_role`` of vLLM's KVTransferConfig.
    kv_role: Role = "kv_both"
    #: ``kv_connector_extra_config`` of vLLM's KVTransferConfig; strings may hold :mod:`kvconform.placeholders`.
    kv_connector_extra_config: Mapping[str, Any] = field(default_factory=dict)
    #: Environment variables, set before vLLM is imported and unset after the run. Taken literally.
    env: Mapping[str, str] = field(default_factory=dict)
    #: Environment variables of every engine alone, set while it starts; strings may hold placeholders, and ports are
    #: others for each engine.
    engine_env: Mapping[str, str] = field(default_factory=dict)
    #: What a router adds to a request for the producer, and to what the producer returned for the consumer; strings may
    #: hold placeholders of their own, see :mod:`kvconform.engine.router`.
    producer_params: Mapping[str, Any] = field(default_factory=dict)
    consumer_params: Mapping[str, Any] = field(default_factory=dict)
    #: What the vendor claims, out of :data:`CAPABILITIES`.
    capabilities: tuple[str, ...] = ()
    engine: Engine = "auto"
    device: Device = "auto"
    #: "quick" for every commit, "full" for a release.
    budget: Budget = "quick"
    seed: int = 0
    #: Seconds that one scenario may take before the connector's process is killed.
    timeout: float = 60.0
    #: Seconds after which the connector, as configured here, gives up a peer that does not answer: the longest of its
    #: leases and time-outs. 0 if that is not known; then nothing is said about them.
    peer_timeout: float = 0.0
    #: Seconds after which a load or a save of the connector that has not ended counts as one that never will.
    transfer_timeout: float = 10.0
    #: Seconds until what the connector stores in the background can be found, waited before it has to be found again;
    #: None to find out by trial, see :mod:`kvconform.trials.store_delay`.
    store_delay: float | None = None
    #: Tokens of the chunks in which the connector keeps KV; None to find out by trial, see
    #: :mod:`kvconform.trials.chunk_size`.
    chunk_size: int | None = None
    #: Whether each scenario's model has a name of its own, so that a store that outlives it is none of the next one's;
    #: None to find out by trial, see :mod:`kvconform.trials.outliving`.
    fresh_model_names: bool | None = None
    #: SPEC of a class that breaks the connector's store, see :mod:`kvconform.faults`; empty if its files can be broken.
    faults: str = ""
    #: File of known failures, see :mod:`kvconform.baseline`; empty for none.
    baseline: str = ""
    #: Target id of the preset that filled in keys; None when none did.
    preset: str | None = None
    #: Keys that the user gave, by any of the three ways.
    explicit: frozenset[str] = frozenset()
    #: ``--kvconform-config`` as it was typed, for the command that reproduces a failure.
    config_file: str | None = None
    #: Folder that file paths among ``connector`` are relative to; None for the folder where pytest was started.
    connector_directory: Path | None = None

    def for_target(self, target: Target) -> RunConfig:
        """This configuration with the preset of ``target`` under what was given, by the user or to the constructor."""
        settings = find_preset(target)
        given = self.explicit | {each.name for each in fields(RunConfig) if getattr(self, each.name) != _default(each)}
        if "kv_connector_extra_config" in given:
            # The preset's time-outs are those of its own settings.
            given |= _TIMES
        unset = {key: value for key, value in settings.items() if key not in given}
        if not unset:
            return self
        return replace(self, **_Reader(f"the preset for {target.id}").values(unset), preset=target.id)

    @property
    def resolved_engine(self) -> str:
        """The engine with "auto" decided: vLLM's own where it is installed."""
        if self.engine != "auto":
            return self.engine
        return "embedded" if standin_in_place() or vllm_version() is None else "vllm"

    @property
    def resolved_device(self) -> Literal["cpu", "cuda"]:
        """The device with "auto" decided: CUDA where there is an NVIDIA GPU and a torch that was built for it."""
        return _detect_device() if self.device == "auto" else self.device


#: What a preset says of the connector as the preset's own ``kv_connector_extra_config`` sets it up.
_TIMES = frozenset({"peer_timeout", "transfer_timeout", "store_delay"})


def _default(of: Field[Any]) -> Any:
    return of.default if of.default_factory is MISSING else of.default_factory()


#: Keys of the TOML forms.
KEYS: tuple[str, ...] = tuple(
    f.name for f in fields(RunConfig) if f.name not in ("preset", "explicit", "config_file", "connector_directory")
)


def read_run_config(options: Mapping[str, Any], config_file: Path | None, pyproject: Path | None) -> RunConfig:
    """Merge the three ways in which a user can say something.

    Args:
        options: keys and values of the command line; None and empty values count as not given.
        config_file: ``--kvconform-config``.
        pyproject: the ``pyproject.toml`` of the project under test; it need not exist, nor have ``[tool.kvconform]``.

    Raises:
        UsageError: unreadable file, unknown key, wrong type or value, unknown placeholder.
    """
    sources: list[tuple[Path | None, dict[str, Any]]] = []
    if pyproject is not None and pyproject.is_file():
        table = _load_toml(pyproject, "").get("tool", {}).get("kvconform", {})
        sources.append((pyproject.parent, _Reader(f"[tool.kvconform] of {pyproject}").values(table)))
    if config_file is not None:
        table = _load_toml(config_file, "--kvconform-config=")
        sources.append((config_file.parent, _Reader(str(config_file)).values(table)))
    given = {key: value for key, value in options.items() if value not in (None, [], ())}
    sources.append((None, _Reader("the command line").values(given)))

    for folder, values in sources:
        if folder is not None and values.get("baseline"):
            values["baseline"] = os.path.normpath(folder / values["baseline"])
        if folder is not None and "/" in values.get("faults", ""):
            values["faults"] = os.path.normpath(folder / values["faults"])
    merged = {key: value for _, values in sources for key, value in values.items()}
    limit = merged.get("timeout", RunConfig.timeout)
    place = config_file or pyproject or "the command line"
    if merged.get("transfer_timeout", 0.0) > limit / 2:
        raise UsageError(
            f"{place}: transfer_timeout = {merged['transfer_timeout']:g} s, but a scenario is ended after timeout = "
            f"{limit:g} s: timeout must be at least twice as long."
        )
    if merged.get("store_delay", 0.0) > limit / 10:
        raise UsageError(
            f"{place}: store_delay = {merged['store_delay']:g} s, which a scenario waits up to seven times, but it is "
            f"ended after timeout = {limit:g} s: timeout must be at least ten times as long."
        )
    known = {f"producer:{name}" for name in merged.get("engine_env", {})} | {"transfer", "producer"}
    for key in ("producer_params", "consumer_params"):
        for name in sorted(placeholders(merged.get(key, {})) - known):
            raise UsageError(
                f"{place}: {key} asks for {{{name}}}, but engine_env sets no {name.partition(':')[2]}: a producer's "
                "variable has to be one that each engine has of its own."
            )
    directory = next((folder for folder, values in reversed(sources) if "connector" in values), None)
    return RunConfig(
        **merged,
        config_file=None if config_file is None else str(config_file),
        explicit=frozenset(merged),
        connector_directory=directory,
    )


def _load_toml(path: Path, option: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{option}{path}: there is no such file; give the path of a TOML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option}{path}: cannot be read: {error}; give the path of a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{option}{path} is not valid TOML: {error}.") from error


class _Reader:
    """Checks values of one source; every message begins with where the value stands."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._checks: dict[str, Callable[[str, Any], Any]] = {
            "connector": self._connectors,
            "kv_role": lambda key, value: self._choice(key, value, ROLES),
            "kv_connector_extra_config": self._extra_config,
            "env": self._env,
            "engine_env": self._engine_env,
            "producer_params": self._params,
            "consumer_params": self._params,
            "capabilities": self._capabilities,
            "engine": lambda key, value: self._choice(key, value, ENGINES),
            "device": lambda key, value: self._choice(key, value, DEVICES),
            "budget": lambda key, value: self._choice(key, value, BUDGETS),
            "seed": self._seed,
            "timeout": self._timeout,
            "peer_timeout": self._timeout,
            "transfer_timeout": self._timeout,
            "store_delay": self._delay,
            "chunk_size": self._chunk_size,
            "fresh_model_names": self._truth,
            "faults": self._faults,
            "baseline": self._path,
        }

    def values(self, table: Any) -> dict[str, Any]:
        if not isinstance(table, Mapping):
            raise UsageError(f"{self._source}: expected a table with the keys {', '.join(KEYS)}.")
        result = {}
        for key, value in table.items():
            if key not in self._checks:
                hint = _hint(key, KEYS)
                raise UsageError(f"{self._source}: unknown key '{key}'; {hint}the keys are {', '.join(KEYS)}.")
            result[key] = self._checks[key](key, value)
        return result

    def _wrong(self, key: str, value: Any, expected: str) -> UsageError:
        return UsageError(f"{self._source}: {key} = {value!r}, but expected is {expected}.")

    def _choice(self, key: str, value: Any, choices: tuple[str, ...]) -> str:
        if value not in choices:
            raise self._wrong(key, value, f"one of {', '.join(choices)}")
        return str(value)

    def _strings(self, key: str, value: Any, what: str) -> tuple[str, ...]:
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
            raise self._wrong(key, value, what)
        return tuple(dict.fromkeys(entries))

    def _connectors(self, key: str, value: Any) -> tuple[str, ...]:
        specs = self._strings(key, value, 'a string such as "my.module:MyConnector", or a list of them')
        if not all(specs):
            raise self._wrong(key, value, 'a string such as "my.module:MyConnector", or a list of them')
        return specs

    def _capabilities(self, key: str, value: Any) -> tuple[str, ...]:
        names = self._strings(key, value, 'a list of names such as ["sync-load"]')
        for name in names:
            if name not in CAPABILITIES:
                hint = _hint(name, CAPABILITIES)
                raise UsageError(
                    f"{self._source}: unknown capability '{name}'; {hint}the capabilities are "
                    f"{', '.join(CAPABILITIES)}."
                )
        return names

    def _seed(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(key, value, "a whole number that is not negative")
        return value

    def _timeout(self, key: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise self._wrong(key, value, "a number of seconds above 0")
        return float(value)

    def _delay(self, key: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise self._wrong(key, value, "a number of seconds, 0 or more")
        return float(value)

    def _chunk_size(self, key: str, value: Any) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value % BLOCK_SIZE or not 0 < value <= LARGEST_CHUNK:
            raise self._wrong(key, value, f"a number of tokens: a multiple of {BLOCK_SIZE}, {LARGEST_CHUNK} at most")
        return int(value)

    def _truth(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def _path(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise self._wrong(key, value, "the path of a file")
        return value

    def _faults(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise self._wrong(key, value, 'a string such as "my_package.testing:MyFaults"')
        return value

    def _extra_config(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "a table, as vLLM's --kv-transfer-config takes it")
        for place, text in strings_in(value, key):
            check_placeholders(f"{self._source}: {place}", text)
        return dict(value)

    def _params(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "a table, as a router puts it into kv_transfer_params")
        for place, text in strings_in(value, key):
            check_placeholders(f"{self._source}: {place}", text, ROUTER_NAME, ROUTER_PLACEHOLDERS)
        return dict(value)

    def _variables(self, key: str, value: Any) -> dict[str, str]:
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "a table of environment variables")
        for name, text in value.items():
            if not isinstance(text, str):
                raise self._wrong(f"{key}.{name}", text, f'a string: write {name} = "{text}"')
        return dict(value)

    def _env(self, key: str, value: Any) -> dict[str, str]:
        variables = self._variables(key, value)
        for name, text in variables.items():
            if has_placeholder(text):
                raise UsageError(
                    f"{self._source}: {key}.{name} = {text!r} has a placeholder, but the environment is set once, "
                    "before any scenario has a directory or a port: use it in engine_env, or in "
                    "kv_connector_extra_config."
                )
        return variables

    def _engine_env(self, key: str, value: Any) -> dict[str, str]:
        variables = self._variables(key, value)
        for name, text in variables.items():
            check_placeholders(f"{self._source}: {key}.{name}", text)
        return variables


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.replace("_", "-"), list(known), n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'? " if close else ""


@cache
def _detect_device() -> Literal["cpu", "cuda"]:
    # torch itself must not be imported here, so its distribution's version has to tell (2.13.0+cpu is a CPU build).
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "cpu"
    return "cuda" if os.path.exists("/dev/nvidiactl") and "+cpu" not in torch_version else "cpu"  # noqa: PTH110
