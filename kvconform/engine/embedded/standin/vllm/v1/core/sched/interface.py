"""Pausing."""

from __future__ import annotations

import enum


class PauseState(enum.IntEnum):
    """Everything runs; nothing new is admitted; nothing is scheduled."""

    UNPAUSED = 0
    PAUSED_NEW = 1
    PAUSED_ALL = 2
