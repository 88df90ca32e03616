"""Plain data that is made by the thousand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(kind: type[T]) -> type[T]:
    """A dataclass that is frozen for type checkers alone.

    An engine step makes forty, and setting fields past the lock of a class that is frozen at run time takes three times
    as long.
    """
    return dataclass(unsafe_hash=True)(kind)
