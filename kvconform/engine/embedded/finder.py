"""Modules under vLLM's name that come from the stand-in.

For processes that are about to load a connector and in which vLLM is not imported: they are forked for that and end
afterwards. Nothing of a vLLM that may be installed is imported once the stand-in is in its place.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from kvconform.api.runtime import EMBEDDED_WORDS, STANDIN_RELEASE, prepare
from kvconform.engine.embedded.coverage import uncovered_attributes, uncovered_modules, uncovered_names
from kvconform.engine.protocol import NotSimulated

STANDIN = Path(__file__).with_name("standin")
#: The release that the stand-in follows.
RELEASE = STANDIN_RELEASE
INSTALL = f"pip install vllm=={RELEASE}"


class NotCoveredError(ImportError, NotSimulated):
    """The connector imports something of vLLM that the stand-in does not have; no defect of the connector."""


def _sentence(what: str) -> str:
    return (
        f"{what} is not covered by kvconform's stand-in for vLLM ({EMBEDDED_WORDS}); install the real one: {INSTALL} "
        "(without a GPU, see 'Installing vLLM' in kvconform's README)"
    )


class StandInFinder(MetaPathFinder):
    """Finds ``vllm`` and everything below it in the stand-in."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module of the stand-in; None for a name that vLLM does not have.

        Raises:
            NotCoveredError: vLLM has it, the stand-in has not.
        """
        if fullname != "vllm" and not fullname.startswith("vllm."):
            return None
        place = STANDIN.joinpath(*fullname.split("."))
        if (place / "__init__.py").is_file():
            loader = StandInLoader(fullname, str(place / "__init__.py"))
            return importlib.util.spec_from_file_location(
                fullname, place / "__init__.py", loader=loader, submodule_search_locations=[str(place)]
            )
        file = place.with_suffix(".py")
        if file.is_file():
            return importlib.util.spec_from_file_location(fullname, file, loader=StandInLoader(fullname, str(file)))
        parent, _, name = fullname.rpartition(".")
        if name not in uncovered_modules(parent):
            # Nor has vLLM: import says so in its own words.
            return None
        raise NotCoveredError(_sentence(f"The module {fullname}"), name=fullname)


class StandInLoader(SourceFileLoader):
    """Loads a module of the stand-in and makes it say so when it is asked for what it does not have."""

    def exec_module(self, module: ModuleType) -> None:
        """Run it, then mark what vLLM's module and its classes have beyond it."""
        super().exec_module(module)
        name = module.__name__
        own = vars(module).get("__getattr__")
        missing = uncovered_names(name)

        def ask(attribute: str) -> Any:
            if own is not None:
                try:
                    return own(attribute)
                except AttributeError:
                    pass
            if attribute in missing:
                raise NotCoveredError(_sentence(f"{name}.{attribute}"), name=name)
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

        vars(module)["__getattr__"] = ask
        for cls in list(vars(module).values()):
            if isinstance(cls, type) and cls.__module__ == name:
                _mark(cls, uncovered_attributes(f"{name}.{cls.__qualname__}"))


def _mark(cls: type, missing: frozenset[str]) -> None:
    """Let instances say that an attribute is not simulated, if vLLM's have it."""
    if not missing or "__getattr__" in vars(cls):
        return

    def ask(self: Any, attribute: str) -> Any:
        if attribute in missing:
            raise NotSimulated(_sentence(f"{cls.__module__}.{cls.__qualname__}.{attribute}"))
        raise AttributeError(f"{cls.__name__!r} object has no attribute {attribute!r}", name=attribute, obj=self)

    cls.__getattr__ = ask  # type: ignore[attr-defined]


@cache
def _finder() -> StandInFinder:
    return StandInFinder()


def install() -> None:
    """Put the stand-in in vLLM's place, for the life of this process or until :func:`remove`.

    Raises:
        RuntimeError: vLLM is imported already.
    """
    if installed():
        return
    if "vllm" in sys.modules:
        raise RuntimeError("vLLM is imported in this process: the stand-in cannot take its place")
    sys.meta_path.insert(0, _finder())


def remove() -> None:
    """Take it away again, with every module of it."""
    if installed():
        sys.meta_path.remove(_finder())
        for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
            del sys.modules[name]
        prepare.cache_clear()


def installed() -> bool:
    """Whether the stand-in is in vLLM's place."""
    return _finder() in sys.meta_path
