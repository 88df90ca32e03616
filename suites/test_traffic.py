"""Any traffic: whatever arrives, ends, fails and restarts in whatever order, stored KV comes back right.

The scenarios are drawn. A failure is shrunk to a short scenario, and named for the situation that it needs.
"""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import traffic


@pytest.mark.kvconform_rules("LOAD-01", "LOAD-03", "ALLOC-02", "LIVE-01", "LIVE-02", "LIVE-03")
def test_any_traffic_leaves_stored_kv_right_and_the_engine_alive(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Loaded slots hold bit for bit what was saved for their tokens, in whatever order things happen."""
    conformance.judge(request, traffic.any_traffic())
