"""Whether what one scenario has stored is found by the next, which then is judged by what it has not done.

Stores in files lie in a fresh folder of each scenario. A server that serves all of them has to be told their users
apart; the configuration may do that. Else the model of each scenario gets a name of its own, as far as that helps:
whatever a store keeps is kept for a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvconform.trials.traits import Outlives

# Plays a trial that has been played before, with a model's name of its own or not; request id -> tokens offered.
Offers = Callable[[bool], Mapping[str, int]]


def find_outliving(offers: Offers, offers_new: Callable[[], Mapping[str, int]]) -> Outlives:
    """For whom an earlier scenario's KV is found by requests that are computed for the first time in theirs.

    Args:
        offers: plays the trial once more.
        offers_new: plays it with prompts that nobody has ever had. Who offers something for these, too, makes it up.
    """
    if not _finds_something(offers(False)):
        return "no"
    if not _finds_something(offers(True)):
        return "one model"
    return "no" if _finds_something(offers_new()) else "any model"


def _finds_something(offered: Mapping[str, int]) -> bool:
    return any(tokens > 0 for request, tokens in offered.items() if request.startswith("store"))
