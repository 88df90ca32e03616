"""Digests of settings."""

from __future__ import annotations

import hashlib
import json


def hash_factors(items: dict[str, object]) -> str:
    """SHA-256 of the settings as JSON, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()
