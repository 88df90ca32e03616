"""LOAD, MATCH and SAVE on a full store: which prompts are offered, in programs that differ in what was promised.

A single miss is legal. What counts is that the newest prompts are never found any more, only because of what was
promised before, or because the store is full.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvconform.checks.model import Examination, Finding
from kvconform.engine.events import Event

# Such a finding is about a whole program, compared with another one.
_WHOLE = Event(0, 0)
_EXPECTED = {
    "SAVE-15": "a full store makes room for what comes, from entries that nobody needs",
    "MATCH-09": "an answer that no allocation followed leaves nothing behind, once its request has ended",
    "LOAD-10": "what was pinned for a load is given back, whether its request lives on or leaves",
}


def _offers(examination: Examination, prefix: str) -> dict[str, int]:
    """What was offered for the requests whose ids begin so; a clean examination travels without its history."""
    return {request: tokens for request, tokens in examination.offered.items() if request.startswith(prefix)}


def keeps_newest(examination: Examination) -> bool:
    """Whether any of the newest prompts was found again."""
    return any(_offers(examination, "newest").values())


def keeps_oldest(examination: Examination) -> bool:
    """Whether the first prompt of all was found again."""
    return any(_offers(examination, "oldest").values())


def promises(examination: Examination, prefix: str) -> int:
    """How many requests whose ids begin so were offered something."""
    return sum(1 for tokens in _offers(examination, prefix).values() if tokens)


def lost(rule: str, found: Examination, without: Examination, what: str) -> Iterator[Finding]:
    """The newest prompts are never offered, and in the program ``without`` they are."""
    if keeps_newest(without) and not keeps_newest(found):
        observed = f"{what}, nothing of the prompts that were stored last is offered; without it they are found"
        yield Finding(rule, _EXPECTED[rule], observed, _WHOLE, requests=tuple(_offers(found, "newest")))
