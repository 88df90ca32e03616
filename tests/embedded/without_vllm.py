"""pytest as it runs where vLLM is not installed: its own process finds neither the package nor its metadata."""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.machinery import PathFinder
from typing import Any

import pytest


class Blind:
    """Finds everything but vLLM; no function, so that it becomes nobody's method."""

    def __init__(self, find: Any) -> None:
        self._find = find

    def __call__(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        return None if fullname == "vllm" else self._find(fullname, path, target)


def main() -> int:
    """As the command pytest."""
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "vllm":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    importlib.metadata.version = version
    PathFinder.find_spec = Blind(PathFinder.find_spec)  # type: ignore[method-assign]
    return int(pytest.main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
