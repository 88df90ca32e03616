"""Fixtures that suites and vendors' own tests use. Registered only when the kit is active; heavy imports are inside."""

from __future__ import annotations

import pytest

from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.target import Target


@pytest.fixture(scope="session")
def conformance(kvconform_target: Target, kvconform_config: RunConfig) -> Conformance:
    """The connector under test, ready to be tried: plays programs, examines histories, settles rules."""
    return Conformance(kvconform_target, kvconform_config)
