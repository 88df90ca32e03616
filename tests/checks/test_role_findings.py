"""Copies, comparisons and JSON: the plain functions under the role checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from kvconform.engine.snapshot import differences, plain
from kvconform.engine.vllm_engine.role_watch import not_json


@dataclass
class Plan:
    loads: list[int] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    names: dict[str, int] = field(default_factory=dict)
    inner: Any = None


def changed(before: Any, after: Any, **options: Any) -> list[str]:
    return list(differences(plain(before), plain(after), "plan", **options))


def test_copy_does_not_follow_the_original() -> None:
    plan = Plan([1], {"a"}, {"x": 1}, Plan())
    copy = plain(plan)
    plan.loads.append(2)
    plan.inner.names["y"] = 2
    assert list(differences(copy, plain(plan), "plan")) == [
        "plan.loads: 1 entries became 2",
        "plan.inner.names['y'] is new",
    ]


def test_equal_objects_have_no_differences() -> None:
    assert changed(Plan([1], {"a"}, {"x": 1}), Plan([1], {"a"}, {"x": 1})) == []


def test_each_kind_of_change_is_named() -> None:
    assert changed(Plan([1]), Plan([2])) == ["plan.loads[0]: 1 became 2"]
    assert changed(Plan(done={"a"}), Plan(done={"b"})) == ["plan.done: lost 'a' gained 'b'"]
    assert changed(Plan(names={"x": 1}), Plan()) == ["plan.names['x'] is gone"]
    assert changed(Plan(inner=[1]), Plan(inner=None)) == ["plan.inner: [1] became None"]


def test_growth_can_be_passed_over() -> None:
    before, after = Plan([1], {"a"}, {"x": 1}), Plan([1, 2], {"a", "b"}, {"x": 1, "y": 2})
    assert changed(before, after, growth=False) == []
    assert len(changed(before, after)) == 3
    assert changed(after, before, growth=False) != []


def test_cycles_and_slots_can_be_copied() -> None:
    class Slotted:
        __slots__ = ("value",)

    one, other = Slotted(), Slotted()
    one.value, other.value = 1, 2
    assert changed(one, other) == ["plan.value: 1 became 2"]
    plan = Plan()
    plan.inner = plan
    assert changed(plan, plan) == []


def test_tensors_are_compared_by_content() -> None:
    torch = pytest.importorskip("torch")
    assert changed(torch.zeros(3), torch.zeros(3)) == []
    assert len(changed(torch.zeros(3), torch.ones(3))) == 1


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"a": [1, 2.5, None, True, "x"], "b": {"c": (1, [2])}},
        {"big": (1 << 64) - 1, "negative": -(1 << 63)},
    ],
)
def test_json_values_are_taken(params: Any) -> None:
    assert list(not_json(params)) == []


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"a": UUID(int=1)}, "kv_transfer_params['a'] is of type uuid.UUID"),
        ({"a": b"x"}, "is of type bytes"),
        ({"a": {1, 2}}, "is of type set"),
        ({"a": Colour.RED}, "Colour"),
        ({"a": [{"b": {1: 2}}]}, "kv_transfer_params['a'][0]['b'] has the key 1 of type int"),
        ({"a": 1 << 64}, "an int of more than 64 bits"),
        ({"a": float("nan")}, "is nan"),
        ([1], "kv_transfer_params is of type list, not a dictionary"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(params: Any, words: str) -> None:
    (problem,) = not_json(params)
    assert words in problem
