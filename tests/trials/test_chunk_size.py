"""How many tokens a connector has to be given before it keeps any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.scenario import transfer
from kvconform.scenario.program import Add
from kvconform.target import parse_target
from kvconform.trials.chunk_size import SIZES, find_chunk_size, trial

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


@pytest.mark.usefixtures("vllm_cpu")
@pytest.mark.parametrize("fresh", [None, True])
def test_a_connector_with_chunks_of_256_tokens_is_served_what_it_stored(fresh: bool | None) -> None:
    target = parse_target(f"{ODD / 'chunked.py'}:InChunks", ODD)
    target.load()
    connector = Conformance(
        target, RunConfig(kv_connector_extra_config={"path": "{dir}/store"}, fresh_model_names=fresh)
    )
    assert (connector.needs.chunk_size, connector.needs.store_delay) == (256, 0.0)
    plain = connector.examine(transfer.reload().examples[0])
    assert not any(plain.offered.values())
    examination = connector.examine(connector.fitted(transfer.reload().examples[0]))
    assert examination.clean
    assert examination.offered["reload7"] == 3 * 256
