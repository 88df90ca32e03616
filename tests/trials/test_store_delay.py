"""How long scenarios wait for what a connector stores in the background."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvconform.checks import Examination
from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.engine.history import History
from kvconform.examiner import Examiner
from kvconform.isolation.room import HungError
from kvconform.scenario import run, transfer
from kvconform.scenario.exploration import Refused
from kvconform.scenario.family import program
from kvconform.scenario.program import Add, Drain, ForgetLocal, Program, RequestSpec, ResetConnector, Restart
from kvconform.stage import Manner
from kvconform.target import Target, parse_target
from kvconform.trials.store_delay import BLOCKS, PROMPTS, find_store_delay, trial

TARGET = Target("x:Y", "module", "x", "Y", "x:Y")
ODD = Path(__file__).parent.parent / "odd"
WHOLE = BLOCKS * 16


class Store:
    """Offers ``few`` tokens to each request until ``seconds`` have passed, and ``many`` then."""

    def __init__(self, seconds: float, few: int = 0, many: int = WHOLE) -> None:
        self.seconds, self.few, self.many = seconds, few, many
        self.tried: list[float] = []

    def __call__(self, delay: float) -> Mapping[str, int]:
        self.tried.append(delay)
        return {f"reload{index}": self.many if delay >= self.seconds else self.few for index in range(PROMPTS)}


@pytest.mark.parametrize(
    ("store", "delay", "tried"),
    [
        (Store(0.0), 0.0, [0.0]),
        (Store(0.0, many=WHOLE + 1), 0.0, [0.0]),
        (Store(0.005), 0.06, [0.0, 0.2, 0.02]),
        (Store(0.03, few=16), 0.24, [0.0, 0.2, 0.02, 0.08]),
        (Store(0.1, few=WHOLE - 16), 0.6, [0.0, 0.2, 0.02, 0.08]),
        (Store(5.0), 0.0, [0.0, 0.2]),
        (Store(0.0, many=32), 0.0, [0.0, 0.2]),
    ],
    ids=["at once", "all", "soon", "a part at once", "late", "nothing found", "coarse blocks"],
)
def test_waits_a_multiple_of_what_is_enough_to_find_more(store: Store, delay: float, tried: list[float]) -> None:
    assert find_store_delay(store) == delay
    assert store.tried == tried


def test_one_prompt_that_is_not_found_whole_is_enough_to_try() -> None:
    tried = []

    def offers(delay: float) -> Mapping[str, int]:
        tried.append(delay)
        return {"reload0": WHOLE, "reload1": WHOLE, "reload2": WHOLE if delay else 16}

    assert find_store_delay(offers) == 0.06
    assert len(tried) == 3


def test_each_prompt_of_the_trial_is_asked_for_again_right_after_it_was_stored() -> None:
    kinds = [action.request.id if isinstance(action, Add) else type(action) for action in trial().actions]
    assert kinds[:5] == ["store0", Drain, ForgetLocal, "reload0", Drain]
    assert kinds[5:10] == ["store1", Drain, ForgetLocal, "reload1", Drain]


class Trials(Examiner):
    """Finds what was stored when 0.04 s have passed."""

    def __init__(self, error: Exception | None = None, **settings: Any) -> None:
        super().__init__(TARGET, RunConfig(**{"chunk_size": 16, "fresh_model_names": False, **settings}))
        self.error = error
        self.manners: list[tuple[str, Manner]] = []

    def examine_anew(self, program: Program, manner: Manner) -> Examination:
        self.manners.append((program.name, manner))
        if self.error is not None and program == trial():
            raise self.error
        tokens = WHOLE if manner.store_delay >= 0.04 else 0
        return Examination(History(), offered={f"reload{index}": tokens for index in range(PROMPTS)})


def test_a_trial_decides_once_how_long_all_scenarios_wait() -> None:
    trials = Trials()
    trials.glance(Program("one"))
    trials.glance(Program("two"))
    assert trials.manners[-2:] == [("one", Manner(store_delay=0.24)), ("two", Manner(store_delay=0.24))]
    assert [name for name, _ in trials.manners].count(trial().name) == 4


@pytest.mark.parametrize("seconds", [0.0, 2.5])
def test_the_configuration_goes_before_a_trial(seconds: float) -> None:
    trials = Trials(store_delay=seconds)
    trials.glance(Program("one"))
    assert trials.manners == [("one", Manner(store_delay=seconds))]


@pytest.mark.parametrize("error", [Refused("no room"), HungError(1.0, "")])
def test_a_trial_that_cannot_be_played_is_left_to_the_scenarios(error: Exception) -> None:
    trials = Trials(error)
    trials.glance(Program("one"))
    assert [name for name, _ in trials.manners] == [trial().name, "one"]
    assert trials.needs.store_delay == 0.0


def test_what_was_stored_is_waited_for_before_it_has_to_be_found_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[object] = []
    monkeypatch.setattr("kvconform.scenario.run.time.sleep", done.append)

    class Recorded:
        connectors = ()

        def __getattr__(self, name: str) -> object:
            return lambda *args, **kwargs: done.append(name)

    store = Add(RequestSpec("store", ((1, 20),)))
    actions = [store, Drain(), ForgetLocal(), Restart(), Restart(drain=False), ResetConnector()]
    run.play(program("waits", actions), lambda *_: Recorded(), store_delay=0.5)  # type: ignore[arg-type,return-value]
    first = done.index(0.5)
    assert done[first - 1 : first + 2] == ["drain", 0.5, "reset_prefix_cache"]
    second = done.index(0.5, first + 1)
    assert done[second - 1 : second + 3] == ["drain", 0.5, "audit", "shutdown"]
    assert done.count(0.5) == 2


@pytest.mark.usefixtures("vllm_cpu")
def test_what_a_thread_stores_later_is_found_as_if_it_had_been_there_at_once() -> None:
    target = parse_target(f"{ODD / 'background_store.py'}:PublishesLater", ODD)
    target.load()
    connector = Conformance(target, RunConfig(kv_connector_extra_config={"path": "{dir}/store"}))
    examination = connector.examine(transfer.reload().examples[0])
    assert connector.needs.store_delay > 0
    assert examination.clean
    assert examination.offered["reload7"] == 48
