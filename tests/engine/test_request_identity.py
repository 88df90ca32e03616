"""The oracle and vLLM's block hashes agree on which requests are the same, block by block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvconform.engine import compat
from kvconform.engine.options import EngineOptions
from kvconform.engine.vllm_engine.configuration import build_vllm_config
from kvconform.engine.vllm_engine.requests import build_request, hash_function, token_chain
from kvconform.scenario.identity import LOOK_ALIKES, SALTS, LookAlike
from kvconform.scenario.program import Item, RequestSpec

pytestmark = pytest.mark.usefixtures("vllm_cpu")

BLOCK = 16
EMBEDDED = RequestSpec("r", ((1, 16), (3, 33)), embeds=True)


def hashes(spec: RequestSpec) -> list[Any]:
    hasher = compat.request_block_hasher(build_vllm_config(EngineOptions(), None), BLOCK, hash_function())
    return list(build_request(spec, "model", hasher).block_hashes)


def ends(spec: RequestSpec) -> list[int]:
    """The oracle's chain value at the end of each whole block."""
    chain = token_chain(spec, "model")
    return [int(chain.chain(end - 1, end)[0]) for end in range(BLOCK, spec.prompt_length + 1, BLOCK)]


def assert_agreement(one: RequestSpec, other: RequestSpec) -> None:
    same_hashes = [a == b for a, b in zip(hashes(one), hashes(other), strict=True)]
    assert same_hashes == [a == b for a, b in zip(ends(one), ends(other), strict=True)]


@pytest.mark.parametrize("pair", LOOK_ALIKES, ids=lambda pair: pair.what)
def test_look_alikes_differ_for_both(pair: LookAlike) -> None:
    if not pair.told_apart:
        pytest.skip("not told apart by this release")
    assert ends(pair.first)[-1] != ends(pair.second)[-1]
    assert_agreement(pair.first, pair.second)


@pytest.mark.parametrize(
    "other",
    [EMBEDDED, replace(EMBEDDED, prompt=((1, 16), (4, 33))), replace(EMBEDDED, prompt=((2, 16), (3, 33)))],
    ids=["the same", "another rest", "another beginning"],
)
def test_embeddings_are_the_same_for_both(other: RequestSpec) -> None:
    assert_agreement(EMBEDDED, other)


def test_a_prompt_of_embeddings_has_no_token_ids() -> None:
    request = build_request(EMBEDDED, "model", None)
    assert request.prompt_token_ids is None
    assert list(request.all_token_ids) == [0] * 49


def test_an_empty_salt_is_no_salt_for_both() -> None:
    assert_agreement(RequestSpec("r", ((1, 40),)), RequestSpec("r", ((1, 40),), salt=""))


def test_items_lie_within_the_prompt() -> None:
    with pytest.raises(ValueError, match="items of r must lie within its 20 tokens"):
        RequestSpec("r", ((1, 20),), items=(Item(10, 11, "cat"),))


def test_a_next_turn_has_neither_items_nor_embeddings() -> None:
    with pytest.raises(ValueError, match="neither may have items or embeddings"):
        RequestSpec("r", ((1, 20),), continues=EMBEDDED)


def test_the_scenarios_use_no_salt_that_the_front_end_refuses() -> None:
    """A connector may rely on that: some put the salt into names as it is."""
    front_end = pytest.importorskip("vllm.entrypoints.generate.base.protocol")
    if not hasattr(front_end, "validate_cache_salt"):
        pytest.skip("an older front-end takes any salt")
    pairs = [each.salt for alike in LOOK_ALIKES for each in (alike.first, alike.second)]
    salts = {salt for salt in (*SALTS, *pairs) if salt}
    assert {"a:b", "a%b", "tenant"} <= salts
    for salt in salts:
        front_end.validate_cache_salt(salt)
    with pytest.raises(Exception, match="cache_salt"):
        front_end.validate_cache_salt("a@b")
