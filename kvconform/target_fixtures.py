"""The two fixtures that everything else hangs on: the connector under test and its configuration."""

from __future__ import annotations

import pytest

from kvconform.config import RunConfig
from kvconform.errors import UsageError
from kvconform.target import Target

RUN_CONFIG: pytest.StashKey[RunConfig] = pytest.StashKey()


class UnusableTargetError(Exception):
    """A target that turned out to be unusable when it was imported; :mod:`kvconform.session` reports it once."""

    def __init__(self, target: str, sentence: str) -> None:
        super().__init__(sentence)
        self.target = target


@pytest.fixture(scope="session")
def kvconform_target(request: pytest.FixtureRequest) -> Target:
    """The connector under test, importable. Tests that use it, directly or not, run once per connector."""
    target: Target = request.param
    try:
        target.load()
    except UsageError as error:
        raise UnusableTargetError(target.id, str(error)) from None
    return target


@pytest.fixture(scope="session")
def kvconform_config(request: pytest.FixtureRequest, kvconform_target: Target) -> RunConfig:
    """The run's configuration for the connector under test, with its preset."""
    return request.config.stash[RUN_CONFIG].for_target(kvconform_target)
