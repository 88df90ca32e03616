"""A list that says no to changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn


def _refuse() -> NoReturn:
    raise TypeError("token ids are appended through the request, which keeps its lists and hashes in step")


class ConstantList(Sequence[Any]):
    """A view of a list."""

    def __init__(self, x: list[Any]) -> None:
        self._x = x

    def append(self, item: Any) -> None:
        """Not here."""
        _refuse()

    def extend(self, item: Any) -> None:
        """Not here."""
        _refuse()

    def insert(self, item: Any) -> None:
        """Not here."""
        _refuse()

    def pop(self, item: Any) -> None:
        """Not here."""
        _refuse()

    def remove(self, item: Any) -> None:
        """Not here."""
        _refuse()

    def clear(self) -> None:
        """Not here."""
        _refuse()

    def __setitem__(self, item: Any, value: Any) -> None:
        _refuse()

    def __delitem__(self, item: Any) -> None:
        _refuse()

    def __getitem__(self, item: Any) -> Any:
        return self._x[item]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._x)

    def __len__(self) -> int:
        return len(self._x)

    def __repr__(self) -> str:
        return f"ConstantList({self._x})"

    def copy(self) -> list[Any]:
        """A list of one's own."""
        return list(self._x)
