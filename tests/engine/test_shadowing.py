"""A function in a hook's place, on classes that do not make it easy."""

from __future__ import annotations

from typing import Any

import pytest

from kvconform.engine.protocol import NotSimulated
from kvconform.engine.shadowing import shadow


class Plain:
    made: list[type] = []  # noqa: RUF012

    def __init_subclass__(cls) -> None:
        cls.made.append(cls)

    def hook(self) -> str:
        return "own"

    def other(self) -> str:
        return self.hook()


class Guarded(Plain):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class Forwarding(Plain):
    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        return getattr(Plain(), name)


class Property(Plain):
    @property
    def hook(self) -> Any:  # type: ignore[override]
        return lambda: "own"


class Slots(Plain):
    __slots__ = ("hook_count",)

    @property
    def hook(self) -> Any:  # type: ignore[override]
        return lambda: "own"


class Final(Property):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclasses")


def replaced() -> str:
    return "shadow"


@pytest.mark.parametrize("cls", [Plain, Guarded, Forwarding, Property, Slots])
def test_the_hook_of_this_instance_alone_is_the_function(cls: type[Any]) -> None:
    instance, bystander = cls(), cls()
    shadow(instance, "hook", replaced)
    assert instance.hook is replaced
    assert instance.hook() == "shadow"
    assert bystander.hook() == "own"
    assert isinstance(instance, cls)
    assert (type(instance).__name__, type(instance).__module__) == (cls.__name__, cls.__module__)
    shadow(instance, "other", replaced)
    assert (instance.hook(), instance.other()) == ("shadow", "shadow")
    assert bystander.other() == "own"


@pytest.mark.parametrize("cls", [Plain, Guarded])
def test_the_class_stays_what_it_is_where_an_attribute_does(cls: type[Any]) -> None:
    instance = cls()
    shadow(instance, "hook", replaced)
    assert type(instance) is cls
    assert instance.other() == "shadow"


def test_one_subclass_serves_all_hooks_of_an_instance() -> None:
    instance = Property()
    Plain.made.clear()
    for hook in ("hook", "other"):
        shadow(instance, hook, replaced)
    assert len(Plain.made) == 1


def test_another_of_the_same_type_has_hooks_of_its_own() -> None:
    instance = Property()
    shadow(instance, "hook", replaced)
    made_by_it = type(instance)()
    assert made_by_it.hook() == "own"
    shadow(made_by_it, "hook", lambda: "another")
    assert (instance.hook(), made_by_it.hook()) == ("shadow", "another")


def test_what_cannot_be_seen_is_not_held_against_anybody() -> None:
    with pytest.raises(NotSimulated, match=r"calls of Final\.hook cannot be seen"):
        shadow(Final(), "hook", replaced)
