"""Measuring which lines of a connector run: the part that works in the connector's own process.

Started by an environment variable that names a folder, because the process is forked from one that knows nothing of
connectors. Data are saved after every scenario: the process is killed in the end, and may die before.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from kvconform.target import Target

#: Names the folder where data go; not set where nothing is measured.
VARIABLE = "KVCONFORM_COVERAGE"
#: Of these packages only the connector's own module is measured: the rest is not its vendor's.
_FOREIGN = ("vllm", "kvconform", "torch")
_BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"


def folder_name(target_id: str) -> str:
    """A folder for the data of one connector."""
    return "".join(character if character.isalnum() else "-" for character in target_id)


@dataclass
class Measuring:
    """coverage.py at work in this process."""

    folder: Path
    measurement: Any
    #: Patterns of the files that are measured.
    files: tuple[str, ...]

    def loaded(self, connector: type[Any]) -> None:
        """Note where the hooks of the connector are, once it can be known."""
        # Code that a connector inherits from somebody else is not measured, so nothing can be said about it.
        own = [hook for hook in hooks_of(connector) if any(fnmatch(hook["file"] or "", one) for one in self.files)]
        facts = json.dumps({"module": inspect.getsourcefile(connector), "hooks": own})
        (self.folder / f"hooks-{os.getpid()}.json").write_text(facts, encoding="utf-8")
        self.measurement.save()

    def enter(self, context: str) -> None:
        """What runs from now on runs for a chapter."""
        self.measurement.switch_context(context)

    def save(self) -> None:
        """Write what was measured so far."""
        self.measurement.save()


def start(target: Target) -> Measuring | None:
    """Begin to measure, before the connector is loaded; None if nobody asked for it."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return None
    import coverage

    folder = Path(asked) / folder_name(target.id)
    folder.mkdir(parents=True, exist_ok=True)
    files = _files(target)
    measurement = coverage.Coverage(
        data_file=str(folder / "data"), data_suffix=True, config_file=False, include=files, messages=False
    )
    measurement.start()
    return Measuring(folder, measurement, tuple(files))


def _files(target: Target) -> list[str]:
    """Patterns of the connector's own source files: its package, or its module where the package is another's."""
    if target.module_path is None:
        return ["*/vllm/distributed/kv_transfer/*"]
    top = target.module_path.partition(".")[0]
    if target.search_path is not None and str(target.search_path) not in sys.path:
        sys.path.insert(0, str(target.search_path))  # as loading it will do in a moment
    found = importlib.util.find_spec(target.module_path if top in _FOREIGN else top)
    if found is None:
        return []
    if found.submodule_search_locations and top not in _FOREIGN:
        return [f"{place}/*" for place in found.submodule_search_locations]
    return [found.origin] if found.origin is not None else []


def hooks_of(connector: type[Any]) -> list[dict[str, Any]]:
    """The hooks that the connector has code of its own for: name, file, and first and last line."""
    from kvconform.engine.instrument import SCHEDULER_HOOKS, WORKER_HOOKS

    found = []
    for hook in dict.fromkeys((*SCHEDULER_HOOKS, *WORKER_HOOKS)):
        owner = next((cls for cls in connector.__mro__ if hook in vars(cls)), None)
        if owner is None or owner.__module__ == _BASE:
            continue
        function = inspect.unwrap(getattr(owner, hook))
        try:
            lines, first = inspect.getsourcelines(function)
            file = inspect.getsourcefile(function)
        except (OSError, TypeError):
            continue
        found.append({"name": hook, "file": file, "first": first, "last": first + len(lines) - 1})
    return found
