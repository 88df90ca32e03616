"""The class that breaks a connector's store, in whole runs."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

ODD = Path(__file__).resolve().parents[1] / "odd"
TEST = "test_store_that_never_answers_delays_nothing_for_ever"


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run prints whose second connector meets a class that does not work."""
    monkeypatch.syspath_prepend(str(ODD))
    monkeypatch.setenv("PYTHONPATH", str(ODD), prepend=":")
    monkeypatch.setenv("COLUMNS", "200")
    (pytester.path / "faults.py").write_text(
        dedent("""
        import distant_store

        class Faults(distant_store.DistantStoreFaults):
            def __init__(self, setting):
                if any(isinstance(each, distant_store.DistantAsyncStore) for each in setting.connectors()):
                    raise ConnectionError("no server for this one")
                super().__init__(setting)
        """)
    )
    (pytester.path / "kit.toml").write_text(
        f'connector = ["{ODD}/distant_store.py:DistantStore", "{ODD}/distant_store.py:DistantAsyncStore"]\n'
        'faults = "faults.py:Faults"\nkv_connector_extra_config = { path = "{dir}" }\n'
    )
    done = pytester.runpytest_subprocess("--kvconform-config=kit.toml", "-k", TEST, "-p", "no:cacheprovider")
    assert done.ret == 1
    return done.stdout.str()


def test_a_store_is_kept_from_answering_and_a_class_that_raises_costs_its_own_connector_alone(run: str) -> None:
    first, _, second = run.partition("\ndistant_store:DistantAsyncStore\n")
    assert "PASS         LIVE-05" in first, run
    assert "Faults.__init__ raised ConnectionError: no server for this one." in run
    assert "KIT ERROR    LIVE-05" in second, run
    assert "Traceback" not in run
    assert "isolation/room.py" not in run
