"""Programs of all families of the suites: their examples, and some that hypothesis draws."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from kvconform.kvcache.shape import DTYPES, LAYOUTS
from kvconform.scenario import identity
from kvconform.scenario.family import Family
from kvconform.scenario.program import Program

MODULES = (
    "asynchronous",
    "failures",
    "finish",
    "hybrid",
    "identity",
    "layouts",
    "observability",
    "order",
    "reset",
    "roles",
    "saving",
    "shutdown",
    "transfer",
    "workers",
)
# Of families that take an argument.
ARGUMENTS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "layouts.layout": tuple((name,) for name in LAYOUTS),
    "layouts.dtype": tuple((name,) for name in DTYPES),
    "order.plain": (("ORDER-02",),),
    "order.model_runner": (("v1", "ORDER-07"), ("v2", "ORDER-10")),
    "failures.failed_loads": (("recompute",), ("fail",)),
    "identity.other_set_up": tuple((name,) for name in identity.SET_UPS),
    "identity.look_alike": tuple((pair,) for pair in identity.LOOK_ALIKES),
}
#: Families whose programs kill processes, depend on time or need what the engine 'embedded' does not have.
LEFT_OUT = {"shutdown.killed", "transfer.drafts"}


def families() -> Iterator[tuple[str, Family]]:
    """Every family of the suites with a name of its own."""
    for module_name in MODULES:
        module = importlib.import_module(f"kvconform.scenario.{module_name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            full = f"{module_name}.{name}"
            if function.__module__ != module.__name__ or function.__annotations__.get("return") != "Family":
                continue
            if name.startswith("_") or full in LEFT_OUT:
                continue
            needs = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
            for arguments in ARGUMENTS.get(full, ((),) if not needs else ()):
                yield f"{full}({', '.join(map(_short, arguments))})", function(*arguments)


def _short(argument: Any) -> str:
    return str(getattr(argument, "what", argument))


def examples(family: Family) -> list[Program]:
    """Its fixed programs."""
    return list(family.examples)


def drawn(family: Family, count: int, seed: int = 0) -> list[Program]:
    """Programs that hypothesis draws for it."""
    found: list[Program] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(program=family.strategy)
    def collect(program: Program) -> None:
        found.append(program)

    collect()
    return found
