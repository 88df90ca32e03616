"""What the suites' scenarios have to be like: what the configuration says, and trials where it says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvconform.checks import Examination
from kvconform.config import RunConfig
from kvconform.engine.history import History
from kvconform.examiner import Examiner
from kvconform.isolation.room import CrashedError, HungError
from kvconform.scenario.exploration import Refused
from kvconform.scenario.program import Add, Program
from kvconform.stage import Manner
from kvconform.target import Target
from kvconform.trials import chunk_size, store_delay
from kvconform.trials.needs import Needs
from kvconform.trials.outliving import find_outliving
from kvconform.trials.traits import StoreTraits

TARGET = Target("x:Y", "module", "x", "Y", "x:Y")
TRIAL, DELAY_TRIAL = chunk_size.trial().name, store_delay.trial().name


class Trials(Examiner):
    """A store of chunks that finds what was stored ``after`` some seconds.

    It ``outlives`` scenarios: what one has stored is found by the next ones, for models of that name or for all.
    """

    def __init__(
        self,
        chunk: int = 16,
        after: float = 0.0,
        outlives: str = "",
        error: Exception | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(TARGET, RunConfig(**settings))
        self.chunk, self.after, self.outlives, self.error = chunk, after, outlives, error
        self.played: list[tuple[str, int, float, bool]] = []
        self.folders: list[str] = []
        #: Of the first prompt of each program.
        self.seeds: list[int] = []
        self._stored: set[tuple[Program, str]] = set()

    def examine_anew(self, program: Program, manner: Manner) -> Examination:
        self.seeds += [action.request.prompt[0][0] for action in program.actions[:1] if isinstance(action, Add)]
        self.played.append((program.name, program.chunk_size, manner.store_delay, bool(manner.models)))
        if manner.models:
            assert Path(manner.models).is_dir()
            self.folders.append(manner.models)
        if self.error is not None:
            raise self.error
        return Examination(History(), offered=self._offered_in(program, manner))

    def _offered_in(self, program: Program, manner: Manner) -> Mapping[str, int]:
        key = program, "" if self.outlives == "any model" else manner.models
        if self.outlives == "made up":
            return {action.request.id: 16 for action in program.actions if isinstance(action, Add)}
        before, late = bool(self.outlives) and key in self._stored, manner.store_delay >= self.after
        self._stored.add(key)
        found = {}
        for action in program.actions:
            if isinstance(action, Add):
                whole = action.request.prompt_length * program.chunk_size // 16 // self.chunk * self.chunk
                known = before if action.request.id.startswith("store") else late or before
                found[action.request.id] = whole if known else 0
        return found


def test_a_store_of_single_blocks_in_its_own_folder_needs_nothing() -> None:
    trials = Trials()
    assert trials.needs == Needs()
    assert trials.traits == StoreTraits()
    assert trials.played == [(TRIAL, 16, 0.0, False), (TRIAL, 16, 0.0, False), (DELAY_TRIAL, 16, 0.0, False)]


def test_trials_decide_once_what_programs_of_the_suites_are_like() -> None:
    trials = Trials(chunk=64, after=0.04)
    assert trials.needs == Needs(64, 0.24, False, StoreTraits(64, 0.24))
    assert trials.traits == StoreTraits(64, 0.24)
    assert {size for name, size, *_ in trials.played if name == DELAY_TRIAL} == {64}, "that trial has chunks, too"
    count = len(trials.played)
    assert trials.fitted(Program("one")).chunk_size == trials.fitted(Program("two")).chunk_size == 64
    trials.glance(Program("one"))
    assert trials.played[count:] == [("one", 16, 0.24, False)], "a program of one's own is played as it is written"


def test_a_program_for_another_size_is_left_as_it_is() -> None:
    assert Trials(chunk=64).fitted(Program("one", chunk_size=32)).chunk_size == 32


def test_models_get_names_of_their_own_where_the_next_scenario_finds_what_one_has_stored() -> None:
    trials = Trials(outlives="one model")
    assert trials.needs == Needs(fresh_model_names=True, shown=StoreTraits(outlives="one model"))
    for name in ("one", "two"):
        trials.glance(Program(name))
    assert [fresh for *_, fresh in trials.played] == [False, False, True, True, True, True]
    assert len(set(trials.folders)) == 4
    assert not any(Path(folder).exists() for folder in trials.folders), "they are gone with their scenario"


def test_names_stay_where_another_one_does_not_help() -> None:
    trials = Trials(outlives="any model")
    assert trials.needs == Needs(shown=StoreTraits(outlives="any model"))
    again = Trials(outlives="any model")
    assert again.needs == trials.needs
    (new,), (newer,) = (set(each.seeds) - {0} for each in (trials, again))
    assert new != newer, "no store has ever seen these prompts"


def test_a_connector_that_makes_up_what_it_offers_remembers_nothing() -> None:
    assert Trials(outlives="made up").needs == Needs()


def test_nothing_is_tried_further_where_nothing_is_found() -> None:
    trials = Trials(chunk=1 << 20)
    assert trials.needs == Needs(shown=StoreTraits(chunk_size=0))
    assert [name for name, *_ in trials.played] == [TRIAL, TRIAL, DELAY_TRIAL, DELAY_TRIAL]


@pytest.mark.parametrize("size", [16, 512])
@pytest.mark.parametrize("fresh", [False, True])
def test_the_configuration_goes_before_all_trials(size: int, fresh: bool) -> None:
    trials = Trials(chunk_size=size, store_delay=0.5, fresh_model_names=fresh)
    assert trials.needs == Needs(size, 0.5, fresh)
    assert not trials.played


def test_what_is_configured_holds_in_trials_for_the_rest() -> None:
    trials = Trials(chunk=64, after=0.3, store_delay=0.5, fresh_model_names=True)
    assert trials.needs == Needs(64, 0.5, True, StoreTraits(64))
    assert trials.played == [(TRIAL, 16, 0.5, True)]


def test_what_outlives_a_scenario_is_seen_with_a_configured_size_as_well() -> None:
    trials = Trials(outlives="one model", chunk_size=16, store_delay=0.0)
    assert trials.needs == Needs(fresh_model_names=True, shown=StoreTraits(outlives="one model"))
    assert [fresh for *_, fresh in trials.played] == [False, False, True]


@pytest.mark.parametrize("error", [Refused("no room"), HungError(1.0, ""), CrashedError("was killed", "")])
def test_a_trial_that_cannot_be_played_is_left_to_the_scenarios(error: Exception) -> None:
    trials = Trials(error=error, store_delay=0.5)
    assert trials.needs == Needs(store_delay=0.5)
    assert len(trials.played) == 1


@pytest.mark.parametrize(
    ("usual", "own", "new", "outlives"),
    [
        ({"store0": 0, "reload0": 16}, {"store0": 16}, {}, "no"),
        ({"store0": 0, "store1": 16}, {"store0": 0, "reload0": 16}, {}, "one model"),
        ({"store1": 16}, {"store1": 16}, {"store1": 0, "reload1": 16}, "any model"),
        ({"store1": 16}, {"store1": 16}, {"store0": 16}, "no"),
    ],
)
def test_what_is_found_of_a_prompt_that_nobody_has_computed_yet_tells(
    usual: Mapping[str, int], own: Mapping[str, int], new: Mapping[str, int], outlives: str
) -> None:
    assert find_outliving(lambda fresh: own if fresh else usual, lambda: new) == outlives
