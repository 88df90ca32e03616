"""Faults of a store that does not lie in files below ``{dir}``: the hook by which a connector offers its own.

The kit breaks files by itself. Where KV is kept in a server, in another process or in memory, the configuration names a
class (``faults = "my_package.testing:MyFaults"``), and the kit calls that one instead. The class needs nothing of the
kit's; it has the shape of :class:`StoreFaults`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from kvconform.errors import UsageError
from kvconform.target import Target, parse_target

Fault = Literal["missing", "truncated", "failing", "silent", "unwritable"]

#: What a store can suffer: entries that are gone; entries that are cut short; entries that are there, but reading them
#: ends with an error; entries whose reading is never answered; and writes that fail.
FAULTS: tuple[Fault, ...] = get_args(Fault)


class FaultsFailed(Exception):
    """The vendor's class raised, or answered with something that makes no sense: nothing is known of the connector."""


@dataclass(frozen=True)
class Setting:
    """What a scenario gives to the vendor's class.

    ``directory`` is what ``{dir}`` stands for in this scenario, ``extra_config`` is the kv_connector_extra_config with
    all placeholders filled in, and ``connectors`` gives the connector objects that live at the moment: of each engine
    the scheduler role's and those of its workers.
    """

    directory: Path
    extra_config: Mapping[str, Any]
    connectors: Callable[[], tuple[Any, ...]]


class StoreFaults(Protocol):
    """What the kit calls, in the connector's process; one object for each scenario, made before its first fault.

    It is constructed with a :class:`Setting`.
    """

    #: Which of :data:`FAULTS` it can produce, at least one.
    faults: Collection[str]

    def damage(self, fault: Fault, every: int) -> int:
        """Break every n-th entry of the store, or with "unwritable" refuse all writes from here on.

        Returns:
            How many entries are broken, or for "unwritable" how many there are: 0 means that nothing happened, and
            then nothing is said about the connector.
        """

    def mend(self) -> None:
        """End "failing", "silent" and "unwritable"; what is gone stays so. Called after every scenario with a fault."""


def find_faults(spec: str, directory: Path) -> Target:
    """Where the class is; checked as far as that is possible without importing it.

    Raises:
        UsageError: malformed, no such module, file or class.
    """
    if spec.startswith("vllm:") or not spec.rpartition(":")[0]:
        raise UsageError(
            f"faults = '{spec}' does not name a class: expected package.module:Class or path/to/file.py:Class."
        )
    try:
        return parse_target(spec, directory)
    except UsageError as error:
        raise UsageError(f"faults = {error}") from error


def load_faults(spec: str, directory: Path) -> Callable[[Setting], StoreFaults]:
    """Import the class.

    Args:
        spec: the value of the key ``faults``.
        directory: as for :func:`kvconform.target.parse_target`.

    Raises:
        UsageError: it cannot be imported, or is not of the shape of :class:`StoreFaults`.
    """
    target = find_faults(spec, directory)
    assert target.module_path is not None
    if target.search_path is not None and str(target.search_path) not in sys.path:
        sys.path.insert(0, str(target.search_path))
    try:
        found = getattr(importlib.import_module(target.module_path), target.class_name)
    except (Exception, SystemExit) as error:
        raise UsageError(f"faults = '{spec}': it cannot be imported: {type(error).__name__}: {error}.") from error
    lacking = [name for name in ("damage", "mend") if not callable(getattr(found, name, None))]
    if not isinstance(found, type) or lacking:
        what = f"has no {' and no '.join(lacking)}" if isinstance(found, type) else "is no class"
        raise UsageError(
            f"faults = '{spec}': {target.class_name} {what}; expected is a class with 'faults', 'damage' and 'mend', "
            "see 'Faults of your own store' in docs/guide.md."
        )
    named = getattr(found, "faults", None)
    kinds = [] if isinstance(named, str) or not isinstance(named, Collection) else list(named)
    if not kinds or any(kind not in FAULTS for kind in kinds):
        raise UsageError(
            f"faults = '{spec}': {target.class_name}.faults is {named!r}, but expected is a list of one or more of "
            f"{', '.join(FAULTS)}."
        )
    return found
