"""What an engine is told about the connector."""

from __future__ import annotations

from typing import get_args

import pytest

from kvconform.engine.options import ConnectorSpec, Place, below_multi_connector

OURS = ConnectorSpec("Ours", "ours", extra_config={"blocks": 8})
PLACES = [place for place in get_args(Place) if place]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("sibling", [ConnectorSpec("Other", "other"), OURS], ids=["another class", "the same settings"])
def test_connector_under_test_is_the_child_at_its_place(place: Place, sibling: ConnectorSpec) -> None:
    spec = below_multi_connector(OURS, sibling, place)
    assert spec.child == (0 if place == "first" else 1)
    children = spec.extra_config["connectors"]
    assert children[spec.child]["kv_connector"] == "Ours"
    assert children[1 - spec.child]["kv_connector"] == sibling.class_name
