"""A store of bounded size that is full: it makes room, and broken-off promises do not stay in the way.

A store is full when the oldest prompt is not offered any more. One that is not after all prompts were stored has
nothing to show here; a small capacity in the connector's configuration changes that.
"""

from __future__ import annotations

import pytest

from kvconform.checks import Examination
from kvconform.checks.full_store import keeps_newest, keeps_oldest, lost, promises
from kvconform.conformance import Conformance
from kvconform.outcomes import Inconclusive, NotApplicable
from kvconform.scenario import full_store
from kvconform.scenario.exploration import Refused, refusal_words

NOT_FULL = (
    f"the store is not full after {3 * full_store.ROUNDS} blocks: to have this looked at, give it a smaller capacity "
    "in kv_connector_extra_config"
)


def _examined(conformance: Conformance, promises: full_store.Promises, rounds: int = full_store.ROUNDS) -> Examination:
    try:
        return conformance.examine(conformance.fitted(full_store.filled(rounds, promises)))
    except Refused as error:
        raise NotApplicable(refusal_words(str(error))) from None


def _demand_full_store(conformance: Conformance, examination: Examination) -> None:
    if not keeps_newest(examination):
        lacking = "nothing is offered of what was stored last, so that it can't be missed"
        raise Inconclusive(lacking + conformance.alone)
    if keeps_oldest(examination):
        raise NotApplicable(NOT_FULL)


@pytest.mark.kvconform_rules("SAVE-15")
def test_full_store_makes_room(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """A store that is full makes room from entries nobody needs."""
    few, many = _examined(conformance, "none", full_store.NEWEST), _examined(conformance, "none")
    if keeps_newest(many) or not keeps_newest(few):
        _demand_full_store(conformance, many)
    found = lost("SAVE-15", many, few, f"after {full_store.ROUNDS} prompts")
    conformance.conclude(request, found, {"SAVE-15": {"prompts stored in a full store": full_store.ROUNDS}}, "")


@pytest.mark.kvconform_rules("MATCH-09")
def test_answers_that_nothing_follows_leave_room_in_the_store(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The match can be repeated, and an answer that no allocation follows leaves nothing behind."""
    _demand_full_store(conformance, _examined(conformance, "none"))
    control, asked = _examined(conformance, "no room"), _examined(conformance, "never admitted")
    _demand_full_store(conformance, control)
    count = promises(asked, "asks")
    found = lost("MATCH-09", asked, control, f"once {count} requests have been answered and were never admitted")
    conformance.conclude(request, found, {"MATCH-09": {"answers that nothing followed": count}}, "nothing was offered")


@pytest.mark.kvconform_rules("LOAD-10")
def test_loads_leave_room_in_the_store(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Whatever the connector pins for a promised load is given back, however the promise ends."""
    control = _examined(conformance, "none")
    _demand_full_store(conformance, control)
    loaded = _examined(conformance, "loaded")
    count = promises(loaded, "loads") + promises(loaded, "leaves")
    found = lost("LOAD-10", loaded, control, f"once {count} loads have ended")
    conformance.conclude(request, found, {"LOAD-10": {"promises kept or left": count}}, "nothing was offered")
