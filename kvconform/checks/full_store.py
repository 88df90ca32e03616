"""LOAD, MATCH and SAVE on a full store: which prompts are offered, in programs that differ in what was promised.

A single miss is legal. What counts is that the newest prompts are never found any more, only because of what was
promised before, or because the store is full.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvconform.checks.calls import offered
from kvconform.checks.model import Examination, Finding
from kvconform.engine.history import History

_EXPECTED = {
    "SAVE-15": "a full store makes room for what comes, from entries that nobody needs",
    "MATCH-09": "an answer that no allocation followed leaves nothing behind, once its request has ended",
    "LOAD-10": "what was pinned for a load is given back, whether its request lives on or leaves",
}


def offers(history: History, request: str) -> int:
    """The most that was offered of the prompts of requests whose ids begin so."""
    calls = history.calls("get_num_new_matched_tokens")
    return max((offered(call) for call in calls if call.args["request"].startswith(request)), default=0)


def keeps_newest(examination: Examination) -> bool:
    """Whether any of the newest prompts was found again."""
    return offers(examination.history, "newest") > 0


def keeps_oldest(examination: Examination) -> bool:
    """Whether the first prompt of all was found again."""
    return offers(examination.history, "oldest") > 0


def promises(examination: Examination, request: str) -> int:
    """How many requests whose ids begin so were offered something."""
    calls = examination.history.calls("get_num_new_matched_tokens")
    return len({c.args["request"] for c in calls if c.args["request"].startswith(request) and offered(c)})


def lost(rule: str, found: Examination, without: Examination, what: str) -> Iterator[Finding]:
    """The newest prompts are never offered, and in the program ``without`` they are."""
    if keeps_newest(without) and not keeps_newest(found):
        call = next(
            c for c in found.history.calls("get_num_new_matched_tokens") if c.args["request"].startswith("newest")
        )
        observed = f"{what}, nothing of the prompts that were stored last is offered; without it they are found"
        yield Finding(rule, _EXPECTED[rule], observed, call, requests=(call.args["request"],))
