"""Defects of stores that find what was saved only a while later."""

from __future__ import annotations

from background_store import PublishesLater
from transfer import IgnoresKernelBlocks


class PublishesWrongBlocksLater(PublishesLater, IgnoresKernelBlocks):
    """Takes block ids for rows of the tensor (R21); a reload right after a save would load nothing, right or wrong."""
