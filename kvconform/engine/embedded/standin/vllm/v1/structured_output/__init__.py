"""Grammars, of which there are none here."""

from __future__ import annotations

from typing import Any


class StructuredOutputManager:
    """Nothing to manage."""

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config
