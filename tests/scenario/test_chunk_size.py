"""How many tokens a connector has to be given before it keeps any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from kvconform.checks import Examination
from kvconform.chunk_size import SIZES, find_chunk_size, trial
from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.engine.history import History
from kvconform.examiner import Examiner, Tried
from kvconform.isolation.room import CrashedError
from kvconform.scenario import transfer
from kvconform.scenario.exploration import Refused
from kvconform.scenario.program import Add, Program
from kvconform.stage import Manner
from kvconform.target import Target, parse_target

TARGET = Target("x:Y", "module", "x", "Y", "x:Y")
ODD = Path(__file__).parent.parent / "odd"


class Store:
    """Offers whole chunks of each prompt, once ``seconds`` have passed."""

    def __init__(self, chunk: int, seconds: float = 0.0) -> None:
        self.chunk, self.seconds = chunk, seconds
        self.tried: list[float] = []

    def __call__(self, delay: float) -> Mapping[str, int]:
        self.tried.append(delay)
        late = delay < self.seconds
        return {f"reload{i}": 0 if late else (size + 1) // self.chunk * self.chunk for i, size in enumerate(SIZES)}


@pytest.mark.parametrize(
    ("store", "size", "tried"),
    [
        (Store(16), 16, [0.0]),
        (Store(1), 16, [0.0]),
        (Store(24), 32, [0.0, 0.2]),
        (Store(48), 48, [0.0, 0.2]),
        (Store(256), 256, [0.0, 0.2]),
        (Store(256, 0.1), 256, [0.0, 0.2]),
        (Store(16, 0.1), 16, [0.0, 0.2]),
        (Store(1024), 1024, [0.0, 0.2]),
        (Store(2000), 0, [0.0, 0.2]),
        (Store(64, 5.0), 0, [0.0, 0.2]),
    ],
    ids=[
        "blocks",
        "tokens",
        "no multiple of a block",
        "odd",
        "usual",
        "late",
        "blocks late",
        "large",
        "larger",
        "never",
    ],
)
def test_the_smallest_hit_tells_the_size_of_a_chunk(store: Store, size: int, tried: list[float]) -> None:
    assert find_chunk_size(store, (0.0, 0.2)) == size
    assert store.tried == tried


def test_a_smallest_number_of_tokens_is_no_more_than_the_prompt_is_about() -> None:
    assert (
        find_chunk_size(lambda _: {f"reload{i}": (size + 1) * (size > 100) for i, size in enumerate(SIZES)}, (0.0,))
        == 128
    )


def test_of_several_trials_the_smallest_hit_counts() -> None:
    answers = iter([{"reload4": 256}, {"reload0": 0, "reload2": 64}])
    assert find_chunk_size(lambda _: next(answers), (0.0, 0.2)) == 64


def test_prompts_of_the_trial_are_two_tokens_longer_than_each_size() -> None:
    lengths = [action.request.prompt_length for action in trial().actions if isinstance(action, Add)]
    assert lengths == [size + 2 for size in SIZES] * 2


class Trials(Examiner):
    """Finds chunks of 64 tokens when 0.04 s have passed."""

    def __init__(self, error: Exception | None = None, **settings: float) -> None:
        super().__init__(TARGET, RunConfig(**settings))  # type: ignore[arg-type]
        self.error = error
        self.played: list[tuple[str, int, Manner]] = []

    def examine_anew(self, program: Program, manner: Manner) -> Examination:
        self.played.append((program.name, program.chunk_size, manner))
        if self.error is not None:
            raise self.error
        found = manner.store_delay >= 0.04
        sizes = {f"reload{i}": size // 64 * 64 if found else 0 for i, size in enumerate(SIZES)}
        if program.name != trial().name:
            sizes = {f"reload{i}": 6 * 64 if found else 0 for i in range(3)}
        return Examination(History(), offered=sizes)


def test_trials_decide_once_what_programs_of_the_suites_are_like() -> None:
    trials = Trials()
    assert trials.tried == Tried(64, 0.24)
    assert {size for name, size, _ in trials.played if name != trial().name} == {64}, "the other trial has chunks, too"
    count = len(trials.played)
    assert trials.fitted(Program("one")).chunk_size == trials.fitted(Program("two")).chunk_size == 64
    assert len(trials.played) == count


def test_a_program_for_another_size_is_left_as_it_is() -> None:
    assert Trials(chunk_size=64).fitted(Program("one", chunk_size=32)).chunk_size == 32


def test_a_program_of_ones_own_is_played_as_it_is_written() -> None:
    trials = Trials(chunk_size=64, store_delay=0.0)
    trials.glance(Program("one"))
    assert trials.played == [("one", 16, Manner())]


@pytest.mark.parametrize("size", [16, 512])
def test_the_configuration_goes_before_a_trial(size: int) -> None:
    trials = Trials(chunk_size=size, store_delay=0.5)
    assert trials.tried == Tried(size, 0.5)
    assert not trials.played


def test_the_configured_delay_is_waited_for_in_the_trial() -> None:
    trials = Trials(store_delay=0.5)
    assert trials.tried == Tried(64, 0.5)
    assert trials.played == [(trial().name, 16, Manner(store_delay=0.5))]


@pytest.mark.parametrize("error", [Refused("no room"), CrashedError("was killed", "")])
def test_a_trial_that_cannot_be_played_is_not_tried_again(error: Exception) -> None:
    trials = Trials(error)
    assert trials.tried == Tried()
    assert len(trials.played) == 1


@pytest.mark.usefixtures("vllm_cpu")
def test_a_connector_with_chunks_of_256_tokens_is_served_what_it_stored() -> None:
    target = parse_target(f"{ODD / 'chunked.py'}:InChunks", ODD)
    target.load()
    connector = Conformance(target, RunConfig(kv_connector_extra_config={"path": "{dir}/store"}))
    assert connector.tried == Tried(256, 0.0)
    plain = connector.examine(transfer.reload().examples[0])
    assert not any(plain.offered.values())
    examination = connector.examine(connector.fitted(transfer.reload().examples[0]))
    assert examination.clean
    assert examination.offered["reload7"] == 3 * 256
