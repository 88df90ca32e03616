"""Small things."""

from __future__ import annotations

import uuid


def random_uuid() -> str:
    """Sixteen hexadecimal digits."""
    return uuid.uuid4().hex[16:]
