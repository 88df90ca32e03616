"""Settings that make a known connector run with nothing else given."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from kvconform.target import Target


@cache
def load_presets() -> Mapping[str, Mapping[str, Any]]:
    """All presets: target id -> settings, whose keys are those of :class:`kvconform.config.RunConfig`."""
    text = (resources.files("kvconform") / "presets.toml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = tomllib.loads(text)["preset"]
    return {target: entry["settings"] for entry in entries for target in entry["targets"]}


def find_preset(target: Target) -> Mapping[str, Any]:
    """The settings for a target; empty when it is not a known connector."""
    return load_presets().get(target.id, {})
