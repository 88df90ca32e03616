"""The mutation runner: what it changes, under which names, and that living functions get the change."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mutate import judge, read_known
from operators import Mutation, mutations
from trial import exchange

SOURCE = '''\
"""A module."""
from functools import lru_cache

LIMIT = 3

def check(number, names):
    """Says whether."""
    for name in names:
        if number > LIMIT and name == "bad":
            yield f"{name} of 7"

def outer(limit):
    def inner():
        return limit
    return inner

@lru_cache
def twice(number):
    return number * 2
'''


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    file = tmp_path / "mutated_for_tests.py"
    file.write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutated_for_tests", file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def changes(module: ModuleType) -> dict[tuple[str, str], Mutation]:
    assert module.__file__ is not None
    return {mutation.key[1:]: mutation for mutation in mutations(Path(module.__file__), "m")}


def test_what_decides_is_changed_and_what_is_written_for_readers_is_not(module: ModuleType) -> None:
    keys = set(changes(module))
    assert ("number > LIMIT", "number >= LIMIT") in keys
    assert ("number > LIMIT and name == 'bad'", "number > LIMIT or name == 'bad'") in keys
    assert ("'bad'", "'not_bad'") in keys
    assert not [before for before, _ in keys if before in ("3", "7", "'A module.'", "'Says whether.'")]


def test_names_hold_no_line_numbers_and_are_unique(module: ModuleType) -> None:
    assert module.__file__ is not None
    file = Path(module.__file__)
    keys = [mutation.key for mutation in mutations(file, "m")]
    assert len(set(keys)) == len(keys)
    file.write_text("\n\n" + SOURCE, encoding="utf-8")
    assert [mutation.key for mutation in mutations(file, "m")] == keys


def test_living_function_gets_the_change(module: ModuleType) -> None:
    assert module.__file__ is not None
    held = module.check
    assert list(held(3, ["bad"])) == []
    exchange(changes(module)["number > LIMIT", "number >= LIMIT"], Path(module.__file__))
    assert list(held(3, ["bad"])) == ["bad of 7"]


def test_what_a_function_remembers_from_before_the_change_is_forgotten(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.__file__ is not None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert module.twice(8) == 16
    exchange(changes(module)["number * 2", "number // 2"], Path(module.__file__))
    assert module.twice(8) == 4


def test_function_that_needs_fewer_names_afterwards_gets_the_change_too(module: ModuleType) -> None:
    assert module.__file__ is not None
    inner = module.outer(5)
    exchange(changes(module)["return limit", "return None"], Path(module.__file__))
    assert inner() is None


def test_every_mutation_compiles(module: ModuleType) -> None:
    source = ast.parse(SOURCE)
    for mutation in changes(module).values():
        for beside in (False, True):
            compile(mutation.applied(source, beside=beside), "m.py", "exec")


def test_more_or_fewer_survivors_than_allowed_and_stale_entries_are_told(tmp_path: Path) -> None:
    file = tmp_path / "survivors.toml"
    entry = '[[equivalent]]\nwhere = "m.f"\nbefore = "a"\nafter = "b"\nreason = "because"\n'
    file.write_text(entry + "[open]\nm = 1\n", encoding="utf-8")
    known = read_known(file)
    equivalent, survivor = (("m.f", "a", "b"), 1, "survived"), (("m.f", "c", "d"), 2, "unreached")
    figures, complaints = judge({"m": [equivalent, survivor]}, known)
    assert complaints == []
    assert (figures["m"].tried, figures["m"].equivalent, len(figures["m"].survivors)) == (2, 1, 1)
    assert "survive only" in judge({"m": [equivalent]}, known)[1][0]
    assert "2 survive" in judge({"m": [equivalent, survivor, survivor]}, known)[1][0]
    assert "allows 0" in judge({"n": [survivor]}, known)[1][0]
    assert "no such mutation" in judge({"m": [survivor]}, known)[1][0]
    assert "although" in judge({"m": [(equivalent[0], 1, "killed"), survivor]}, known)[1][0]
    assert "could not be tried" in judge({"m": [equivalent, survivor, (("m.f", "e", "f"), 3, "untried")]}, known)[1][0]
