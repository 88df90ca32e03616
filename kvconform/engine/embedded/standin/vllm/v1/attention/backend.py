"""Kernels, by name only: there are none here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class AttentionMetadata:
    """What a kernel has to know of a batch."""


class AttentionBackend(ABC):
    """A family of kernels."""

    @staticmethod
    @abstractmethod
    def get_name() -> str:
        """Its name."""

    @classmethod
    def full_cls_name(cls) -> tuple[str, str]:
        """Module and class."""
        return cls.__module__, cls.__qualname__


class AttentionImpl:
    """Kernels of one layer."""

    forward: Any
